"""What peers tell each other of their links, so that each can show the whole mesh."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from astra_mesh import limits
from astra_mesh.wire.messages import LinkInfo, PeerId

_NEWS: Final = 0.25  # a figure that changed less is told with the next that changed more


class LinkFigures:
    """The figures of this peer's links as it told them last, and those that others told."""

    def __init__(self) -> None:
        self.own: list[LinkInfo] = []
        self._others: dict[PeerId, list[LinkInfo]] = {}

    def renew(self, links: Sequence[LinkInfo]) -> bool:
        """Take down the own figures as they are now; whether others should hear of them."""
        now = {one.peer: one for one in links[: limits.LINKS_TOLD]}
        before = {one.peer: one for one in self.own}
        if now.keys() == before.keys() and not any(_differ(now[key], before[key]) for key in now):
            return False
        self.own = [now[key] for key in sorted(now)]
        return True

    def take(self, sender: PeerId, links: Sequence[LinkInfo]) -> None:
        """What another peer told; it replaces what it told before."""
        self._others[sender] = [one for one in links if one.peer != sender]

    def of(self, peer: PeerId) -> list[LinkInfo]:
        """What a peer told last; empty if it told nothing."""
        return self._others.get(peer, [])

    def forget(self, peer: PeerId) -> None:
        """A peer is gone."""
        self._others.pop(peer, None)


def _differ(one: LinkInfo, other: LinkInfo) -> bool:
    pairs = ((one.round_trip_s, other.round_trip_s), (one.send_bps, other.send_bps))
    return any(_differs(now, before) for now, before in pairs)


def _differs(now: float | None, before: float | None) -> bool:
    if now is None or before is None:
        return now is not before
    return abs(now - before) > _NEWS * before
