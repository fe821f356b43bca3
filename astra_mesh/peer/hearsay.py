"""Peers that others tell of: whoever is linked with a common peer is dialled, without multicast."""

from __future__ import annotations

from collections.abc import Mapping

from astra_mesh.mesh.connect import Address
from astra_mesh.mesh.link import Link
from astra_mesh.mesh.membership import Membership
from astra_mesh.wire.messages import PeerId


class Hearsay:
    """Candidates that others told of, as long as somebody does. What a peer announces by itself
    counts more.
    """

    def __init__(self, membership: Membership[Link]) -> None:
        self._membership = membership
        self._followed: set[PeerId] = set()

    def follow(self, places: Mapping[PeerId, Address], now: float) -> None:
        """Dial those that are told of, and no more those that are not any more.

        Args:
            places: Where each can be dialled, by what all others tell now.
            now: The time.
        """
        for peer in self._followed - places.keys():
            self._membership.gone(peer, now)
        self._followed &= places.keys()
        for peer, address in places.items():
            if peer != self._membership.own and not self._membership.addresses(peer):
                self._membership.found(peer, (address,), now)
                self._followed.add(peer)

    def announced(self, peer: PeerId) -> None:
        """A peer speaks for itself from now on."""
        self._followed.discard(peer)
