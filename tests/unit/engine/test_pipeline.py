"""The asyncio pipeline gives the reference's bits, in whatever order the codes arrive."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from astra_mesh.engine.compute import ComputeThread
from astra_mesh.engine.exchange import Idle, LocalExchange
from astra_mesh.engine.pipeline import Pipeline
from astra_mesh.engine.reference import decode, pooled, run_plan, run_shards
from astra_mesh.engine.shard import ShardRun
from astra_mesh.families import Model, ModelInput
from astra_mesh.plan.layout import Layout, make_layout
from astra_mesh.quant.codebook import UNLIMITED
from astra_mesh.quant.codecs import CodeArray, Codec, PlainCodec, VectorCodec
from astra_mesh.wire.messages import Sampling
from tests.unit.engine.plans import (
    HISTORIES,
    deep_model,
    input_of,
    random_bounds,
    random_codec,
)
from tests.unit.families.making import KINDS, make_model


class ShuffledExchange:
    """Lets some other tasks run before each step, and hands out what has arrived in any order."""

    def __init__(self, inner: LocalExchange, rng: random.Random) -> None:
        self._inner, self._rng = inner, rng

    async def _dawdle(self) -> None:
        for _ in range(self._rng.randrange(20)):
            await asyncio.sleep(0)

    def stages(self, block: int, busy_s: float) -> Mapping[int, int]:
        return self._inner.stages(block, busy_s)

    async def send_codes(self, block: int, codes: Mapping[int, Sequence[CodeArray]]) -> None:
        await self._dawdle()
        await self._inner.send_codes(block, codes)

    async def receive_codes(
        self, block: int, idle_s: Idle | None = None
    ) -> tuple[int, Sequence[CodeArray]]:
        await self._dawdle()
        waiting = [await self._inner.receive_codes(block), *self._inner.ready_codes(block)]
        self._rng.shuffle(waiting)
        for source, arrays in waiting[1:]:
            self._inner.put(block, source, arrays)
        return waiting[0]

    def ready_codes(self, block: int) -> list[tuple[int, Sequence[CodeArray]]]:
        if self._rng.random() < 0.5:
            return []
        ready = self._inner.ready_codes(block)
        self._rng.shuffle(ready)
        return ready

    async def send_pooled(self, vector: Tensor, weight: float) -> None:
        await self._dawdle()
        await self._inner.send_pooled(vector, weight)

    async def receive_pooled(self, count: int) -> list[tuple[Tensor, float]]:
        return await self._inner.receive_pooled(count)

    def fail(self, error: Exception) -> None:
        self._inner.fail(error)


async def run_mesh(
    model: Model, layout: Layout, codec: Codec, inputs: ModelInput, seed: int, spare: int = 0
) -> tuple[list[ShardRun], list[Tensor | None]]:
    """All shards at once, each with a compute thread of its own; runs and pooled rows."""
    rng = random.Random(seed)
    threads = [ComputeThread() for _ in layout.bounds]
    exchanges = LocalExchange.connect(layout)
    runs = [ShardRun(model, layout, i, codec, inputs, spare) for i in range(len(layout.bounds))]

    async def one(shard: int) -> Tensor | None:
        exchange = ShuffledExchange(exchanges[shard], random.Random(rng.random()))
        pipeline = Pipeline(runs[shard], exchange, threads[shard])
        await pipeline.prefill()
        return await pipeline.pool()

    try:
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(i)) for i in range(len(layout.bounds))]
    finally:
        for thread in threads:
            thread.close()
    return runs, [task.result() for task in tasks]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shards", [1, 4, 7])
@pytest.mark.parametrize("history", HISTORIES)
async def test_mesh_equals_the_reference_bit_for_bit(kind: str, shards: int, history: int) -> None:
    model = deep_model(kind) if history in (1, UNLIMITED) else make_model(kind)
    codec, inputs = random_codec(model, stages=3, history=history), input_of(model, 16)
    rates = random.Random(shards)
    links = [(i, j) for i in range(shards) for j in range(shards)]
    for seed in range(2):
        layout = make_layout(
            model.spec,
            random_bounds(16, shards, seed),
            pooling="last" if model.spec.causal else "class",
            class_token="distributed" if seed else "single",
            stages={link: rates.randint(1, 3) for link in links},
        )
        wanted = run_plan(model, layout, codec, inputs, 6)
        runs, rows = await run_mesh(model, layout, codec, inputs, seed, 6)
        for run, reference in zip(runs, wanted, strict=True):
            assert torch.equal(run.x, reference.x)
        answer = rows.pop(layout.answering())
        assert rows == [None] * (shards - 1)
        assert answer is not None
        assert torch.equal(answer, pooled(wanted))
        if model.spec.causal:
            options = Sampling(max_new_tokens=6, temperature=1.0, seed=seed)
            assert decode(runs, options) == decode(wanted, options)


def any_stages(block: int, sender: int, receiver: int) -> int:
    """A rate that changes from block to block, on each link in its own way."""
    return random.Random(f"{block} {sender} {receiver}").randint(1, 3)


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
@pytest.mark.parametrize("history", HISTORIES)
async def test_rates_that_change_from_block_to_block(
    kind: str, history: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ends hold the same of each token, whatever rates its blocks had."""
    model, inputs = deep_model(kind), input_of(deep_model(kind), 16)
    book = random_codec(model, stages=3, history=history).codebook
    codec = VectorCodec(model, book, "project")
    layout = make_layout(
        model.spec,
        [(0, 3), (3, 8), (8, 11), (11, 16)],
        pooling="last" if model.spec.causal else "class",
        stages=3,
    )

    def stages(self: LocalExchange, block: int, busy_s: float) -> Mapping[int, int]:
        assert busy_s > 0
        me = self._shard
        return {i: any_stages(block, me, i) for i in layout.receivers(me, block)}

    monkeypatch.setattr(LocalExchange, "stages", stages)
    wanted = run_plan(model, layout, codec, inputs, sent=any_stages)
    runs, rows = await run_mesh(model, layout, codec, inputs, 1)
    for run, reference in zip(runs, wanted, strict=True):
        assert torch.equal(run.x, reference.x)
    answer = rows[layout.answering()]
    assert answer is not None
    assert torch.equal(answer, pooled(wanted))
    assert not torch.equal(answer, pooled(run_plan(model, layout, codec, inputs)))


