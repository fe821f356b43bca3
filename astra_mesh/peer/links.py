"""All links of a peer: the port that it listens on, discovery, and dialling."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from weakref import WeakValueDictionary

import aiohttp
from aiohttp import web

from astra_mesh import limits
from astra_mesh.errors import (
    MeshError,
    NoPeerError,
    NotPairedError,
)
from astra_mesh.mesh.connect import (
    PATH,
    Address,
    Places,
    dial_any,
    is_of_member,
    over,
    show_address,
    websocket_handler,
)
from astra_mesh.mesh.discovery import Discovery
from astra_mesh.mesh.link import Link
from astra_mesh.mesh.membership import Candidate, Membership
from astra_mesh.mesh.quota import Quota
from astra_mesh.mesh.relay import Relay, path_to
from astra_mesh.mesh.session import Session
from astra_mesh.mesh.trust import Known
from astra_mesh.peer import tasks
from astra_mesh.peer.complaints import Complaints
from astra_mesh.peer.config import PeerConfig
from astra_mesh.peer.farewell import leave
from astra_mesh.peer.hearsay import Hearsay
from astra_mesh.peer.meeting import watch_places
from astra_mesh.peer.names import watch_names
from astra_mesh.peer.places import dial_address, is_link_local, own_address, own_ips
from astra_mesh.peer.port import Port
from astra_mesh.peer.probing import probe
from astra_mesh.peer.rosters import Rosters
from astra_mesh.peer.security import Security
from astra_mesh.peer.tabs import Tabs, host_of
from astra_mesh.wire.codec import AnyMessage
from astra_mesh.wire.messages import DeviceId, Hello, PeerId, Reason, Role, Roster

log = logging.getLogger(__name__)

_EXTRA_LOOK_S = 0.05  # between two looks whether the link that stays is open at both ends


class LinkKeeper:
    """Keeps one link to every peer that can be reached.

    Args:
        config: of the peer.
        security: its identity, and whom it trusts.
        make_hello: the current hello.
        on_message: called with each message of an open link, the hello first.
        on_closed: called when a link is over (which had a hello), and why.
        on_stranger: called with id and name of a peer that was found and is not paired.
        on_silence: called when nothing is heard on a link any more, or something is again.
        add_routes: adds what else is served at the port.
        tabs: that this peer serves.
        is_busy: whether this peer works on requests.
    """

    def __init__(
        self,
        config: PeerConfig,
        security: Security,
        make_hello: Callable[[], Hello],
        on_message: Callable[[Link, AnyMessage], None],
        on_closed: Callable[[Link, MeshError | None, bool], None],
        on_stranger: Callable[[PeerId, str], None],
        on_silence: Callable[[Link], None] = lambda link: None,
        add_routes: Callable[[web.Application], None] = lambda app: None,
        tabs: Tabs | None = None,
        is_busy: Callable[[], bool] = lambda: False,
    ) -> None:
        self._config, self._security, self._make_hello = config, security, make_hello
        self._me = security.identity.peer_id
        self._on_message, self._on_closed = on_message, on_closed
        self._on_stranger, self._on_silence = on_stranger, on_silence
        self._add_routes, self._tabs, self._is_busy = add_routes, tabs or Tabs(), is_busy
        self._membership: Membership[Link] = Membership(self._me)
        self._hearsay = Hearsay(self._membership)
        self._links: dict[Link, Known] = {}  # and who is there, by its certificate
        self._quotas = WeakValueDictionary[DeviceId, Quota]()
        self._rosters = Rosters(security, self._trust_changed)
        self._near: dict[PeerId, str] = {}  # names of those who announce themselves
        self._strangers: set[PeerId] = set()  # of these, those that are not paired
        self._running = asyncio.Event()  # links that come in wait for it
        self._leaving = False
        self._parting: asyncio.Task[None] | None = None  # the device leaves its mesh
        self._complaints = Complaints()
        self._ended: dict[str, float] = {}  # members that end connections, and since when
        self._wake = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None
        self._http: aiohttp.ClientSession | None = None
        self._door = Port(config, security)
        self.discovery: Discovery | None = None

    @property
    def port(self) -> int:
        """That it listens on; 0 before."""
        return self._door.number

    # --- life -------------------------------------------------------------------------------------

    async def listen(self) -> None:
        """Open the port; PortInUseError if it is taken."""
        app, trust, places = web.Application(), self._security.trust, Places()
        handler = websocket_handler(
            self._session,
            self._serve,
            timings=self._config.timings,
            places=places,
            whose=trust.whose_connection,
            upgraded=self._door.upgraded,
        )
        app.router.add_get(PATH, handler)
        relay = Relay(
            me=self._me,
            speaker=self._security.speaker,
            trust=trust,
            hosted=self._tabs.forward,
            make_session=self._session,
            on_link=self._serve,
            timings=self._config.timings,
            places=places,
            upgraded=self._door.upgraded,
        )
        relay.add_routes(app)
        self._add_routes(app)
        await self._door.open(app)

    async def run(self) -> None:
        """Discover and dial until cancelled; then say goodbye to all and close the port."""
        try:
            async with aiohttp.ClientSession() as http, asyncio.TaskGroup() as group:
                self._http, self._group = http, group
                for host, port in self._config.peers:
                    self._membership.typed(host, port, _now())
                args = (self._security.trust, self._config.peers, self._came, self._went)
                tasks.start(group, "meeting places", watch_places, *args)
                if self._config.names:
                    names = self._config.names
                    tasks.start(group, "names", watch_names, names, self._came, self._went)
                if self._config.discovery:
                    self.discovery = self._discovery()
                    tasks.start(group, "discovery", self.discovery.run)
                tasks.start(group, "trust", self._security.watch, self._trust_changed)
                self._running.set()
                self._part()
                try:
                    await self._dial_forever()
                finally:
                    await self._say_goodbye()
        finally:
            await self.close_port()

    def _discovery(self) -> Discovery:
        name = self._make_hello().name
        return Discovery(
            self._me,
            name,
            self.port,
            on_found=self._found,
            on_gone=self._gone,
            addresses=partial(own_ips, self._config.listen),
        )

    async def close_port(self) -> None:
        """Stop listening, and end what came in by it. :meth:`run` does so at its end."""
        await self._door.close()

    async def _say_goodbye(self) -> None:
        self._leaving = True
        closing = [link.close("leaving") for link in self._links]
        with suppress(TimeoutError):
            async with asyncio.timeout(limits.SHUTDOWN_S):
                await asyncio.gather(*closing, return_exceptions=True)

    # --- who is there -----------------------------------------------------------------------------

    @property
    def own_address(self) -> Address:
        """Where programs of this machine reach this peer."""
        return own_address(self._config.listen, self.port)

    def link(self, peer: PeerId) -> Link | None:
        """The open link to a peer."""
        link = self._membership.link(peer)
        return link if link is not None and link.is_open else None

    def device_of(self, peer: PeerId) -> DeviceId | None:
        """The device of a linked peer, as its certificate proves; None of a tab, which is lent."""
        link = self.link(peer)
        known = self._links.get(link) if link is not None else None
        return known.device if known is not None and known.via is None else None

    def strangers(self) -> list[str]:
        """Names of those near that are not paired with this device, sorted."""
        names = sorted(self._near[peer] for peer in self._strangers)
        return names[: limits.STRANGERS_TOLD]

    def may_be_back(self, peer: PeerId) -> bool:
        """Whether a link to a peer was lost, or fell silent, so lately that it may be a blip."""
        return self.link(peer) is None and self._membership.may_be_back(peer, _now())

    def peers(self) -> list[PeerId]:
        """Peers with an open link."""
        return [peer for peer in self._membership.peers() if self.link(peer) is not None]

    def place(self, peer: PeerId) -> Address | None:
        """Where others can dial a peer, by what it announced; None if that is not known."""
        found = self._membership.addresses(peer)
        return next((one for one in found if not is_link_local(one[0])), None)

    def hear(self, places: Mapping[PeerId, Address]) -> None:
        """Others tell where these can be dialled."""
        self._hearsay.follow(places, _now())
        self._wake.set()

    def _found(self, peer: PeerId, name: str, addresses: list[Address]) -> None:
        log.debug("found %s (%s) at %s", name, peer[:8], addresses)
        if peer in self._near or len(self._near) < limits.CANDIDATES:
            self._near[peer] = name
        self._membership.found(peer, addresses, _now())
        self._hearsay.announced(peer)
        self._wake.set()

    def _came(self, host: str, port: int) -> None:
        self._membership.typed(host, port, _now())
        self._wake.set()

    def _went(self, host: str, port: int) -> None:
        self._membership.untyped(host, port)
        self._wake.set()

    def _gone(self, peer: PeerId) -> None:
        self._membership.gone(peer, _now())
        self._near.pop(peer, None)
        self._strangers.discard(peer)
        self._wake.set()

    def _trust_changed(self) -> None:
        """The roster is another one now: tell the others, part from whom it does not hold."""
        trust = self._security.trust
        self._part()
        for link, known in list(self._links.items()):
            self._rosters.tell(link, known)
            if not trust.book.is_member(known.device):
                link.refuse(Reason.UNPAIRED)
        self._strangers.clear()
        self._ended.clear()
        self._membership.retry(_now())
        self._wake.set()

    def _part(self) -> None:
        """If this device is leaving its mesh: see to it that the others are told first."""
        done = self._parting is None or self._parting.done()
        if self._group is not None and done and self._security.trust.book.is_leaving:
            args = (self._security, self._trust_changed)
            self._parting = tasks.start(self._group, "the farewell", leave, *args)

    # --- dialling ---------------------------------------------------------------------------------

    async def _dial_forever(self) -> None:
        assert self._group is not None
        while True:
            for candidate in self._membership.due(_now()):
                tasks.start(self._group, "a dial", self._dial, candidate)
            self._wake.clear()
            due = self._membership.next_due()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(None if due == math.inf else due):
                    await self._wake.wait()

    async def _dial(self, candidate: Candidate) -> None:
        assert self._http is not None
        secure, roster = self._security.dialling(), self._security.trust.version
        timings = self._config.timings
        dial_s = min(timings.dial_s, limits.DIAL_KNOWN_S) if candidate.brief else timings.dial_s
        brief = replace(timings, dial_s=dial_s)
        try:
            opened, address = await dial_any(
                self._http, candidate.addresses, timings=brief, secure=secure
            )
        except Exception as error:
            self._membership.failed(candidate.key, _now())
            self._wake.set()
            if not isinstance(error, MeshError):
                raise
            told = self._is_to_be_told(candidate, error)
            if isinstance(error, NotPairedError) and (told or not is_of_member(error)):
                self._note_stranger(candidate.expected, roster)
            if told:
                ended = self._security.trust.book.ended
                self._complaints.make(over(ended) if ended else error.message)
            else:
                log.debug("%s", error.message)
            return
        self._ended.pop(candidate.key, None)
        known = secure.known(opened)
        session = self._session(known, candidate.expected)
        link = Link(opened, session, timings=timings, dialled=True, address=show_address(address))
        await self._drive(link, known, candidate.key)

    def _is_to_be_told(self, candidate: Candidate, error: MeshError) -> bool:
        """Whether the log gets it: not of who announces itself and is away, and of members that end
        the connection only if they go on: they may hear of this device in a moment.
        """
        if not is_of_member(error):
            self._ended.pop(candidate.key, None)
            return candidate.expected is None
        return _now() - self._ended.setdefault(candidate.key, _now()) >= limits.STRANGE_S

    async def open_relay(self, to: PeerId, hello: Hello | None) -> aiohttp.ClientWebSocketResponse:
        """A WebSocket for a channel of a tab that this peer serves.

        Args:
            to: Whom the channel is for: a linked peer, another tab, or this peer itself.
            hello: Of it; None for this peer.

        Raises:
            NoPeerError, NotPairedError: It cannot be reached.
        """
        if self._http is None:
            raise NoPeerError("this peer is about to start or to end")
        socket, _ = await dial_any(
            self._http,
            self._ways_to(host_of(to, hello)),
            path=path_to(to),
            timings=self._config.timings,
            secure=self._security.dialling(),
        )
        return socket

    def _ways_to(self, peer: PeerId) -> list[Address]:
        """Where a peer can be dialled, this one too."""
        if peer == self._me:
            return [self.own_address]
        link = self.link(peer)
        told = dial_address(link, link.peer) if link is not None and link.peer is not None else None
        announced = self._membership.addresses(peer)
        return [*announced, told] if told is not None and told not in announced else [*announced]

    def _note_stranger(self, peer: PeerId | None, roster: int) -> None:
        """Somebody near was no member by that version of the roster; by a newer one, or by its own
        dial, it may be one."""
        if peer is None or roster != self._security.trust.version or self.link(peer) is not None:
            return
        if peer in self._near and peer not in self._strangers:
            self._strangers.add(peer)
            self._on_stranger(peer, self._near[peer])

    def _session(self, known: Known | None, expected: PeerId | None = None) -> Session:
        # Whoever was shut out between its handshake and now matches no id at all.
        proven = known.peer if known is not None else PeerId("")
        via = known.via if known is not None else None
        quota = self._quota(known) if known is not None else None
        return Session(self._make_hello(), self._config.timings, expected, proven, via, quota)

    def _quota(self, known: Known) -> Quota:
        """One for all links of a device, for as long as there are any."""
        if known.device == self._security.trust.device.id and known.via is None:
            return Quota.endless()
        room = Quota(limits.REQUESTS_PER_DEVICE, limits.DEVICE_BYTES)
        return self._quotas.setdefault(known.device, room)

    async def _serve(self, link: Link, known: Known | None) -> None:
        await self._running.wait()
        await self._drive(link, known, None)

    async def _drive(self, link: Link, known: Known | None, key: str | None) -> None:
        if self._leaving or known is None:
            await link.close("leaving")
            if key is not None:
                self._membership.failed(key, _now())
                self._wake.set()
            return
        self._links[link] = known
        link.on_silence = lambda: self._silence(link)
        try:
            await link.run(lambda message: self._take(link, message, key))
        except Exception:
            log.exception("the link to %s ended by an error of this peer", link.address)
        finally:
            self._links.pop(link, None)
            self._over(link, key, link.close_error, known.peer)

    def _take(self, link: Link, message: AnyMessage, key: str | None) -> None:
        if isinstance(message, Hello) and message.role is Role.PEER:
            self._opened(link, message, key)
        if isinstance(message, Roster):
            assert self._group is not None
            self._rosters.came(self._group, link, self._links[link], message)
        else:
            self._on_message(link, message)

    def _opened(self, link: Link, hello: Hello, key: str | None) -> None:
        self._strangers.discard(hello.peer)
        extra = self._membership.opened(link, hello.peer, dialled=link.dialled, now=_now(), key=key)
        assert self._group is not None  # links are driven from run on
        if extra:
            tasks.start(self._group, "duplicates", self._refuse_extra, hello.peer)
        if link not in extra and not self._leaving:
            tasks.start(self._group, "a probe", probe, link, self._is_busy)
            self._rosters.tell(link, self._links[link])

    async def _refuse_extra(self, peer: PeerId) -> None:
        """Refuse duplicates once the other end has the link that stays: a moment without any would
        cost a request its plan.
        """
        while extra := self._membership.extra(peer):
            kept = self._membership.link(peer)
            if kept is None or kept.round_trip_s is not None:
                for other in extra:
                    other.refuse(Reason.DUPLICATE)
                return
            await asyncio.sleep(_EXTRA_LOOK_S)

    def _silence(self, link: Link) -> None:
        hello = link.peer
        if hello is None or hello.role is not Role.PEER:
            return
        self._membership.silent(link, hello.peer, _now(), is_silent=link.is_silent)
        self._on_silence(link)
        self._wake.set()

    def _over(self, link: Link, key: str | None, error: MeshError | None, peer: PeerId) -> None:
        now, hello = _now(), link.peer
        joined = hello is not None and hello.role is Role.PEER
        if not joined and key is not None:
            own = self._me if link.session.close_reason is Reason.SELF else None
            self._membership.failed(key, now, own)
        if hello is None:
            linked = self.link(peer) is not None
            self._complaints.never_opened(link, error, dialled=key is not None, linked=linked)
        else:
            left = error is None
            last = joined and self._membership.closed(link, hello.peer, now, left=left)
            self._on_closed(link, error, last)
        self._wake.set()


def _now() -> float:
    return asyncio.get_running_loop().time()
