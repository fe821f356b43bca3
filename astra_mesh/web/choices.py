"""The texts of one request, generated side by side, as one stream of events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final, TypeAlias

from astra_mesh.bundle.text import TextTokenizer
from astra_mesh.client import Generation, Mesh
from astra_mesh.errors import DeadlineError
from astra_mesh.peer.likelihoods import Likelihoods, Noted
from astra_mesh.web.errors import ApiError, api_error
from astra_mesh.web.logprobs import Scored, Scorer
from astra_mesh.web.reports import Summary, of_generation
from astra_mesh.web.requests import MeshOptions
from astra_mesh.web.stops import StopFinder

_UNREAD: Final = 64  # events that a slow reader leaves; then the tokens wait on the link
_FINISH: Final = {"eos": "stop", "length": "length", "context": "length"}


@dataclass(frozen=True)
class Wanted:
    """How each text of a request is made."""

    model: str
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    stops: tuple[str, ...]
    options: MeshOptions
    field: str = "prompt"  # of the request, which holds what is continued
    best: int | None = None  # log-probabilities, also of so many most probable tokens
    tokenizer: TextTokenizer | None = None  # for those


@dataclass(frozen=True)
class Piece:
    """More text of a choice, and its tokens if log-probabilities are wanted."""

    index: int
    text: str
    tokens: tuple[Scored, ...] = ()


@dataclass(frozen=True)
class Ended:
    """A choice is complete."""

    index: int
    finish: str  # "stop" or "length", as OpenAI calls it
    summary: Summary


Event: TypeAlias = Piece | Ended
Prompt: TypeAlias = str | list[int]


class Choices:
    """The events of all choices, in the order in which they happen. Made by :func:`run_choices`."""

    def __init__(self, count: int) -> None:
        self._queue: asyncio.Queue[Event | ApiError] = asyncio.Queue(_UNREAD)
        self._running = count
        self._failed = False

    async def next(self) -> Event:
        """The next event. Cancelling it loses nothing.

        Raises:
            ApiError: A choice failed; nothing comes after that.
        """
        item = await self._queue.get()
        if isinstance(item, ApiError):
            self._failed = True
            raise item
        if isinstance(item, Ended):
            self._running -= 1
        return item

    def over(self) -> bool:
        """Whether all have ended, or one failed."""
        return self._failed or self._running == 0

    async def put(self, item: Event | ApiError) -> None:
        """A choice went on; waits while too much is unread."""
        await self._queue.put(item)


@asynccontextmanager
async def run_choices(
    mesh: Mesh,
    likelihoods: Likelihoods,
    wanted: Wanted,
    prompts: Sequence[Prompt],
    n: int,
    within_s: float,
) -> AsyncIterator[Choices]:
    """Generate ``n`` texts of each prompt: choice ``i * n + j`` is the j-th of prompt i.

    Leaving it, by whatever way, cancels on all peers what still runs.
    """
    choices = Choices(len(prompts) * n)
    error: Exception | None = None
    async with asyncio.TaskGroup() as group:
        running = [
            group.create_task(
                _run(
                    _Text(mesh, likelihoods, wanted, prompt, field, at * n + copy, copy),
                    choices,
                    within_s,
                )
            )
            for at, (field, prompt) in enumerate(named_places(wanted.field, prompts))
            for copy in range(n)
        ]
        try:
            yield choices
        except Exception as exc:  # raised below: the group would wrap it
            error = exc
        finally:
            for task in running:
                task.cancel()
    if error is not None:
        raise error


def named_places(field: str, prompts: Sequence[Prompt]) -> list[tuple[str, Prompt]]:
    """Each prompt with its place in the request; one alone is the whole field."""
    if len(prompts) == 1:
        return [(field, prompts[0])]
    return [(f"{field}[{at}]", prompt) for at, prompt in enumerate(prompts)]


@dataclass(frozen=True)
class _Text:
    """One text that is to be made."""

    mesh: Mesh
    likelihoods: Likelihoods
    wanted: Wanted
    prompt: Prompt
    field: str  # of the request, which holds the prompt
    index: int  # of the choice
    copy: int  # of this prompt's texts

    def start(self) -> Generation:
        """The request, which starts with its first token."""
        wanted = self.wanted
        return self.mesh.generate(
            wanted.model,
            self.prompt,
            max_new_tokens=wanted.max_tokens,
            temperature=wanted.temperature,
            top_k=wanted.top_k,
            top_p=wanted.top_p,
            seed=None if wanted.seed is None else wanted.seed + self.copy,
            stay=wanted.best is not None,  # this peer notes how likely tokens were
            **wanted.options.given(),
        )


async def _run(text: _Text, choices: Choices, within_s: float) -> None:
    try:
        async with asyncio.timeout(within_s):
            await _generate(text, choices)
    except TimeoutError:
        sentence = (
            f"the text was not complete within {within_s:g} s; ask for fewer tokens (max_tokens)"
        )
        await choices.put(api_error(DeadlineError(sentence)))
    except Exception as error:
        await choices.put(api_error(error, text.field))


async def _generate(text: _Text, choices: Choices) -> None:
    began, count, index, wanted = time.perf_counter(), 0, text.index, text.wanted
    finder, scorer = StopFinder(wanted.stops), Scorer(wanted.tokenizer)
    async with text.start() as generation:
        with _noting(text, generation) as noted:
            async for token in generation:
                count += 1
                if noted is not None:
                    scorer.push(token, noted.take(token.index))
                if piece := finder.push(token.text):
                    await choices.put(Piece(index, piece, scorer.pop(piece)))
                if finder.found:
                    break
    rest = finder.flush()
    tokens = () if finder.found else scorer.rest()
    if rest or tokens:
        await choices.put(Piece(index, rest, tokens))
    finish = "stop" if finder.found or generation.report is None else ""
    if generation.report is not None and not finder.found:
        finish = _FINISH.get(generation.report.finish, "stop")
    took = time.perf_counter() - began
    await choices.put(Ended(index, finish, of_generation(generation, count, took)))


@contextmanager
def _noting(text: _Text, generation: Generation) -> Iterator[Noted | None]:
    if text.wanted.best is None:
        yield None
        return
    with text.likelihoods.of(generation.request, text.wanted.best) as noted:
        yield noted
