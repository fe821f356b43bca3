"""How far a median can be trusted."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from typing import Final

_DRAWS: Final = 10_000


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Within which the median lies in 95 of 100 repetitions (bootstrap; the same each time)."""
    chance = random.Random(0)
    drawn = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(_DRAWS))
    return drawn[int(0.025 * _DRAWS)], drawn[int(0.975 * _DRAWS)]
