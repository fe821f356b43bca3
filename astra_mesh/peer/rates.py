"""Rates that follow the links while a request runs: fewer stages where codes would come too late.

The plan's rate is the most that a link carries. Before each block the sender asks when its codes
would be there: what is on its way already goes first, and the link carries no more than was
measured, nor than what is on its way shows. They are in time if they are there when the plan
needs them (its predicted time, evenly over the blocks), or while one more block is computed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from astra_mesh import limits
from astra_mesh.mesh.probe import Backlog

_ROOM: Final = 0.6  # of the time that may be used before more is sent again ...
_CALM_BLOCKS: Final = 2  # ... in so many blocks, twice as many after each time it was too much
_RECOVERY: Final = 1.15  # per block without a backlog: how much more a link is thought to carry


@dataclass
class LinkRate:
    """The stages of one directed link, from block to block.

    Down at once and as far as it takes, up by one step after some calm blocks, and after more of
    them each time that was too much: a link that is almost good enough does not go up and down.

    Args:
        sizes: Bytes of one block's codes by number of stages, the plan's the largest.
    """

    sizes: Mapping[int, int]
    used: list[tuple[int, int]] = field(default_factory=list)  # block, and stages from it on
    _bps: float = math.inf  # that the link was seen to carry at most
    _calm: int = 0
    _patience: int = _CALM_BLOCKS
    _rose: bool = False  # the last change was upwards

    @property
    def planned(self) -> int:
        """Stages of the plan."""
        return max(self.sizes)

    @property
    def stages(self) -> int:
        """Of the last block."""
        return self.used[-1][1] if self.used else self.planned

    def choose(self, block: int, allowed_s: float, backlog: Backlog) -> int:
        """The stages of a block's codes, which have ``allowed_s`` to arrive."""
        if backlog.bps < self._bps:
            self._bps = backlog.bps
        elif not backlog.size:
            self._bps *= _RECOVERY
        bps = min(self._bps, backlog.measured_bps or math.inf)
        best = self._within(allowed_s * bps / 8 - backlog.size)
        roomy = self._within(_ROOM * allowed_s * bps / 8 - backlog.size)
        self._calm = self._calm + 1 if roomy > self.stages else 0
        if best < self.stages:
            self._patience *= 2 if self._rose else 1
            self._use(block, best)
        elif self._calm >= self._patience and len(self.used) < limits.RATE_CHANGES:
            self._use(block, min(one for one in self.sizes if one > self.stages))
        return self.stages

    def _within(self, size: float) -> int:
        """The most stages in so many bytes; the fewest there are if none fit."""
        return max((one for one in self.sizes if self.sizes[one] <= size), default=min(self.sizes))

    def _use(self, block: int, stages: int) -> None:
        self._calm, self._rose = 0, stages > self.stages
        self.used.append((block, stages))


class Pacing:
    """When codes have to be there, by the plan.

    Args:
        block_s: What the plan is predicted to take for one block.
    """

    def __init__(self, block_s: float) -> None:
        self._block_s = block_s
        self._began: tuple[int, float] | None = None  # the first block that was sent, and when

    def allowed_s(self, block: int, now: float, busy_s: float) -> float:
        """Seconds until a block's codes are needed; ``busy_s``: work for the last block here."""
        if self._began is None:
            self._began = block, now
        first, began = self._began
        due = began + (block - first + 1) * self._block_s
        return max(due - now, self._block_s, busy_s, limits.RATE_LEAST_S)
