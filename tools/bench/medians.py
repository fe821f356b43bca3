"""How far a median can be trusted."""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Sequence
from typing import Final

_DRAWS: Final = 10_000


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Within which the median lies in 95 of 100 repetitions (bootstrap; the same each time)."""
    return interval_of_groups([[value] for value in values])


def interval_of_groups(groups: Sequence[Sequence[float]]) -> tuple[float, float]:
    """As :func:`interval` for the median of all values, where those of a group have something in
    common: whole groups are drawn.
    """
    chance = random.Random(0)
    drawn = []
    for _ in range(_DRAWS):
        picked = chance.choices(groups, k=len(groups))
        drawn.append(statistics.median(itertools.chain.from_iterable(picked)))
    drawn.sort()
    return drawn[int(0.025 * _DRAWS)], drawn[int(0.975 * _DRAWS)]
