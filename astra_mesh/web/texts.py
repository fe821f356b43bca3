"""``/v1/completions`` and ``/v1/chat/completions``: texts, whole or streamed."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

from aiohttp import web

from astra_mesh import limits
from astra_mesh.web.body import decode
from astra_mesh.web.choices import Choices, Ended, Piece, Prompt, Wanted, named_places, run_choices
from astra_mesh.web.errors import api_error, bad, blaming
from astra_mesh.web.jsons import json_response
from astra_mesh.web.logprobs import Scored
from astra_mesh.web.reports import Summary, usage
from astra_mesh.web.requests import ChatRequest, CompletionRequest, Sampled
from astra_mesh.web.shapes import CHAT, COMPLETION, Scores, Shape
from astra_mesh.web.sse import EventStream, ReaderGoneError
from astra_mesh.web.state import STATE, State
from astra_mesh.web.unsupported import check_supported
from astra_mesh.web.waiting import Waiting
from astra_mesh.wire.messages import ModelId

_COMPLETION_TOKENS: Final = 16  # OpenAI's default of max_tokens
_CHAT_TOKENS: Final = 1_024  # OpenAI has none; a model that never stops would fill its context


_Ready: TypeAlias = tuple[Sequence[Prompt], Wanted]  # what is to be asked


@dataclass
class Answer:
    """One request for texts, on its way."""

    shape: Shape
    model: str
    prompts: Sequence[Prompt]
    n: int
    wanted: Wanted
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))
    texts: dict[int, list[str]] = field(default_factory=dict)
    tokens: dict[int, list[Scored]] = field(default_factory=dict)
    ends: dict[int, Ended] = field(default_factory=dict)
    loading_s: float = 0.0  # that its model was waited for before the mesh was asked

    def take(self, event: Piece | Ended) -> None:
        """Keep an event."""
        if isinstance(event, Piece):
            self.texts.setdefault(event.index, []).append(event.text)
            self.tokens.setdefault(event.index, []).extend(event.tokens)
        else:
            self.ends[event.index] = event

    @property
    def summaries(self) -> list[Summary]:
        """Of the choices that ended, in order."""
        return [end.summary for _, end in sorted(self.ends.items())]

    def head(self, kind: str) -> dict[str, Any]:
        """What each object of the answer begins with."""
        about = {"id": f"{self.shape.prefix}-{self.id}", "object": kind, "created": self.created}
        return {**about, "model": self.model}

    def scores(self, tokens: Iterable[Scored]) -> Scores:
        """The log-probabilities of some tokens, if they were asked for."""
        return None if self.wanted.best is None else list(tokens)

    def usage(self) -> dict[str, int]:
        """Tokens in all."""
        return usage(self.summaries[:: self.n], self.summaries)

    def reports(self) -> list[dict[str, Any]]:
        """What each choice cost the mesh, in order."""
        return [replace(one, loading_s=self.loading_s).mesh for one in self.summaries]


async def complete(request: web.Request, data: bytes) -> web.StreamResponse:
    """Handle ``POST /v1/completions``."""
    asked = decode(data, CompletionRequest)
    state = request.app[STATE]
    model = state.peer.models.find(asked.model)  # named before anything else is judged
    check_supported(asked)
    prompts = prompts_of(asked.prompt, "prompt")
    if len(prompts) > limits.API_PROMPTS:
        raise bad(f"at most {limits.API_PROMPTS} prompts fit in one request", "prompt")
    for place, prompt in named_places("prompt", prompts):
        if not isinstance(prompt, str):
            with blaming(place):
                state.peer.models.check_tokens(model, prompt)
    wanted = _wanted(asked, asked.max_tokens or _COMPLETION_TOKENS)

    async def ready() -> _Ready:
        if asked.logprobs is None:
            return prompts, wanted
        loaded = await state.peer.models.load(model)
        return prompts, replace(wanted, best=asked.logprobs, tokenizer=loaded.tokenizer)

    return await _answer(request, asked, COMPLETION, model, ready)


async def chat(request: web.Request, data: bytes) -> web.StreamResponse:
    """Handle ``POST /v1/chat/completions``."""
    asked, state = decode(data, ChatRequest), request.app[STATE]
    model = state.peer.models.find(asked.model)
    check_supported(asked)

    async def ready() -> _Ready:
        loaded = await state.peer.models.load(model)
        with blaming("messages"):
            prompt = await state.templates.prompt(loaded, asked.messages, asked.model)
        most = asked.max_completion_tokens or asked.max_tokens or _CHAT_TOKENS
        wanted = replace(_wanted(asked, most), field="messages")
        if asked.logprobs:
            wanted = replace(wanted, best=asked.top_logprobs or 0, tokenizer=loaded.tokenizer)
        return [prompt], wanted

    return await _answer(request, asked, CHAT, model, ready)


def prompts_of(given: str | list[Any], field: str) -> list[Prompt]:
    """The prompts in a field of a request: a text, token ids, or a list of these."""
    if isinstance(given, str):
        return [given]
    if all(isinstance(one, int) for one in given):
        return [given]
    if any(isinstance(one, int) for one in given):
        raise bad("give texts or lists of token ids, not both in one list", field, "invalid_type")
    return given


def _wanted(asked: Sampled, max_tokens: int) -> Wanted:
    stop = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
    return Wanted(
        model=asked.model,
        max_tokens=max_tokens,
        temperature=1.0 if asked.temperature is None else asked.temperature,
        top_p=1.0 if asked.top_p is None else asked.top_p,
        top_k=asked.top_k or 0,
        seed=asked.seed,
        stops=tuple(stop),
        options=asked.x_astra_mesh,
    )


async def _answer(
    request: web.Request,
    asked: Sampled,
    shape: Shape,
    model: ModelId,
    ready: Callable[[], Awaitable[_Ready]],
) -> web.StreamResponse:
    """The answer, once ``ready`` has what is to be asked; a model may be loaded for that."""
    state = request.app[STATE]
    alone = asked.x_astra_mesh.use == "solo"
    waiting = Waiting(state.peer, model, asked.model, alone, state.config.keepalive_s)
    if not asked.stream:
        return await _run(state, asked, shape, await _prepared(ready, waiting, None), None)
    stream = EventStream(request, state.config.write_s)
    try:
        prepared = await _prepared(ready, waiting, stream)
        return await _run(state, asked, shape, prepared, (stream, waiting))
    except ReaderGoneError:
        return stream.response
    except Exception as error:
        if not stream.started:
            raise  # an ordinary answer with its status is still possible
        await stream.fail(api_error(error))
        return stream.response


async def _prepared(
    ready: Callable[[], Awaitable[_Ready]], waiting: Waiting, stream: EventStream | None
) -> tuple[Sequence[Prompt], Wanted, float]:
    """What is to be asked, and how many seconds a model was waited for."""
    began, cold = time.perf_counter(), waiting.is_cold
    async with waiting.telling(stream):
        prompts, wanted = await ready()
    return prompts, wanted, time.perf_counter() - began if cold else 0.0


async def _run(
    state: State,
    asked: Sampled,
    shape: Shape,
    prepared: tuple[Sequence[Prompt], Wanted, float],
    streamed: tuple[EventStream, Waiting] | None,
) -> web.StreamResponse:
    prompts, wanted, loading_s = prepared
    n = asked.n or 1
    if len(prompts) * n > limits.API_CHOICES:
        raise bad(f"at most {limits.API_CHOICES} texts (prompts times n) in one request", "n")
    answer = Answer(shape, asked.model, prompts, n, wanted, loading_s=loading_s)
    mesh = await state.door.mesh()
    async with run_choices(
        mesh, state.peer.likelihoods, wanted, prompts, n, state.config.request_s
    ) as choices:
        try:
            if streamed is None:
                return await _whole(answer, choices)
            with_usage = asked.stream_options is not None and asked.stream_options.include_usage
            await _stream(*streamed, answer, choices, with_usage)
            return await streamed[0].finish()
        finally:
            state.metrics.note(answer.summaries)


async def _whole(answer: Answer, choices: Choices) -> web.Response:
    while not choices.over():
        answer.take(await choices.next())
    shape = answer.shape
    made = [
        shape.choice(
            index,
            "".join(answer.texts.get(index, ())),
            end.finish,
            answer.scores(answer.tokens.get(index, ())),
        )
        for index, end in sorted(answer.ends.items())
    ]
    about = {"choices": made, "usage": answer.usage(), "x_astra_mesh": answer.reports()}
    return json_response(answer.head(shape.kind) | about)


async def _stream(
    stream: EventStream, waiting: Waiting, answer: Answer, choices: Choices, with_usage: bool
) -> None:
    shape, opened = answer.shape, set[int]()
    head = answer.head(shape.chunk_kind) | ({"usage": None} if with_usage else {})
    while not choices.over():
        event = await _next(stream, choices, waiting)
        waiting.begin()
        answer.take(event)
        if event.index not in opened:
            opened.add(event.index)
            for chunk in shape.opening(event.index):
                await stream.send(head | {"choices": [chunk]})
        if isinstance(event, Piece):
            delta = shape.delta(event.index, event.text, answer.scores(event.tokens))
            await stream.send(head | {"choices": [delta]})
            continue
        last = choices.over() and not with_usage
        more = {"x_astra_mesh": answer.reports()} if last else {}
        await stream.send(head | {"choices": [shape.end(event.index, event.finish)]} | more)
    if with_usage:
        about = {"usage": answer.usage(), "x_astra_mesh": answer.reports()}
        await stream.send(head | {"choices": []} | about)


async def _next(stream: EventStream, choices: Choices, waiting: Waiting) -> Piece | Ended:
    """The next event; comments go out while it is not there."""
    while True:
        try:
            async with asyncio.timeout(waiting.pause_s):
                return await choices.next()
        except TimeoutError:
            await stream.comment(waiting.text())
