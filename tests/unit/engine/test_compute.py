"""The compute thread: order, results, what cancelled and closed means, and that nothing is held."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator

import pytest
import torch

from astra_mesh.engine.compute import ComputeThread

GRACE_S = 5.0


@pytest.fixture
def compute() -> Iterator[ComputeThread]:
    compute = ComputeThread()
    yield compute
    compute.close()


async def until_ended(thread: threading.Thread | None) -> None:
    assert thread is not None
    deadline = time.monotonic() + GRACE_S
    while thread.is_alive() and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    assert not thread.is_alive()


async def test_one_after_the_other_in_one_thread_without_gradients(compute: ComputeThread) -> None:
    seen: list[tuple[int, int, bool]] = []

    def note(number: int, *, double: bool) -> int:
        seen.append((number, threading.get_ident(), torch.is_inference_mode_enabled()))
        return number * (2 if double else 1)

    first = compute.submit(note, 0, double=True)
    compute.post(lambda: seen.append((1, threading.get_ident(), True)))
    assert await compute(note, 2, double=True) == 4
    assert await first == 0
    assert [number for number, _, _ in seen] == [0, 1, 2]
    assert len({thread for _, thread, _ in seen}) == 1
    assert threading.get_ident() not in {thread for _, thread, _ in seen}
    assert all(without for _, _, without in seen)


@pytest.mark.parametrize("error", [ValueError("no"), SystemError("no"), asyncio.CancelledError()])
async def test_what_is_raised_is_raised_here(compute: ComputeThread, error: BaseException) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        await compute(fail)
    assert await compute(int) == 0  # it goes on


async def test_no_future_holds_a_stop_iteration(compute: ComputeThread) -> None:
    with pytest.raises(RuntimeError, match="the function stopped"):
        await compute(next, iter(()))


async def test_work_that_nobody_waits_for_and_that_fails_is_logged(
    compute: ComputeThread, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ValueError("no")

    compute.post(fail)
    assert await compute(int) == 0
    assert "work that nobody waits for failed" in caplog.text


async def test_what_was_cancelled_before_it_began_does_not_run(compute: ComputeThread) -> None:
    go, ran = threading.Event(), list[str]()

    def slow() -> None:
        ran.append("begun")
        assert go.wait(GRACE_S)
        ran.append("ended")

    running, queued = compute.submit(slow), compute.submit(ran.append, "queued")
    while not ran:
        await asyncio.sleep(0.001)
    running.cancel()
    queued.cancel()
    go.set()
    await compute(int)
    assert ran == ["begun", "ended"]


async def test_closing_waits_for_what_runs_and_drops_the_rest() -> None:
    compute, ran = ComputeThread(), list[str]()

    def slow() -> str:
        ran.append("begun")
        time.sleep(0.05)
        ran.append("ended")
        return "result"

    running, queued = compute.submit(slow), compute.submit(ran.append, "queued")
    while not ran:
        await asyncio.sleep(0.001)
    compute.close()
    assert ran == ["begun", "ended"]
    assert compute.closed
    assert await running == "result"
    with pytest.raises(asyncio.CancelledError):
        await queued
    with pytest.raises(RuntimeError, match="closed"):
        compute.submit(int)
    compute.close()  # may be called again


async def test_nothing_of_a_call_is_held_once_it_is_over(compute: ComputeThread) -> None:
    class Held:
        """Can be referred to weakly."""

    given = Held()
    there = weakref.ref(given)
    result = compute.submit(lambda one: one, given)
    del given
    assert isinstance(await result, Held)
    del result
    await compute(int)  # the loop is done with it, too
    gc.collect()
    assert there() is None


async def test_one_that_is_forgotten_ends() -> None:
    compute = ComputeThread()
    await compute(int)
    thread = compute._thread
    del compute
    gc.collect()
    await until_ended(thread)


def test_a_loop_that_is_closed_hears_nothing() -> None:
    compute, go = ComputeThread(), threading.Event()

    async def ask() -> None:
        compute.submit(go.wait, GRACE_S)

    asyncio.run(ask())
    go.set()
    compute.close()


FORGETFUL = """
import asyncio, time
from astra_mesh.engine.compute import ComputeThread

compute = ComputeThread()

async def ask():
    compute.submit(lambda: (time.sleep(0.3), print("ended", flush=True)))

asyncio.run(ask())
"""


def test_a_program_that_does_not_close_it_ends_after_the_work() -> None:
    argv = [sys.executable, "-c", FORGETFUL]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("ended\n", "")