@pytest.mark.parametrize("decoder", ["table", "project"])
@pytest.mark.parametrize("history", HISTORIES)
async def test_the_astra_codec_and_both_decoders_give_the_reference_too(
    decoder: str, history: int
) -> None:
    model, inputs = deep_model("bert"), input_of(deep_model("bert"), 16)
    book = random_codec(model, stages=2, history=history).codebook
    codecs: list[Codec] = [VectorCodec(model, book, decoder)]
    if history == 0:
        codecs.append(random_codec(model, "astra"))
    for codec in codecs:
        layout = make_layout(
            model.spec,
            random_bounds(16, 5, 3),
            pooling="mean",
            first_block=codec.first_block,
            stages=codec.stages,
        )
        wanted = run_plan(model, layout, codec, inputs)
        runs, _ = await run_mesh(model, layout, codec, inputs, 1)
        for run, reference in zip(runs, wanted, strict=True):
            assert torch.equal(run.x, reference.x)


async def test_mean_pooling_over_the_mesh() -> None:
    model = make_model("bert")
    inputs = input_of(model, 16)
    layout = make_layout(model.spec, random_bounds(16, 5, 2), pooling="mean")
    codec = PlainCodec("fp32", model)
    _, rows = await run_mesh(model, layout, codec, inputs, 0)
    answer = rows[layout.answering()]
    assert answer is not None
    assert torch.equal(answer, pooled(run_plan(model, layout, codec, inputs)))


async def test_only_what_is_needed_is_sent() -> None:
    """Codes go to the right only, with the link's own stages, and none for the first block."""
    model = make_model("llama")
    sent: list[tuple[int, int, int]] = []

    class Counting(LocalExchange):
        async def receive_codes(
            self, block: int, idle_s: Idle | None = None
        ) -> tuple[int, Sequence[CodeArray]]:
            source, arrays = await super().receive_codes(block, idle_s)
            sent.append((block, source, len(arrays)))
            return source, arrays

        def ready_codes(self, block: int) -> list[tuple[int, Sequence[CodeArray]]]:
            ready = super().ready_codes(block)
            sent.extend((block, source, len(arrays)) for source, arrays in ready)
            return ready

    rates = {(0, 1): 1, (0, 2): 3, (1, 2): 2}
    layout = make_layout(model.spec, [(0, 4), (4, 8), (8, 12)], pooling="last", stages=rates)
    codec, inputs = random_codec(model, stages=3), input_of(model, 12)
    exchanges = Counting.connect(layout)
    thread = ComputeThread()
    try:
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            for i, exchange in enumerate(exchanges):
                run = ShardRun(model, layout, i, codec, inputs)
                group.create_task(Pipeline(run, exchange, thread).prefill())
    finally:
        thread.close()
    assert sorted(sent) == [(1, 0, 1), (1, 0, 3), (1, 1, 2), (2, 0, 3), (2, 1, 2)]


