"""Steps of several requests go through the model together, and end with their own request."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from astra_mesh.engine.compute import ComputeThread
from astra_mesh.engine.decode import Decoder, step_all
from astra_mesh.engine.reference import run_solo
from astra_mesh.families.model import ModelInput
from astra_mesh.limits import BATCHED_STEPS
from astra_mesh.peer import steps
from astra_mesh.peer.steps import StepQueue
from astra_mesh.wire.messages import Sampling
from tests.unit.families.making import make_input, make_model

MODEL = make_model("gpt2")


@pytest.fixture
def compute() -> Iterator[ComputeThread]:
    thread = ComputeThread()
    yield thread
    thread.close()


def given(number: int) -> ModelInput:
    return make_input(MODEL, tokens=5 + number, seed=number)


def decoder(number: int, tokens: int = 6) -> Decoder:
    run = run_solo(MODEL, given(number), "last", spare=tokens)
    return Decoder(run, Sampling(max_new_tokens=tokens))


async def text(queue: StepQueue, compute: ComputeThread, one: Decoder) -> list[int]:
    found = []
    while (token := await queue.step(compute, one)) is not None:
        found.append(token)
    return found


def alone(number: int, tokens: int = 6) -> list[int]:
    one, found = decoder(number, tokens), []
    while (token := one.step()) is not None:
        found.append(token)
    return found


class Batches:
    """How many steps each call took; holds the first one until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        self.go = threading.Event()
        original = step_all

        def counted(decoders: Any) -> Any:
            self.sizes.append(len(decoders))
            assert self.go.wait(10)
            return original(decoders)

        monkeypatch.setattr(steps, "step_all", counted)


async def test_each_gets_its_own_text(compute: ComputeThread) -> None:
    queue = StepQueue()
    found = await asyncio.gather(*(text(queue, compute, decoder(i, 3 + i)) for i in range(5)))
    assert found == [alone(i, 3 + i) for i in range(5)]


async def test_steps_that_wait_go_together(
    compute: ComputeThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, queue = Batches(monkeypatch), StepQueue()
    tasks = [asyncio.create_task(queue.step(compute, decoder(i))) for i in range(4)]
    await asyncio.sleep(0.05)
    batches.go.set()
    tokens = await asyncio.gather(*tasks)
    assert batches.sizes == [1, 3]
    assert tokens == [alone(i)[0] for i in range(4)]


async def test_a_batch_is_bounded(compute: ComputeThread, monkeypatch: pytest.MonkeyPatch) -> None:
    batches, queue = Batches(monkeypatch), StepQueue()
    many = BATCHED_STEPS + 3
    tasks = [asyncio.create_task(queue.step(compute, decoder(i % 5))) for i in range(many)]
    await asyncio.sleep(0.05)
    batches.go.set()
    await asyncio.gather(*tasks)
    assert batches.sizes == [1, BATCHED_STEPS, 2]


@pytest.mark.parametrize("cancelled", [0, 2])
async def test_a_cancelled_step_leaves_the_others_alone(
    compute: ComputeThread, monkeypatch: pytest.MonkeyPatch, cancelled: int
) -> None:
    """0 is computed already, 2 still waits."""
    batches, queue = Batches(monkeypatch), StepQueue()
    tasks = [asyncio.create_task(queue.step(compute, decoder(i))) for i in range(4)]
    await asyncio.sleep(0.05)
    tasks[cancelled].cancel()
    await asyncio.sleep(0)
    batches.go.set()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(found.pop(cancelled), asyncio.CancelledError)
    assert found == [alone(i)[0] for i in range(4) if i != cancelled]


async def test_whoever_computed_for_the_others_is_cancelled(
    compute: ComputeThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, queue = Batches(monkeypatch), StepQueue()
    first = asyncio.create_task(queue.step(compute, decoder(0)))
    await asyncio.sleep(0.05)
    others = [asyncio.create_task(queue.step(compute, decoder(i))) for i in (1, 2, 3)]
    await asyncio.sleep(0.05)
    batches.go.set()
    await first
    batches.go.clear()
    while len(batches.sizes) < 2:
        await asyncio.sleep(0.01)
    others[0].cancel()  # it had taken the steps of the other two with it
    await asyncio.sleep(0)
    batches.go.set()
    assert await asyncio.gather(*others[1:]) == [alone(2)[0], alone(3)[0]]


async def test_an_error_reaches_who_waits_and_the_next_batch_runs(
    compute: ComputeThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, original = StepQueue(), step_all

    def fails(decoders: Any) -> Any:
        raise MemoryError("no room")

    monkeypatch.setattr(steps, "step_all", fails)
    with pytest.raises(MemoryError, match="no room"):
        await queue.step(compute, decoder(0))
    monkeypatch.setattr(steps, "step_all", original)
    assert await queue.step(compute, decoder(1)) == alone(1)[0]
