"""Who holds which tokens of a request, and who needs whose codes. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from astra_mesh.families.spec import ModelSpec, Pooling

ClassToken = Literal["none", "single", "distributed"]


@dataclass(frozen=True)
class Layout:
    """The shards of one request, in token order.

    ``bounds`` are (start, stop) pairs, contiguous from 0; empty shards are allowed. With
    ``distributed`` class tokens every shard works on a copy of position 0 beside its own tokens,
    and position 0 is never sent.
    """

    bounds: tuple[tuple[int, int], ...]
    blocks: int
    causal: bool
    class_token: ClassToken
    pooling: Pooling
    stages: Mapping[tuple[int, int], int]  # (sender, receiver) -> stages of the code
    first_block: int  # the first block whose input is sent

    def __post_init__(self) -> None:
        """ValueError unless the shards tile the tokens."""
        at = 0
        for start, stop in self.bounds:
            if start != at or stop < start:
                raise ValueError(f"shards {list(self.bounds)} are not contiguous from 0")
            at = stop
        if at == 0:
            raise ValueError("a request without tokens")

    @property
    def tokens(self) -> int:
        """T, class token included."""
        return self.bounds[-1][1]

    @property
    def distributed(self) -> bool:
        """Whether each shard has its own class token."""
        return self.class_token == "distributed"

    def sent(self, shard: int) -> range:
        """Positions whose codes the shard sends."""
        start, stop = self.bounds[shard]
        return range(max(start, 1) if self.distributed else start, stop)

    def copies_class(self, shard: int) -> bool:
        """Whether the shard holds a copy of position 0 that is not in its bounds."""
        return self.distributed and self.bounds[shard][0] > 0 and self.holds(shard)

    def holds(self, shard: int) -> bool:
        """Whether the shard has tokens at all."""
        start, stop = self.bounds[shard]
        return stop > start

    def local_rows(self, shard: int) -> int:
        """Rows that the shard computes."""
        start, stop = self.bounds[shard]
        return stop - start + int(self.copies_class(shard))

    def wanted(self, shard: int) -> range:
        """Local rows whose output of the last block is needed."""
        rows = self.local_rows(shard)
        if self.pooling in ("mean", "all"):
            return range(rows)
        if self.pooling == "last":
            return (
                range(rows - 1, rows) if self.bounds[shard][1] == self.tokens and rows else range(0)
            )
        return range(1) if rows and (self.distributed or self.bounds[shard][0] == 0) else range(0)

    def sources(self, shard: int, block: int) -> tuple[int, ...]:
        """Shards whose codes this one needs to finish ``block``, in token order."""
        return self._sources[block == self.blocks - 1][shard]

    def receivers(self, shard: int, block: int) -> tuple[int, ...]:
        """Shards that need this one's codes of ``block``."""
        return () if block < self.first_block else self._receivers[block == self.blocks - 1][shard]

    @cached_property
    def _sources(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """Per shard, for all blocks but the last and for the last."""
        senders = [i for i in range(len(self.bounds)) if len(self.sent(i))]

        def of(shard: int, last: bool) -> tuple[int, ...]:
            if not self.holds(shard) or (last and not self.wanted(shard)):
                return ()
            return tuple(i for i in senders if i < shard or (i > shard and not self.causal))

        return tuple(
            tuple(of(shard, last) for shard in range(len(self.bounds))) for last in (False, True)
        )

    @cached_property
    def _receivers(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """As :attr:`_sources`, the other way round."""
        shards = range(len(self.bounds))
        return tuple(
            tuple(tuple(i for i in shards if shard in sources[i]) for shard in shards)
            for sources in self._sources
        )

    def answering(self) -> int:
        """The shard of the last token."""
        return max(i for i in range(len(self.bounds)) if self.holds(i))


def make_layout(
    spec: ModelSpec,
    bounds: Sequence[tuple[int, int]],
    *,
    pooling: Pooling,
    first_block: int = 1,
    class_token: ClassToken | None = None,
    stages: int | Mapping[tuple[int, int], int] = 1,
) -> Layout:
    """A layout for a model; the class token is ``single`` unless given, ``none`` without one."""
    if not spec.has_class_token:
        class_token = "none"
    count = len(bounds)
    if isinstance(stages, int):
        stages = {(i, j): stages for i in range(count) for j in range(count) if i != j}
    return Layout(
        tuple(bounds),
        spec.num_hidden_layers,
        spec.causal,
        class_token or "single",
        pooling,
        stages,
        first_block,
    )
