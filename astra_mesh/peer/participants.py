"""The other peers of one attempt at a request, seen by the peer that planned it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec

from astra_mesh import limits
from astra_mesh.errors import (
    AstraMeshError,
    DeadlineError,
    MeshError,
    PeerLostError,
    ProtocolError,
    RefusedError,
)
from astra_mesh.mesh.link import Link
from astra_mesh.peer.exchange import MeshExchange
from astra_mesh.peer.sending import send_if_open
from astra_mesh.wire.codec import encode, sanitise
from astra_mesh.wire.messages import (
    Accept,
    Cancel,
    Done,
    Fail,
    PeerId,
    PeerReport,
    Progress,
    Propose,
    Reason,
    Refuse,
)

# A participant says that it lost another one, or has no link to it. If that one is gone, not just
# out of its reach, its link to this peer ends about then too, and names it: silence is noticed
# within a heartbeat or two. Where links are missing for good, requests wait for the shorter time.
_BLAME_S = 2.0
_UNLINKED_S = 0.3
Said = Accept | Refuse | Progress | Done | Fail  # what a participant says
_LOST_ANOTHER = (PeerLostError.code, ProtocolError.code)


class LostDuringPrefillError(Exception):
    """A participant failed before the answer began; the request can be planned again."""

    def __init__(self, peer: PeerId, error: AstraMeshError) -> None:
        super().__init__(error.message)
        self.peer, self.error = peer, error


class Onlooker(Protocol):
    """Who looks on while the participants work."""

    def accepted(self, peer: PeerId, round_trip_s: float) -> None:
        """A participant started half a round trip ago."""

    def progressed(self, peer: PeerId, marks: list[int]) -> None:
        """What happened there; see :class:`Progress`."""


@dataclass
class _Participant:
    link: Link
    report: asyncio.Future[PeerReport]  # cancelled: there will be none
    accepted: bool = False


class Participants:
    """Those who have tokens of a plan, but for its coordinator.

    Whatever one of them does wrong before the answer begins becomes a
    :class:`LostDuringPrefillError` in the exchange; afterwards it only costs its report.
    """

    def __init__(self, exchange: MeshExchange) -> None:
        loop = asyncio.get_running_loop()
        self.exchange = exchange
        self.onlooker: Onlooker | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._all = {
            peer: _Participant(exchange.links[peer], loop.create_future())
            for shard, peer in enumerate(exchange.peers)
            if shard != exchange.shard and exchange.layout.holds(shard)
        }

    def propose(self, propose: Propose) -> None:
        """Send the proposal to all; LostDuringPrefillError if one cannot get it."""
        frame: bytes | None = None
        for peer, one in self._all.items():
            try:
                frame = frame or encode(propose)
                one.link.send(propose, frame)
            except MeshError as error:
                raise LostDuringPrefillError(peer, error) from error
        self._later(limits.ACCEPT_TIMEOUT_S, self._overdue)

    def _later(self, delay_s: float, call: Callable[[], None]) -> None:
        self._timers.append(asyncio.get_running_loop().call_later(delay_s, call))

    def _overdue(self) -> None:
        for peer, one in self._all.items():
            if not one.accepted:
                text = f"it did not answer the proposal in {limits.ACCEPT_TIMEOUT_S:g} s"
                self._failed(peer, DeadlineError(text))

    def on_message(self, peer: PeerId, message: Said) -> None:
        """What a participant says; of others it is ignored."""
        one = self._all.get(peer)
        if one is None:
            return
        if isinstance(message, Accept):
            one.accepted = True
            if self.onlooker is not None:
                self.onlooker.accepted(peer, one.link.round_trip_s or 0.0)
        elif isinstance(message, Progress):
            if self.onlooker is not None:
                self.onlooker.progressed(peer, message.marks)
        elif isinstance(message, Done):
            one.accepted = True
            if not one.report.done():
                one.report.set_result(msgspec.structs.replace(message.report, peer=peer))
        elif isinstance(message, Refuse):
            text = sanitise(message.text or message.reason.value)
            wait_s = _UNLINKED_S if message.reason is Reason.NOT_LINKED else 0.0
            self._fail_later(wait_s, peer, RefusedError(f"it refused: {text}"))
        else:
            error = MeshError(f"it failed: {sanitise(message.text)}")
            wait_s = _BLAME_S if message.code in _LOST_ANOTHER else 0.0
            self._fail_later(wait_s, peer, error)

    def link_gone(self, link: Link, error: MeshError) -> None:
        """A link is over."""
        for peer, one in self._all.items():
            if one.link is link and (not one.report.done() or self.exchange.misses(peer)):
                self._failed(peer, error)

    def _fail_later(self, delay_s: float, peer: PeerId, error: AstraMeshError) -> None:
        self._later(delay_s, lambda: self._failed(peer, error))

    def _failed(self, peer: PeerId, error: AstraMeshError) -> None:
        self._all[peer].report.cancel()
        self.exchange.fail(LostDuringPrefillError(peer, error))

    def raise_lost(self, error: MeshError) -> None:
        """LostDuringPrefillError if ``error`` came of one of them: lost, or long overdue."""
        overdue = isinstance(error, DeadlineError)
        for peer, one in self._all.items():
            if not one.link.is_open or (overdue and self.exchange.misses(peer)):
                raise LostDuringPrefillError(peer, error) from error

    async def reports(
        self, wait_s: float = limits.SHUTDOWN_S
    ) -> tuple[list[PeerReport], list[PeerId]]:
        """What they did, and who was lost, or does not say so in time."""
        if not self._all:
            return [], []
        waiting = {peer: one.report for peer, one in self._all.items()}
        done, _ = await asyncio.wait(waiting.values(), timeout=wait_s)
        told = {peer for peer, one in waiting.items() if one in done and not one.cancelled()}
        found = [one.result() for peer, one in waiting.items() if peer in told]
        return found, [peer for peer in waiting if peer not in told]

    def close(self) -> None:
        """The attempt is over, in whatever way: those who still work for it are to stop."""
        for timer in self._timers:
            timer.cancel()
        for one in self._all.values():
            send_if_open(one.link, Cancel(request=self.exchange.request))
        self.exchange.abandon()
