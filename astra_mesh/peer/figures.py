"""What peers tell each other of their links, so that each can show the whole mesh."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from astra_mesh import limits
from astra_mesh.mesh.connect import Address
from astra_mesh.mesh.interfaces import is_loopback
from astra_mesh.wire.messages import LinkInfo, PeerId

_NEWS: Final = 0.25  # a figure that changed less is told with the next that changed more


class LinkFigures:
    """The figures of this peer's links as it told them last, and those that others told."""

    def __init__(self) -> None:
        self.own: list[LinkInfo] = []
        self._others: dict[PeerId, list[LinkInfo]] = {}
        self._places: dict[PeerId, dict[PeerId, Address]] = {}  # that each of them told

    def renew(self, links: Sequence[LinkInfo]) -> bool:
        """Take down the own figures as they are now; whether others should hear of them."""
        now = {one.peer: one for one in links[: limits.LINKS_TOLD]}
        before = {one.peer: one for one in self.own}
        if now.keys() == before.keys() and not any(_differ(now[key], before[key]) for key in now):
            return False
        self.own = [now[key] for key in sorted(now)]
        return True

    def take(self, sender: PeerId, links: Sequence[LinkInfo], host: str = "") -> None:
        """What another peer told; it replaces what it told before.

        Args:
            sender: Who told it.
            links: Of that peer.
            host: Where it is itself: what it reaches on its own machine is there.
        """
        found = [one for one in links if one.peer != sender]
        self._others[sender] = [replace(one, host="", port=0) for one in found]
        self._places[sender] = {one.peer: _seen(one, host) for one in found if one.host}

    def of(self, peer: PeerId) -> list[LinkInfo]:
        """What a peer told last, without addresses; empty if it told nothing."""
        return self._others.get(peer, [])

    def between(self, sender: PeerId, receiver: PeerId) -> LinkInfo:
        """The link from one peer to another as the sender told it; without figures if it did not.

        Both ends time the same round trip: it is the receiver's where only that one is told.
        """
        told = self._told(sender, receiver)
        if told.round_trip_s is None:
            told = replace(told, round_trip_s=self._told(receiver, sender).round_trip_s)
        return told

    def _told(self, peer: PeerId, other: PeerId) -> LinkInfo:
        links = self._others.get(peer, [])
        return next((one for one in links if one.peer == other), LinkInfo(other))

    def places(self) -> dict[PeerId, Address]:
        """Where each peer that others tell of can be dialled."""
        return {peer: place for told in self._places.values() for peer, place in told.items()}

    def forget(self, peer: PeerId) -> None:
        """A peer is gone."""
        self._others.pop(peer, None)
        self._places.pop(peer, None)


def _seen(one: LinkInfo, host: str) -> Address:
    return (host if is_loopback(one.host) and host else one.host), one.port


def _differ(one: LinkInfo, other: LinkInfo) -> bool:
    if (one.host, one.port) != (other.host, other.port):
        return True
    pairs = ((one.round_trip_s, other.round_trip_s), (one.send_bps, other.send_bps))
    return any(_differs(now, before) for now, before in pairs)


def _differs(now: float | None, before: float | None) -> bool:
    if now is None or before is None:
        return now is not before
    return abs(now - before) > _NEWS * before