async def test_cancelling_leaves_no_task_and_a_usable_thread() -> None:
    model = make_model("bert")
    layout = make_layout(model.spec, [(0, 8), (8, 16)], pooling="mean")
    codec, inputs = PlainCodec("fp32", model), input_of(model, 16)
    run = ShardRun(model, layout, 0, codec, inputs)
    thread = ComputeThread()
    pipeline = Pipeline(run, LocalExchange.connect(layout)[0], thread)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await pipeline.prefill()  # the other shard never sends
    assert await thread(lambda: 3) == 3
    thread.close()


def runs_of(*bounds: tuple[int, int]) -> list[ShardRun]:
    """Fresh shards of 16 tokens of a deep GPT-2, with exact codes."""
    model = deep_model("gpt2")
    layout = make_layout(model.spec, bounds, pooling="last")
    codec, inputs = PlainCodec("fp32", model), input_of(model, 16)
    return [ShardRun(model, layout, i, codec, inputs) for i in range(len(bounds))]


async def test_the_thread_has_work_while_the_loop_is_busy_but_not_all_of_it() -> None:
    """It need not wait for the loop between two blocks; other requests wait for two at most."""
    halves, thread = ((0, 8), (8, 16)), ComputeThread()
    sent = run_shards(runs_of(*halves))
    run = runs_of(*halves)[1]
    exchange = LocalExchange.connect(run.layout)[1]
    for block in range(run.layout.first_block, run.layout.blocks):
        exchange.put(block, 0, sent[block, 0][1])
    going, ended, queued = threading.Semaphore(0), threading.Event(), list[object]()
    finish, submit, post, blocks = run.finish, thread.submit, thread.post, list[int]()

    def slowly(block: int) -> None:
        assert going.acquire(timeout=10)
        finish(block)
        blocks.append(block)
        if block == 1:
            ended.set()

    def counted(*work: Any) -> asyncio.Future[Any]:
        queued.append(work)
        return submit(*work)

    def posted(*work: Any) -> None:
        queued.append(work)
        post(*work)

    run.finish = slowly  # type: ignore[method-assign]
    thread.submit = counted  # type: ignore[method-assign,assignment]
    thread.post = posted  # type: ignore[method-assign,assignment]
    prefill = asyncio.ensure_future(Pipeline(run, exchange, thread).prefill())
    async with asyncio.timeout(10):
        while len(queued) < 3:  # the first block, its end with the second, its end with the third
            await asyncio.sleep(0.001)
    beside = submit(blocks.copy)  # a step of another request
    going.release(run.layout.blocks)
    assert ended.wait(10)  # the loop does nothing else
    await prefill
    assert len(blocks) == run.layout.blocks
    assert len(await beside) <= 2
    thread.close()


async def test_a_device_alone_wakes_the_loop_once_and_lets_others_have_their_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (run,), thread, woken = runs_of((0, 16)), ComputeThread(), list[str]()
    order: list[str] = []
    local, finish = ShardRun.attend_local, ShardRun.finish

    def attend(self: ShardRun, block: int) -> None:
        local(self, block)
        order.append(f"local {block}")
        if block == 1:
            thread.post(lambda: order.append("other"))

    def end(self: ShardRun, block: int) -> None:
        finish(self, block)
        order.append(f"done {block}")

    monkeypatch.setattr(ShardRun, "attend_local", attend)
    monkeypatch.setattr(ShardRun, "finish", end)

    def settle(done: asyncio.Future[None], error: Exception | None) -> None:
        woken.append("the end")
        done.set_result(None)

    def tell(*_: object) -> None:
        woken.append("a step")

    monkeypatch.setattr("astra_mesh.engine.pipeline._settle", settle)
    monkeypatch.setattr("astra_mesh.engine.compute._tell", tell)
    pipeline = Pipeline(run, LocalExchange.connect(run.layout)[0], thread)
    try:
        await pipeline.prefill()
    finally:
        thread.close()
    blocks = [f"{what} {block}" for block in range(run.layout.blocks) for what in ("local", "done")]
    assert [one for one in order if one != "other"] == blocks
    assert order.index("other") == order.index("done 1") + 1
    assert woken == ["the end"]
    monkeypatch.undo()
    (wanted,) = run_plan(run.model, run.layout, run.codec, run.inputs)
    assert torch.equal(run.x, wanted.x)


