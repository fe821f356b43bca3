"""What finished requests teach about peers: how much longer each takes than it measured itself.

A peer measures itself once, when it loads a model. Heat, other programs, a quota and what the model
of costs leaves out make it slower (or faster) than that; planning with what was seen keeps the
shards balanced. Whoever was seen to be slow gets no more tokens, so nothing more is seen of it:
what is further from its own figures than measurements differ fades, until it is tried again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from astra_mesh.wire.messages import ModelId, PeerId

LEARNING: Final = 0.5  # weight of the last request, in logarithms
LEAST_S: Final = 0.002  # predicted or measured: less says nothing
BOUND: Final = 8.0  # times; what claims more is not believed
KEPT: Final = 1.5  # times, or less by as much: what measurements and the model of costs leave out
FADES_S: Final = 60.0  # after which half of what is beyond that, in logarithms, is forgotten


class Effort(NamedTuple):
    """Seconds of one shard's work: own tokens, encoding them, attending those of others, and all
    that is no arithmetic (messages, and turns of the compute thread)."""

    compute_s: float = 0.0
    encode_s: float = 0.0
    decode_s: float = 0.0
    other_s: float = 0.0


class Pace(NamedTuple):
    """Factors on the predicted seconds of each part of :class:`Effort`."""

    compute: float = 1.0
    encode: float = 1.0
    decode: float = 1.0
    other: float = 1.0


AS_MEASURED: Final = Pace()


class Conditions(NamedTuple):
    """What a pace holds for: peers that work side by side may share processors and memory."""

    model: ModelId
    alone: bool


class _Seen(NamedTuple):
    pace: Pace
    at: float  # when it was seen


@dataclass
class Experience:
    """Paces by peer and conditions; bounded, because peers come and go."""

    limit: int = 1024
    _paces: dict[tuple[PeerId, Conditions], _Seen] = field(default_factory=dict)

    def pace(self, peer: PeerId, conditions: Conditions, now: float = 0.0) -> Pace:
        """As learned, less what faded until ``now``, or as the peer measured itself."""
        seen = self._paces.get((peer, conditions))
        if seen is None:
            return AS_MEASURED
        return Pace(*(_faded(factor, now - seen.at) for factor in seen.pace))

    def forget(self, peer: PeerId, model: ModelId) -> None:
        """A peer measured itself anew: what was learned beside the old figures holds no more."""
        for alone in (False, True):
            self._paces.pop((peer, Conditions(model, alone)), None)

    def learn(
        self,
        peer: PeerId,
        conditions: Conditions,
        predicted: Effort,
        actual: Effort,
        now: float = 0.0,
    ) -> None:
        """One finished request; ``predicted`` with the pace that was known then."""
        before = self.pace(peer, conditions, now)
        self._paces.pop((peer, conditions), None)
        pace = Pace(*_learned(before, predicted, actual))
        self._paces[peer, conditions] = _Seen(pace, now)  # the newest is last
        while len(self._paces) > self.limit:
            del self._paces[next(iter(self._paces))]

    def move(self, before: PeerId, now: PeerId) -> None:
        """What was learned of one peer holds for another one: it came back as somebody new."""
        for peer, conditions in [key for key in self._paces if key[0] == before]:
            self._paces[now, conditions] = self._paces.pop((peer, conditions))


def _faded(factor: float, age_s: float) -> float:
    kept = min(max(factor, 1 / KEPT), KEPT)
    left = 0.5 ** (max(age_s, 0.0) / FADES_S)
    return kept * math.pow(factor / kept, left)


def _learned(
    before: Sequence[float], predicted: Sequence[float], actual: Sequence[float]
) -> list[float]:
    found = []
    for factor, thought, took in zip(before, predicted, actual, strict=True):
        tells = min(thought, took) >= LEAST_S and math.isfinite(took)
        other = factor * (took / thought) ** LEARNING if tells else factor
        found.append(min(max(other, 1 / BOUND), BOUND))
    return found
