"""The block pipeline of one shard (DESIGN section 5): encode and send first, then compute."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
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


class Pipeline:
    """Drives a :class:`ShardRun` through all blocks over an :class:`Exchange`.

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

    async def prefill(self) -> None:
        """All blocks of the own shard; errors of the exchange are raised here."""
        for block in range(self.run.layout.blocks):
            await self._block(block)
        await self._compute([self._finish(self.run.layout.blocks - 1)])

    async def _block(self, block: int) -> None:
        """One block up to its last attention part; it is finished together with the next one.

        Each wait for the compute thread costs as much as a small block's arithmetic, so steps that
        need not wait for the network go there together.
        """
        run, layout = self.run, self.run.layout
        steps = [self._finish(block - 1)] if block else []
        local = Step("compute_s", lambda: run.attend_local(block), Mark.LOCAL, block)
        coded = block >= layout.first_block
        missing = len(layout.sources(run.shard, block)) if coded else 0
        if layout.receivers(run.shard, block):
            ready = self._ready(block) if missing else []
            await self._encode_and_send(block, steps, [local, *ready])
            missing, steps = missing - len(ready), []
        else:
            steps.append(local)
        while steps or missing:
            ready = self._ready(block) if missing else []
            if missing and not (steps or ready):
                ready = [self._attend(block, *await self._receive(block))]
            await self._compute([*steps, *ready])
            missing, steps = missing - len(ready), []

    async def _encode_and_send(
        self, block: int, before: Sequence[Step], behind: Sequence[Step]
    ) -> None:
        """The steps ``before``, then encoding; the codes go out while the thread works on."""
        codes: dict[int, Sequence[CodeArray]] = {}
        stages = self.exchange.stages(block, self._busy_s())

        def encode() -> None:
            codes.update(self.run.encode(block, stages))

        encoding = Step("encode_s", encode, Mark.ENCODED, block)
        encoded = asyncio.ensure_future(self._compute([*before, encoding]))
        rest = asyncio.ensure_future(self._compute(behind))
        try:
            await encoded
            await self.exchange.send_codes(block, codes)
            self._note(Mark.SENT, block)
            await rest
        finally:
            rest.cancel()  # nothing once it is done
            await asyncio.gather(encoded, rest, return_exceptions=True)

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
        return Step("decode_s", attend, Mark.ATTENDED, block, source)

    def _note(self, mark: Mark, block: int, part: int = -1) -> None:
        if self.timeline is not None:
            self.timeline.note(mark, block, part)

    async def _receive(self, block: int) -> tuple[int, Sequence[CodeArray]]:
        began = time.perf_counter()
        part = await self.exchange.receive_codes(block)
        self.spent.wait_s += time.perf_counter() - began
        return part

    async def _compute(self, steps: Sequence[Step]) -> None:
        def work() -> None:
            for step in steps:
                began = time.perf_counter()
                step.run()
                took = time.perf_counter() - began
                setattr(self.spent, step.kind, getattr(self.spent, step.kind) + took)
                self._note(step.mark, step.block, step.part)

        await self.compute(work)

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


def mean_of(shares: list[tuple[Tensor, float]]) -> Tensor:
    """Weighted mean (D,) of pooled shares."""
    vector, weight = shares[0]
    for other, more in shares[1:]:
        vector, weight = vector + other, weight + more
    return vector / weight