async def test_a_device_alone_that_fails_or_is_cancelled_stops_at_that_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    thread, begun = ComputeThread(), list[int]()
    local, go = ShardRun.attend_local, threading.Event()

    def attend(self: ShardRun, block: int) -> None:
        begun.append(block)
        if block == 2 and not go.is_set():
            raise ValueError("no")
        if block == 2:
            loop.call_soon_threadsafe(task.cancel)
            time.sleep(0.05)
        local(self, block)

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(ShardRun, "attend_local", attend)
    try:
        (run,) = runs_of((0, 16))
        pipeline = Pipeline(run, LocalExchange.connect(run.layout)[0], thread)
        with pytest.raises(ValueError, match="no"):
            await pipeline.prefill()
        assert begun == [0, 1, 2]
        begun.clear()
        go.set()
        (run,) = runs_of((0, 16))
        pipeline = Pipeline(run, LocalExchange.connect(run.layout)[0], thread)
        task = loop.create_task(pipeline.prefill())
        with pytest.raises(asyncio.CancelledError):
            await task
        await thread(int)
        await thread(int)
        assert begun == [0, 1, 2]
    finally:
        thread.close()


async def test_a_step_that_fails_is_told_and_nothing_is_computed_after_it() -> None:
    (run, _), thread = runs_of((0, 8), (8, 16)), ComputeThread()
    done = list[int]()

    def fail(block: int) -> None:
        done.append(block)
        raise MemoryError("no room")

    run.finish = fail  # type: ignore[method-assign]
    pipeline = Pipeline(run, LocalExchange.connect(run.layout)[0], thread)
    async with asyncio.timeout(10):
        with pytest.raises(MemoryError, match="no room"):
            await pipeline.prefill()
    assert await thread(done.copy) == [0]
    thread.close()


async def test_what_fails_while_codes_are_waited_for_is_told_at_once() -> None:
    (first, run), thread = runs_of((0, 8), (8, 16)), ComputeThread()
    attend = run.attend_local

    def fail(block: int) -> None:
        if block == 2:
            raise MemoryError("no room")
        attend(block)

    run.attend_local = fail  # type: ignore[method-assign]
    exchange = LocalExchange.connect(run.layout)[1]
    with torch.inference_mode():
        for block in range(2):
            codes = first.encode(block)
            first.attend_local(block)
            first.finish(block)
            if block:
                exchange.put(block, 0, codes[1])
    async with asyncio.timeout(10):
        with pytest.raises(MemoryError, match="no room"):  # the other never sends block 2
            await Pipeline(run, exchange, thread).prefill()
    thread.close()


async def test_only_time_without_other_work_counts_as_patience() -> None:
    (first, run), thread = runs_of((0, 8), (8, 16)), ComputeThread()
    going, idle, attend = threading.Event(), list[float](), run.attend_local

    def slowly(block: int) -> None:
        if block == 1:
            assert going.wait(10)
        attend(block)

    class Asking(LocalExchange):
        async def receive_codes(
            self, block: int, idle_s: Idle | None = None
        ) -> tuple[int, Sequence[CodeArray]]:
            if block == 1:
                assert idle_s is not None
                await asyncio.sleep(0.1)
                idle.append(idle_s())
                going.set()
                await thread(lambda: None)
                await asyncio.sleep(0.1)
                idle.append(idle_s())
            return await super().receive_codes(block)

    run.attend_local = slowly  # type: ignore[method-assign]
    exchanges, other = Asking.connect(run.layout), ComputeThread()
    async with asyncio.timeout(20):
        await asyncio.gather(
            Pipeline(first, exchanges[0], other).prefill(),
            Pipeline(run, exchanges[1], thread).prefill(),
        )
    busy_s, idle_s = idle
    assert busy_s == 0.0
    assert 0.1 <= idle_s < 5
    for one in (thread, other):
        one.close()


