"""Who should be dialled now, and which of two links stays: decisions without I/O and clock.

Of two peers the one with the lower id dials at once; the other waits a moment, and dials only if
no link exists by then (multicast may reach it alone). Typed addresses are always dialled. Failures
back off with jitter; a new announcement ends the wait.
"""

from __future__ import annotations

import math
import random
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from astra_mesh import limits
from astra_mesh.mesh.connect import Address
from astra_mesh.wire.messages import PeerId

_SHORT_S = 2.0  # a link that ended sooner counts as a failure: no dialling in a tight loop

Link = TypeVar("Link", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Candidate:
    """Somebody to dial.

    Attributes:
        key: Names the candidate in calls to :class:`Membership`.
        addresses: To try, best first.
        expected: Who must answer; None for a typed address.
        brief: Whether to give up soon and try again: it was linked not long ago.
    """

    key: str
    addresses: tuple[Address, ...]
    expected: PeerId | None
    brief: bool = False


@dataclass(slots=True)
class _Entry:
    key: str
    addresses: tuple[Address, ...]
    typed: bool
    peer: PeerId | None  # of a typed address: who answered last
    due: float  # earliest next dial
    failures: int = 0
    dialling: bool = False
    dialled: float = -math.inf  # when the last dial began
    missed: float = -math.inf  # when it was lost without a goodbye, after a link that lasted
    lost: float = -math.inf  # when it was lost without a goodbye

    def candidate(self, now: float) -> Candidate:
        """The first address changes with each failure: one of them may lead elsewhere."""
        turn = self.failures % len(self.addresses)
        addresses = self.addresses[turn:] + self.addresses[:turn]
        brief = self.is_missed(now) and self.failures % 3 != 2
        return Candidate(self.key, addresses, None if self.typed else self.peer, brief)

    def is_missed(self, now: float) -> bool:
        """Whether it may be back any moment."""
        return now - self.missed < limits.KNOWN_S


@dataclass(slots=True)
class _Opened(Generic[Link]):
    link: Link
    dialled: bool
    at: float
    silent: bool = False


@dataclass(slots=True)
class Membership(Generic[Link]):
    """Candidates and links of one peer.

    Args:
        own: Id of this peer.
        random: Source of the jitter.
    """

    own: PeerId
    random: random.Random = field(default_factory=random.Random)
    _entries: dict[str, _Entry] = field(default_factory=dict)
    _links: dict[PeerId, list[_Opened[Link]]] = field(default_factory=dict)

    # --- candidates -------------------------------------------------------------------------------

    def typed(self, host: str, port: int, now: float) -> None:
        """Dial this address, for ever."""
        key = f"{host}:{port}"
        self._entries.setdefault(key, _Entry(key, ((host, port),), True, None, now))

    def untyped(self, host: str, port: int) -> None:
        """Dial this address no more; its link, if any, goes its own way."""
        self._entries.pop(f"{host}:{port}", None)

    def found(self, peer: PeerId, addresses: Iterable[Address], now: float) -> None:
        """A peer announced itself (again): dial it soon, whatever failed before."""
        places = tuple(addresses)[: limits.DIAL_ADDRESSES]
        if peer == self.own or not places:
            return
        entry = self._entries.get(peer)
        if entry is None:
            if len(self._entries) >= limits.CANDIDATES:
                return
            entry = self._entries[peer] = _Entry(peer, places, False, peer, math.inf)
        entry.addresses = places
        entry.failures = 0
        patience = 0.0 if self.own < peer else limits.DIAL_PATIENCE_S
        soon = max(now + patience, entry.dialled + limits.REDIAL_GAP_S)
        entry.due = min(entry.due, soon)

    def retry(self, now: float) -> None:
        """Something changed that failures may have come from: dial all again, typed ones too."""
        for entry in self._entries.values():
            entry.failures = 0
            entry.due = min(entry.due, max(now, entry.dialled + limits.REDIAL_GAP_S))

    def addresses(self, peer: PeerId) -> tuple[Address, ...]:
        """Where a peer said that it is; empty if it announced nothing."""
        entry = self._entries.get(peer)
        return entry.addresses if entry is not None else ()

    def gone(self, peer: PeerId, now: float) -> None:
        """A peer withdrew its announcement, or it ran out; its links, if any, go their own way.

        One that is missed is dialled on: perhaps only its network is away.
        """
        entry = self._entries.get(peer)
        if entry is not None and not entry.is_missed(now):
            del self._entries[peer]

    def due(self, now: float) -> list[Candidate]:
        """Whom to dial now. Each call of :meth:`opened` or :meth:`failed` ends the dial of one."""
        result = []
        for entry in self._entries.values():
            if self._wants(entry) and entry.due <= now:
                entry.dialling = True
                entry.dialled = now
                result.append(entry.candidate(now))
        return result

    def next_due(self) -> float:
        """When :meth:`due` has something to say, if nothing happens before; ``inf``: never."""
        return min((e.due for e in self._entries.values() if self._wants(e)), default=math.inf)

    def failed(self, key: str, now: float, peer: PeerId | None = None) -> None:
        """The dial of a candidate brought no link (``peer``: but who answered is known)."""
        entry = self._entries.get(key)
        if entry is None:
            return
        entry.dialling = False
        if entry.typed and peer is not None:
            entry.peer = peer
        self._back_off(entry, now)

    def _wants(self, entry: _Entry) -> bool:
        if entry.dialling or entry.peer == self.own:
            return False
        return entry.peer is None or self.link(entry.peer) is None

    def _back_off(self, entry: _Entry, now: float) -> None:
        cap = limits.BACKOFF_KNOWN_S if entry.is_missed(now) else limits.BACKOFF_CAP_S
        delay = min(cap, limits.BACKOFF_FIRST_S * 2 ** min(entry.failures, 10))
        entry.failures += 1
        entry.due = now + delay * self.random.uniform(0.5, 1.0)

    # --- links ------------------------------------------------------------------------------------

    def opened(
        self, link: Link, peer: PeerId, *, dialled: bool, now: float, key: str | None = None
    ) -> list[Link]:
        """A link is open; the result are links to refuse as duplicates, perhaps this one.

        Args:
            link: Any handle.
            peer: Who is at its other end.
            dialled: Whether this peer opened it.
            now: The time.
            key: The candidate, where this peer dialled it.
        """
        entry = self._entries.get(key) if key is not None else None
        if entry is not None:
            entry.dialling = False
            if entry.typed:
                entry.peer = peer
        self._links.setdefault(peer, []).append(_Opened(link, dialled, now))
        return self.extra(peer)

    def extra(self, peer: PeerId) -> list[Link]:
        """Links to refuse as duplicates."""
        heard = self._heard(peer)
        kept = self._rightful(peer)
        extra = [other.link for other in heard if other not in kept]
        if kept and kept[0].dialled:  # the end that dialled them all chooses among them: the first
            extra += [other.link for other in kept[1:]]
        return extra

    def _heard(self, peer: PeerId) -> list[_Opened[Link]]:
        """The others may be dead."""
        return [other for other in self._links.get(peer, []) if not other.silent]

    def _rightful(self, peer: PeerId) -> list[_Opened[Link]]:
        """Of the links on which something is heard those that the lower id dialled, if any."""
        heard = self._heard(peer)
        return [other for other in heard if other.dialled is (self.own < peer)] or heard

    def silent(self, link: Link, peer: PeerId, now: float, *, is_silent: bool) -> None:
        """Nothing is heard on a link (it may come back), or something is again."""
        for other in self._links.get(peer, []):
            if other.link == link:
                other.silent = is_silent
        if is_silent:
            self._miss(peer, now)

    def _miss(self, peer: PeerId, now: float) -> None:
        """Dial it soon."""
        for entry in self._entries.values():
            if entry.peer == peer:
                entry.missed, entry.failures = now, 0
                entry.due = min(entry.due, now)

    def closed(self, link: Link, peer: PeerId, now: float, *, left: bool = False) -> bool:
        """A link is over; whether it was the last to that peer. ``left``: it said goodbye."""
        links = self._links.get(peer, [])
        lasted = next((now - other.at for other in links if other.link == link), None)
        links[:] = [other for other in links if other.link != link]
        if links or lasted is None:
            return False
        del self._links[peer]
        for entry in self._entries.values():
            if entry.peer == peer:
                entry.lost = -math.inf if left else now
                entry.missed = -math.inf if lasted < _SHORT_S else entry.lost
            if entry.peer == peer and not entry.dialling:
                if lasted >= _SHORT_S:
                    entry.failures = 0
                self._back_off(entry, now)
                if not entry.typed and self.own > peer:
                    entry.due += limits.DIAL_PATIENCE_S
        return True

    def link(self, peer: PeerId) -> Link | None:
        """The link to use for a peer: the one that stays, as far as this end can tell."""
        kept = self._rightful(peer)
        if not kept:
            return None
        return kept[0].link if kept[0].dialled else kept[-1].link

    def may_be_back(self, peer: PeerId, now: float) -> bool:
        """Whether a peer without a link to use had one a moment ago, and did not say goodbye."""
        lost = [one.lost for one in self._entries.values() if one.peer == peer]
        return bool(self._links.get(peer)) or now - max(lost, default=-math.inf) < limits.LOST_S

    def peers(self) -> list[PeerId]:
        """Peers with a link, in the order in which they came."""
        return list(self._links)
