"""How much longer plans took, as a whole, than was predicted.

The pace of each peer's work is learned by itself (:mod:`astra_mesh.plan.experience`). What is left
shows in the whole only: a Wi-Fi that several share, a link that is slower under load than when it
was measured. Without it a plan that is slower than one device would be chosen again and again.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from astra_mesh.wire.messages import CodebookId, ModelId, PeerId

UNUSED: Final = 2  # the first answers of a group teach the pace of its peers
LEAST: Final = 3  # answers: one that was held up by something else decides nothing
SEEN: Final = 5
LASTS_S: Final = 600.0  # after that a group that was too slow is tried again
BOUND: Final = 8.0  # times; more is some fault, not the network

Group = frozenset[PeerId]


class Codes(NamedTuple):
    """What is sent in a plan."""

    model: ModelId
    codec: str
    codebook: CodebookId
    bits: int  # per token and block

    @property
    def unsent(self) -> Codes:
        """Of one device alone, whatever it would send to others."""
        return Codes(self.model, "", CodebookId(""), 0)


@dataclass
class _Seen:
    ratios: deque[float] = field(default_factory=lambda: deque(maxlen=SEEN))
    unused: int = UNUSED
    last: float = 0.0


@dataclass
class Drifts:
    """Measured / predicted time, by codes and group; bounded, because peers come and go."""

    limit: int = 1024
    _seen: dict[tuple[Codes, Group], _Seen] = field(default_factory=dict)

    def learn(self, codes: Codes, group: Group, ratio: float, now: float) -> None:
        """One answer, while no other ran: its time / the prediction without any drift."""
        if not (math.isfinite(ratio) and ratio > 0):
            return
        key = (codes if len(group) > 1 else codes.unsent), group
        seen = self._seen.pop(key, None)
        if seen is None or now - seen.last > LASTS_S:
            seen = _Seen()
        self._seen[key] = seen  # the newest is last
        seen.last = now
        if seen.unused:
            seen.unused -= 1
        else:
            seen.ratios.append(min(max(ratio, 1 / BOUND), BOUND))
        while len(self._seen) > self.limit:
            del self._seen[next(iter(self._seen))]

    def known(self, codes: Codes, now: float) -> Mapping[Group, float]:
        """The median ratio of each group that answered often enough lately."""
        found = {}
        for (key, group), seen in self._seen.items():
            fresh = now - seen.last <= LASTS_S
            if key in (codes, codes.unsent) and fresh and len(seen.ratios) >= LEAST:
                found[group] = statistics.median(seen.ratios)
        return found


def drift_of(group: Group, known: Mapping[Group, float]) -> float:
    """What to multiply the prediction for a group by.

    One of several devices that did not answer yet is trusted half as much as the best that did: the
    reason is often none of theirs alone, and going through all groups takes many slow answers.
    """
    if group in known:
        return known[group]
    others = [ratio for other, ratio in known.items() if len(other) > 1]
    return math.sqrt(min(others)) if others and len(group) > 1 else 1.0