async def test_what_is_no_usual_exception_is_told_too() -> None:
    """Panics of a library, which would end the event loop."""
    (first, run), thread = runs_of((0, 8), (8, 16)), ComputeThread()
    attend = run.attend_remote

    def fail(block: int, source: int, codes: Sequence[CodeArray]) -> None:
        if block == 1:
            raise KeyboardInterrupt("panic")
        attend(block, source, codes)

    run.attend_remote = fail  # type: ignore[method-assign]
    exchanges, other = LocalExchange.connect(run.layout), ComputeThread()
    async with asyncio.timeout(20):
        sending = asyncio.ensure_future(Pipeline(first, exchanges[0], other).prefill())
        with pytest.raises(RuntimeError, match="panic"):
            await Pipeline(run, exchanges[1], thread).prefill()
        await sending
    for one in (thread, other):
        one.close()


async def test_a_cancelled_request_computes_nothing_more() -> None:
    (run,), thread = runs_of((0, 16)), ComputeThread()
    going, began, done = threading.Event(), threading.Event(), list[int]()

    def slowly(block: int) -> None:
        done.append(block)
        began.set()
        assert going.wait(10)

    run.attend_local = slowly  # type: ignore[method-assign]

    def finish(block: int) -> None:
        done.append(block)

    run.finish = finish  # type: ignore[method-assign]
    pipeline = Pipeline(run, LocalExchange.connect(run.layout)[0], thread)
    prefill = asyncio.ensure_future(pipeline.prefill())
    assert await asyncio.to_thread(began.wait, 10)
    prefill.cancel()
    with pytest.raises(asyncio.CancelledError):
        await prefill
    going.set()
    assert await thread(done.copy) == [0]
    thread.close()


@pytest.mark.parametrize("late", [True, False])
async def test_only_time_without_work_is_waiting(late: bool) -> None:
    runs = runs_of((0, 8), (8, 16))
    threads, exchanges = [ComputeThread(), ComputeThread()], LocalExchange.connect(runs[0].layout)
    slow = runs[0 if late else 1]
    finish = slow.finish

    def slowly(block: int) -> None:
        time.sleep(0.1)
        finish(block)

    slow.finish = slowly  # type: ignore[method-assign]
    pipelines = [Pipeline(*one) for one in zip(runs, exchanges, threads, strict=True)]
    async with asyncio.timeout(20):
        await asyncio.gather(*(one.prefill() for one in pipelines))
    assert (pipelines[1].spent.wait_s > 0.05) is late
    assert pipelines[0].spent.wait_s == 0
    for thread in threads:
        thread.close()


async def test_only_shards_with_new_tokens_to_come_keep_keys_and_values() -> None:
    model = make_model("gpt2")
    inputs, codec = input_of(model, 12), random_codec(model, stages=2)
    layout = make_layout(model.spec, [(0, 5), (5, 12)], pooling="last", stages=2)
    wanted = run_plan(model, layout, codec, inputs, 3)
    assert [len(rows) for rows in wanted[1].rows] == [15] * model.spec.num_hidden_layers
    runs = run_plan(model, layout, codec, inputs)
    assert [run.rows for run in runs] == [[], []]
    assert torch.equal(runs[1].x, wanted[1].x)
    assert decode(runs, Sampling(max_new_tokens=1)) == decode(wanted, Sampling(max_new_tokens=1))
    with pytest.raises(ValueError, match="kept no keys"):
        decode(runs, Sampling(max_new_tokens=2))


async def test_computing_happens_in_one_thread_without_gradients() -> None:
    thread = ComputeThread()

    def look() -> tuple[str, bool]:
        return threading.current_thread().name, torch.is_inference_mode_enabled()

    found = {await thread(look) for _ in range(3)}
    assert len(found) == 1
    name, without = found.pop()
    assert name != threading.current_thread().name
    assert without
    with pytest.raises(ZeroDivisionError):
        await thread(divmod, 1, 0)
    thread.close()
