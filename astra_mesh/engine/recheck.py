"""A shard of another peer, computed once more: are the codes that came those that it should send?

What others sent to that peer is taken as it came here, so an honest peer is measured by its own
arithmetic only, however far the request went astray before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from astra_mesh.engine.shard import ShardRun
from astra_mesh.families.model import Model, ModelInput
from astra_mesh.plan.layout import Layout
from astra_mesh.quant.codecs import PlainCodec
from astra_mesh.quant.codes import CodeArray
from astra_mesh.quant.judge import Judge, make_judge
from astra_mesh.quant.vector import VectorCodec

Kept = Mapping[tuple[int, int], Sequence[CodeArray]]  # by block and shard


class Deviation(NamedTuple):
    """How far one block's codes, or the pooled vector, are from what they should be."""

    block: int
    mean: float  # :class:`astra_mesh.quant.judge.Judge`, over the tokens
    worst: float  # token
    pooled: bool = False  # the vector after the last block, not the codes before this one


class Recheck:
    """One shard's part of a finished request.

    Args:
        model, layout, codec, inputs: As the shard had them.
        shard: The one that is checked, at least as many stages of whose codes came here as to any.
        kept: All codes that came here, and the own ones that went to that shard.
        pooled: Its pooled vector (D,) and weight, where one came.
    """

    def __init__(
        self,
        model: Model,
        layout: Layout,
        codec: PlainCodec | VectorCodec,
        inputs: ModelInput,
        shard: int,
        kept: Kept,
        pooled: tuple[Tensor, float] | None = None,
    ) -> None:
        self._layout, self._codec, self._shard = layout, codec, shard
        self._kept, self._pooled = kept, pooled
        last = layout.blocks - 1
        # What is not sent to this peer either, because it needs no codes of the last block.
        unseen = [] if pooled is None else layout.sources(shard, last)
        others = [source for source in unseen if (last, source) not in kept]
        self._runs = {i: ShardRun(model, layout, i, codec, inputs) for i in (shard, *others)}
        self._judge: Judge | None = None

    def blocks(self) -> Iterator[Deviation | None]:
        """Compute block after block; of each whose codes came, what they are like."""
        for block in range(self._layout.blocks):
            yield self._compare(block)
            if block < self._layout.blocks - 1 or self._pooled is not None:
                self._compute(block)
        if self._pooled is not None:
            yield self._compare_pooled(*self._pooled)

    def _compare(self, block: int) -> Deviation | None:
        codes, run = self._kept.get((block, self._shard)), self._runs[self._shard]
        if codes is None:
            return None
        if self._judge is None:
            self._judge = make_judge(self._codec, len(codes), run.known)
        excess = self._judge.excess(block, run.coded, codes)
        return Deviation(block, float(excess.mean()), float(excess.max()))

    def _compute(self, block: int) -> None:
        made = {i: run.encode(block) for i, run in self._runs.items() if i != self._shard}
        for shard, run in self._runs.items():
            run.attend_local(block)
            if block < self._layout.first_block:
                continue
            for source in self._layout.sources(shard, block):
                codes = self._kept.get((block, source))
                if codes is None:
                    codes = made[source][shard]
                run.attend_remote(block, source, codes)
        for run in self._runs.values():
            run.finish(block)

    def _compare_pooled(self, vector: Tensor, weight: float) -> Deviation:
        own, own_weight = self._runs[self._shard].pooled()
        energy = max(float(own.double().square().sum()), 1e-12)
        error = float((own.double() - vector.double()).square().sum()) / energy
        if abs(own_weight - weight) > 1e-3 * abs(own_weight):
            error = max(error, 1.0)
        return Deviation(self._layout.blocks - 1, error, error, pooled=True)
