"""How fast this device is now, beside the figures that it measured of a model.

Heat, other programs and a saving mode make a device slower for minutes or hours. What others learn
of it by requests holds for as long as they ask it, and nobody asks who is slow: so each peer looks
by itself now and then, and tells the others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from msgspec.structs import astuple, replace

from astra_mesh.limits import CONTRADICTED, PULSE_AGAIN_S, PULSE_S, PULSE_SHARE
from astra_mesh.wire.messages import CodebookOffer, Timing

BOUND: Final = 64.0  # times slower, or faster; what says more is an accident


def bounded(pace: float) -> float:
    """A factor on the seconds of all work that can be."""
    return min(max(pace, 1 / BOUND), BOUND)


def differ(pace: float, other: float) -> bool:
    """Whether others should hear of it; measurements of a busy device differ by less."""
    return max(pace, other) > CONTRADICTED * min(pace, other)


def slowed(timing: Timing, pace: float) -> Timing:
    """Figures of a device that takes ``pace`` times as long for everything."""
    return Timing(*(pace * seconds for seconds in astuple(timing)))


def slowed_codes(books: Sequence[CodebookOffer], pace: float) -> list[CodebookOffer]:
    """The same for its codebooks."""

    def times(seconds: list[float]) -> list[float]:
        return [pace * one for one in seconds]

    return [
        replace(
            book,
            encode_token_s=times(book.encode_token_s),
            decode_token_s=times(book.decode_token_s),
            project_token_s=times(book.project_token_s),
        )
        for book in books
    ]


class Feeling(Protocol):
    """A host of models that can look how fast they run."""

    async def feel(self, idle: Callable[[], bool]) -> bool:
        """Whether it is certain of what it found."""


async def follow_pace(
    models: Feeling, idle: Callable[[], bool], wanted: Callable[[], bool]
) -> None:
    """Look every :data:`PULSE_S` while nothing else runs, with a hundredth of one core at most.
    Until cancelled.

    Args:
        models: That are looked at.
        idle: Whether nothing runs; also asked while it looks, and then a request is let first.
        wanted: Whether anybody is there who wants to know.
    """
    wait_s = PULSE_S
    while True:
        await asyncio.sleep(wait_s)
        if not wanted():
            wait_s = PULSE_S
            continue
        before_s = time.process_time()  # of the processor: a device that is held up looks on
        certain = await models.feel(idle)
        cost_s = time.process_time() - before_s
        wait_s = max(PULSE_S if certain else PULSE_AGAIN_S, cost_s / PULSE_SHARE)
