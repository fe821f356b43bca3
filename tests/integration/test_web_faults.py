"""The API when requests go wrong, and when callers leave."""

from __future__ import annotations

import asyncio
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest

from astra_mesh import limits
from astra_mesh.engine.pipeline import Pipeline
from astra_mesh.errors import BadBundleError, DeadlineError, PeerLostError
from astra_mesh.peer import models as models_module
from astra_mesh.peer.answer import Answer
from astra_mesh.peer.loading import loading
from astra_mesh.peer.models import ModelHost
from astra_mesh.peer.steps import StepQueue
from astra_mesh.web import waiting
from astra_mesh.web.door import Door
from tests.integration.mesh_fixtures import until
from tests.integration.web_fixtures import (
    MESH,
    PROMPT,
    busy,
    live,
)
from tests.timings import patient

# --- errors ---------------------------------------------------------------------------------------


async def test_openai_s_client_raises_the_errors_that_it_knows(models: Path) -> None:
    async with live(models, 1) as on:
        create = on.client.completions.create
        with pytest.raises(openai.NotFoundError) as unknown:
            await create(model="absent", prompt="w1")
        with pytest.raises(openai.BadRequestError, match=r"context|tokens") as long:
            await create(model="words", prompt=" ".join(["w1"] * 200))
        with pytest.raises(openai.BadRequestError, match=r"classif|task|generate") as wrong:
            await create(model="pictures", prompt="w1")
        with pytest.raises(openai.BadRequestError, match="is not supported") as penalty:
            await create(model="words", prompt="w1", echo=True)
        with pytest.raises(openai.NotFoundError):
            await create(model="absent", prompt="w1", stream=True)
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    assert long.value.code == "context_length_exceeded"
    assert wrong.value.code == "wrong_task"
    assert (penalty.value.code, penalty.value.param) == ("unsupported_parameter", "echo")


