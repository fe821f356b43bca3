"""The block pipeline of one shard (DESIGN section 5): encode and send first, then compute."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from torch import Tensor

from astra_mesh.engine.compute import ComputeThread
from astra_mesh.engine.exchange import Exchange
from astra_mesh.engine.shard import ShardRun
from astra_mesh.engine.timeline import Mark, Timeline
from astra_mesh.quant.codes import CodeArray


@dataclass
class Spent:
    """Seconds that one shard spent, and on what."""

    compute_s: float = 0.0
    encode_s: float = 0.0
    decode_s: float = 0.0
    wait_s: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    @property
    def worked_s(self) -> float:
        """All but waiting."""
        return self.compute_s + self.encode_s + self.decode_s

    @property
    def total_s(self) -> float:
        """Since the start."""
        return time.perf_counter() - self.started


class Step(NamedTuple):
    """Work for the compute thread, and which figure of :class:`Spent` it counts for."""

    kind: str
    run: Callable[[], object]
    mark: Mark
    block: int
    part: int = -1  # the shard that a remote part came from
    came: float = 0.0  # when that was at hand; 0: nothing was waited for


class Pipeline:
    """Drives a :class:`ShardRun` through all blocks over an :class:`Exchange`.

    The compute thread has work queued for it up to the end of a block and the start of the next
    one, as far as that needs nothing from the network: between blocks it does not wait for the
    event loop. More is not queued, so that other requests have their turns.

    Cancelling :meth:`prefill` leaves nothing behind but the run's own tensors.
    """

    def __init__(
        self,
        run: ShardRun,
        exchange: Exchange,
        compute: ComputeThread,
        timeline: Timeline | None = None,
    ) -> None:
        self.run, self.exchange, self.compute = run, exchange, compute
        self.spent = Spent()
        self.timeline = timeline  # None: nothing is noted
        self._worked_s = 0.0
        self._free = math.inf  # since when the compute thread has nothing to do here
        self._queued = self._ended = 0  # pieces of work for it
        # Of blocks whose codes nobody needs: what was queued last, and that of the block before.
        self._last: asyncio.Future[None] | None = None
        self._before: asyncio.Future[None] | None = None
        self._over = False  # nothing more is computed
        self._error: Exception | None = None  # of the compute thread

    async def prefill(self) -> None:
        """All blocks of the own shard; errors of the exchange are raised here."""
        last = self.run.layout.blocks - 1
        try:
            if self._needs_nobody():
                await self._go_through()
            else:
                for block in range(last + 1):
                    await self._block(block)
                await self._submit([self._finish(last)])
        finally:
            self._over = True
            left = [one for one in (self._before, self._last) if one is not None]
            for one in left:
                one.cancel()  # nothing once it is done
            await asyncio.gather(*left, return_exceptions=True)
            self._error = None  # it holds all that the run holds

    def _needs_nobody(self) -> bool:
        """Whether no codes come or go."""
        layout, shard = self.run.layout, self.run.shard
        coded = range(layout.first_block, layout.blocks)
        return not any(layout.sources(shard, b) or layout.receivers(shard, b) for b in coded)

    async def _go_through(self) -> None:
        """All blocks without the network. Each has the next one queued when it is done, so that
        other requests have their turns, and the event loop is woken once."""
        self._last = asyncio.get_running_loop().create_future()
        self.compute.post(self._one, 0, self._last)
        await self._last

    def _one(self, block: int, done: asyncio.Future[None]) -> None:
        run = self.run
        local = Step("compute_s", lambda: run.attend_local(block), Mark.LOCAL, block)
        error: Exception | None = None
        try:
            self._queued += 1
            self._work([local, self._finish(block)])
            if self._over:
                return
            if block + 1 < run.layout.blocks:
                self.compute.post(self._one, block + 1, done)
                return
        except Exception as failed:
            error = failed
        with suppress(RuntimeError):  # the loop is closed
            done.get_loop().call_soon_threadsafe(_settle, done, error)

    async def _block(self, block: int) -> None:
        """Queue one block up to its last attention part; it is finished with the next one. Returns
        when the block before it is done."""
        run, layout = self.run, self.run.layout
        self._before, self._last = self._last, None
        steps = [self._finish(block - 1)] if block else []
        local = Step("compute_s", lambda: run.attend_local(block), Mark.LOCAL, block)
        missing = len(layout.sources(run.shard, block)) if block >= layout.first_block else 0
        ready = self._ready(block) if missing else []
        missing -= len(ready)
        sends = bool(layout.receivers(run.shard, block))
        if sends:  # waits until the codes are made, and so for all of the block before
            await self._encode_and_send(block, steps, [local, *ready])
        else:
            self._queue([*steps, local, *ready], last=not missing)
        while missing:
            ready = self._ready(block) or [await self._receive(block)]
            missing -= len(ready)
            self._queue(ready, last=not missing and not sends)
        if self._before is not None:
            await self._before

    async def _encode_and_send(
        self, block: int, before: Sequence[Step], behind: Sequence[Step]
    ) -> None:
        """The steps ``before``, then encoding; the codes go out while the thread works on."""
        codes: dict[int, Sequence[CodeArray]] = {}

        def encode() -> None:
            stages = self.exchange.stages(block, self._busy_s())
            codes.update(self.run.encode(block, stages))

        encoded = self._submit([*before, Step("encode_s", encode, Mark.ENCODED, block)])
        self._queue(behind)
        await encoded
        await self.exchange.send_codes(block, codes)
        self._note(Mark.SENT, block)

    def _ready(self, block: int) -> list[Step]:
        """Attention to the parts that have come."""
        return [self._attend(block, *part) for part in self.exchange.ready_codes(block)]

    def _busy_s(self) -> float:
        """Seconds of work since the last call."""
        before, self._worked_s = self._worked_s, self.spent.worked_s
        return self._worked_s - before

    def _finish(self, block: int) -> Step:
        return Step("compute_s", lambda: self.run.finish(block), Mark.DONE, block)

    def _attend(self, block: int, source: int, codes: Sequence[CodeArray]) -> Step:
        attend = partial(self.run.attend_remote, block, source, codes)
        return Step("decode_s", attend, Mark.ATTENDED, block, source, time.perf_counter())

    def _note(self, mark: Mark, block: int, part: int = -1) -> None:
        if self.timeline is not None:
            self.timeline.note(mark, block, part)

    async def _receive(self, block: int) -> Step:
        """Attention to the next part; raises at once what fails in the compute thread meanwhile."""
        return self._attend(block, *await self.exchange.receive_codes(block, self._idle_s))

    def _idle_s(self) -> float:
        """For how many seconds the compute thread has had nothing to do here."""
        return time.perf_counter() - self._free if self._ended == self._queued else 0.0

    def _queue(self, steps: Sequence[Step], *, last: bool = False) -> None:
        """Queue steps behind which only the ``last`` ones of a block need the event loop."""
        if last:
            self._last = self._submit(steps)
        else:
            self._queued += 1
            self.compute.post(self._try, steps, asyncio.get_running_loop())

    def _submit(self, steps: Sequence[Step]) -> asyncio.Future[None]:
        """Queue steps for the compute thread; nothing more is done there once one has failed."""
        self._queued += 1
        return self.compute.submit(self._work, steps)

    def _try(self, steps: Sequence[Step], loop: asyncio.AbstractEventLoop) -> None:
        """Work that nobody awaits: what fails ends the wait for codes."""
        try:
            self._work(steps)
        except Exception as error:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._fail, error)

    def _fail(self, error: Exception) -> None:
        if not self._over:
            self.exchange.fail(error)

    def _work(self, steps: Sequence[Step]) -> None:
        try:
            for step in steps:
                if self._over:
                    return
                if self._error is not None:
                    raise self._error
                self._step(step)
        finally:
            self._ended += 1

    def _step(self, step: Step) -> None:
        began = time.perf_counter()
        self.spent.wait_s += max(0.0, step.came - self._free)
        try:
            step.run()
        except BaseException as error:  # also what is no Exception must not reach the event loop
            known = isinstance(error, Exception)
            told = error if known else RuntimeError(f"computing ended: {error!r}")
            assert isinstance(told, Exception)
            if not self._over:
                self._error = told
            raise told from (None if known else error)
        self._free = time.perf_counter()
        took = self._free - began
        setattr(self.spent, step.kind, getattr(self.spent, step.kind) + took)
        self._note(step.mark, step.block, step.part)

    async def pool(self) -> Tensor | None:
        """After :meth:`prefill`: the pooled row (D,) on the answering shard, None on the others."""
        run = self.run
        layout = run.layout
        vector, weight = await self.compute(run.pooled)
        sharing = [i for i in range(len(layout.bounds)) if layout.wanted(i)]
        if run.shard != layout.answering():
            if run.shard in sharing:
                await self.exchange.send_pooled(vector, weight)
            return None
        others = len([i for i in sharing if i != run.shard])
        began = time.perf_counter()
        shares = await self.exchange.receive_pooled(others) if others else []
        self.spent.wait_s += time.perf_counter() - began
        return mean_of([*shares, (vector, weight)])


def _settle(future: asyncio.Future[None], error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)


def mean_of(shares: list[tuple[Tensor, float]]) -> Tensor:
    """Weighted mean (D,) of pooled shares."""
    vector, weight = shares[0]
    for other, more in shares[1:]:
        vector, weight = vector + other, weight + more
    return vector / weight
