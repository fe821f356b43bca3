"""The block pipeline of one shard (DESIGN section 5): encode and send first, then compute."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from torch import Tensor

from astra_mesh.engine.compute import ComputeThread
from astra_mesh.engine.exchange import Exchange
from astra_mesh.engine.shard import ShardRun

P = ParamSpec("P")
R = TypeVar("R")


@dataclass
class Spent:
    """Seconds that one shard spent, and on what."""

    compute_s: float = 0.0
    encode_s: float = 0.0
    decode_s: float = 0.0
    wait_s: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    @property
    def total_s(self) -> float:
        """Since the start."""
        return time.perf_counter() - self.started


class Pipeline:
    """Drives a :class:`ShardRun` through all blocks over an :class:`Exchange`.

    Cancelling :meth:`prefill` leaves nothing behind but the run's own tensors.
    """

    def __init__(self, run: ShardRun, exchange: Exchange, compute: ComputeThread) -> None:
        self.run, self.exchange, self.compute = run, exchange, compute
        self.spent = Spent()

    async def prefill(self) -> None:
        """All blocks of the own shard; errors of the exchange are raised here."""
        for block in range(self.run.layout.blocks):
            await self._block(block)

    async def _block(self, block: int) -> None:
        run, spent = self.run, self.spent
        if run.layout.receivers(run.shard, block):
            codes = await self._timed("encode_s", run.encode, block)
            await self.exchange.send_codes(block, codes)
        await self._timed("compute_s", run.attend_local, block)
        if block >= run.layout.first_block:
            for _ in run.layout.sources(run.shard, block):
                began = time.perf_counter()
                source, arrays = await self.exchange.receive_codes(block)
                spent.wait_s += time.perf_counter() - began
                await self._timed("decode_s", run.attend_remote, block, source, arrays)
        await self._timed("compute_s", run.finish, block)

    async def _timed(self, kind: str, function: Callable[P, R], *a: P.args, **k: P.kwargs) -> R:
        def work() -> R:
            began = time.perf_counter()
            try:
                return function(*a, **k)
            finally:
                setattr(self.spent, kind, getattr(self.spent, kind) + time.perf_counter() - began)

        return await self.compute(work)

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