async def test_busy_lost_late_and_broken(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def lost(self: Answer) -> None:
        raise PeerLostError("kitchen went away")

    async def late(self: Answer) -> None:
        raise DeadlineError("no codes came within 60 s")

    async def broken(self: Answer) -> None:
        raise RuntimeError("secret detail")

    async with live(models, 1) as on:
        create = on.client.completions.create
        for work, status, code in ((lost, 503, "peer_lost"), (late, 504, "deadline")):
            monkeypatch.setattr(Answer, "run", work)
            with pytest.raises(openai.InternalServerError) as error:
                await create(model="words", prompt="w1")
            assert (error.value.status_code, error.value.code) == (status, code)
        monkeypatch.setattr(Answer, "run", broken)
        with pytest.raises(openai.InternalServerError) as error:
            await create(model="words", prompt="w1")
        assert error.value.status_code == 500
        assert "secret" not in str(error.value)
        assert "RuntimeError" not in str(error.value)
        monkeypatch.setattr(limits, "REQUESTS_PER_PEER", 0)
        with pytest.raises(openai.RateLimitError, match="as many requests as it takes") as full:
            await create(model="words", prompt="w1")
        assert full.value.response.headers["retry-after"] == "1"


async def test_an_error_in_mid_stream_is_the_last_event(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(self: StepQueue, *args: Any) -> int | None:
        left.pop()
        if not left:
            raise PeerLostError("kitchen went away")
        return await original(self, *args)

    original, left = StepQueue.step, [0, 1, 2, 3]
    monkeypatch.setattr(StepQueue, "step", lost)
    async with live(models, 1) as on:
        stream = await on.client.completions.create(
            model="words", prompt=PROMPT, max_tokens=8, stream=True
        )
        with pytest.raises(openai.APIError, match="kitchen went away"):
            async for _ in stream:
                pass


# --- leaving --------------------------------------------------------------------------------------


@pytest.fixture
def slow_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each new token takes 50 ms longer."""
    original = StepQueue.step

    async def slow(self: StepQueue, *args: Any) -> int | None:
        await asyncio.sleep(0.05)
        return await original(self, *args)

    monkeypatch.setattr(StepQueue, "step", slow)


async def test_leaving_a_stream_frees_the_request_everywhere(
    models: Path, slow_steps: None
) -> None:
    async with live(models, 3) as on:
        stream = await on.client.completions.create(
            model="words", prompt=PROMPT, max_tokens=50, n=2, stream=True, extra_body=MESH
        )
        async for _ in stream:
            break
        assert busy(on.peers[-1])
        await stream.close()
        await until(lambda: not any(busy(peer) for peer in on.peers), patient(1.0))
        async with on.http.get(f"{on.root}/metrics") as answer:
            assert 'path="/v1/completions",status="499"} 1.0' in await answer.text()


async def test_leaving_before_the_answer_frees_the_participants_too(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = asyncio.Event()

    async def stuck(self: Pipeline) -> None:
        reached.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(Pipeline, "prefill", stuck)
    async with live(models, 3) as on:
        asking = asyncio.create_task(
            on.client.completions.create(model="words", prompt=PROMPT, extra_body=MESH)
        )
        await reached.wait()
        await until(lambda: all(busy(peer) for peer in on.peers))
        asking.cancel()
        await asyncio.wait([asking])
        await until(lambda: not any(busy(peer) for peer in on.peers), patient(1.0))


async def test_a_stream_without_news_says_that_it_lives(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ModelHost.load

    async def slow(self: ModelHost, model: Any) -> Any:
        await asyncio.sleep(0.35)
        return await original(self, model)

    monkeypatch.setattr(ModelHost, "load", slow)
    body = {"model": "words", "prompt": PROMPT, "max_tokens": 2, "stream": True}
    async with (
        live(models, 1, keepalive_s=0.1) as on,
        on.http.post(f"{on.root}/v1/completions", json=body) as answer,
    ):
        text = await answer.text()
    assert text.startswith(": loading words on peer0\n\n: loading words on peer0\n\n")
    assert text.endswith("data: [DONE]\n\n")


async def test_a_request_that_takes_too_long_ends(models: Path, slow_steps: None) -> None:
    async with live(models, 1, request_s=1.0) as on:
        await on.client.completions.create(model="words", prompt="w1", max_tokens=1)
        with pytest.raises(openai.InternalServerError, match="within 1 s; ask for fewer") as error:
            await on.client.completions.create(model="words", prompt=PROMPT, max_tokens=50)
        assert error.value.status_code == 504
        await until(lambda: not busy(on.peers[0]))


async def test_a_lost_line_to_the_own_peer_is_opened_again(models: Path) -> None:
    async with live(models, 1) as on:
        first = await on.server._state.door.mesh()
        await first._open_line().close()
        done = await on.client.completions.create(model="words", prompt="w1", max_tokens=1)
        assert done.choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("completions", {"prompt": PROMPT}),
        ("completions", {"prompt": PROMPT, "logprobs": 1}),
        ("chat/completions", {"messages": [{"role": "user", "content": "w1"}]}),
    ],
)
async def test_who_waits_for_a_model_is_told_so(
    models: Path, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    monkeypatch.setattr(waiting, "LOADING_TELL_S", 0.1)

    def slow(*args: Any, **more: Any) -> Any:
        time.sleep(0.5)  # in the compute thread
        return (yield from loading(*args, **more))

    monkeypatch.setattr(models_module, "loading", slow)
    given = {"model": "words", "max_tokens": 2, **body}
    async with live(models, 1) as on:
        url = f"{on.root}/v1/{path}"
        async with on.http.post(url, json={**given, "stream": True}) as answer:
            text = await answer.text()
        async with on.http.post(url, json=given) as answer:
            again = await answer.json()
    assert text.startswith(": loading words on peer0\n\ndata: ")
    last = json.loads(text.split("\n\n")[-3].removeprefix("data: "))
    assert last["x_astra_mesh"][0]["loading_s"] >= 0.5
    assert again["x_astra_mesh"][0]["loading_s"] == 0


async def test_an_error_while_a_model_is_loaded_ends_the_stream_with_a_sentence(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "LOADING_TELL_S", 0.1)

    def fails(*args: Any, **more: Any) -> Any:
        yield
        time.sleep(0.5)  # in the compute thread
        raise BadBundleError("words is damaged: copy it again")

    monkeypatch.setattr(models_module, "loading", fails)
    body = {"model": "words", "prompt": PROMPT, "logprobs": 1, "stream": True}
    async with (
        live(models, 1) as on,
        on.http.post(f"{on.root}/v1/completions", json=body) as answer,
    ):
        text = await answer.text()
    comment, event = text.strip().split("\n\n")
    assert comment == ": loading words on peer0"
    said = json.loads(event.removeprefix("data: "))["error"]["message"]
    assert said == "words is damaged: copy it again"


async def test_who_comes_when_all_places_are_taken_is_told_how_long_that_takes(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same figure as any other client gets, though those let in are only on their way."""
    on_their_way: list[object] = []

    async def stuck(self: Door) -> None:
        on_their_way.append(self)
        await asyncio.Event().wait()

    monkeypatch.setattr(limits, "ANSWERS_AT_ONCE", 1)
    monkeypatch.setattr(limits, "API_REQUESTS", 4)
    async with live(models, 1) as on:
        requests = on.peers[0]._requests
        assert requests is not None
        requests._turns._usual_s = 2.0
        monkeypatch.setattr(Door, "mesh", stuck)
        ask = partial(on.client.completions.create, model="words", prompt=PROMPT)
        asking = [asyncio.create_task(ask()) for _ in range(4)]
        await until(lambda: len(on_their_way) == 4)
        with pytest.raises(openai.RateLimitError, match="try again in 8 s") as caught:
            await ask()
        assert caught.value.response.headers["Retry-After"] == "8"
        for task in asking:
            task.cancel()
        await asyncio.wait(asking)
