"""All links of a peer: the port that it listens on, discovery, and dialling."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import aiohttp
from aiohttp import web

from astra_mesh import limits
from astra_mesh.errors import MeshError, PortInUseError
from astra_mesh.mesh.connect import PATH, Address, dial_any, websocket_handler
from astra_mesh.mesh.discovery import Discovery
from astra_mesh.mesh.link import Link
from astra_mesh.mesh.membership import Candidate, Membership
from astra_mesh.mesh.session import Session
from astra_mesh.peer import tasks
from astra_mesh.peer.config import DEFAULT_PORT, PeerConfig
from astra_mesh.peer.names import watch_names
from astra_mesh.wire.codec import AnyMessage
from astra_mesh.wire.messages import Hello, PeerId, Reason, Role

log = logging.getLogger(__name__)

_KEEPALIVE_S = 10.0  # of idle HTTP connections
_HANDLERS_S = 0.1  # for what serves them, once the links had their goodbyes
_PORT_TRIES = 20


class LinkKeeper:
    """Keeps one link to every peer that can be reached.

    Args:
        config: of the peer.
        me: its id.
        make_hello: the current hello.
        on_message: called with each message of an open link, the hello first.
        on_closed: called when a link is over (which had a hello), and why.
        on_silence: called when nothing is heard on a link any more, or something is again.
        add_routes: adds what else is served at the port.
    """

    def __init__(
        self,
        config: PeerConfig,
        me: PeerId,
        make_hello: Callable[[], Hello],
        on_message: Callable[[Link, AnyMessage], None],
        on_closed: Callable[[Link, MeshError | None, bool], None],
        on_silence: Callable[[Link], None] = lambda link: None,
        add_routes: Callable[[web.Application], None] = lambda app: None,
    ) -> None:
        self._config, self._me, self._make_hello = config, me, make_hello
        self._on_message, self._on_closed = on_message, on_closed
        self._on_silence, self._add_routes = on_silence, add_routes
        self._membership: Membership[Link] = Membership(me)
        self._links: set[Link] = set()
        self._running = asyncio.Event()  # links that come in wait for it
        self._leaving = False
        self._complaints: set[str] = set()  # each is logged once
        self._wake = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None
        self._http: aiohttp.ClientSession | None = None
        self._runner: web.AppRunner | None = None
        self.port = 0
        self.discovery: Discovery | None = None

    # --- life -------------------------------------------------------------------------------------

    async def listen(self) -> None:
        """Open the port; PortInUseError if it is taken."""
        app = web.Application()
        handler = websocket_handler(
            self._session, self._serve, timings=self._config.timings, max_links=limits.LINKS
        )
        app.router.add_get(PATH, handler)
        self._add_routes(app)
        # No handler_cancellation: a link sees by itself that its socket is gone, and says so.
        self._runner = web.AppRunner(
            app,
            keepalive_timeout=_KEEPALIVE_S,
            access_log=None,
            shutdown_timeout=_HANDLERS_S,
        )
        await self._runner.setup()
        wanted = self._config.port
        try:
            self.port = await self._bind(DEFAULT_PORT if wanted is None else wanted)
        except PortInUseError:
            if wanted is not None:
                raise
            self.port = await self._bind(0)

    async def _bind(self, port: int) -> int:
        """Listen; with 0 on one free port for all address families, each of which got its own."""
        if port:
            await self._open(port)
            return port
        for _ in range(_PORT_TRIES):
            site, ports = await self._open(0)
            if len(ports) == 1:
                return ports.pop()
            await site.stop()
            with suppress(PortInUseError):
                port = ports.pop()
                await self._open(port)
                return port
        raise PortInUseError("no port is free on all of this machine's addresses")

    async def _open(self, port: int) -> tuple[web.TCPSite, set[int]]:
        """A listening site and its ports."""
        assert self._runner is not None
        site = web.TCPSite(self._runner, self._config.listen, port, reuse_address=True)
        try:
            await site.start()
        except OSError as error:
            await site.stop()
            if error.errno == errno.EADDRINUSE:
                raise PortInUseError(
                    f"port {port} is taken by another program; choose another with --port, or "
                    "--port 0 for any free one"
                ) from error
            where = self._config.listen or "all interfaces"
            raise MeshError(f"cannot listen on {where}, port {port}: {error.strerror}") from error
        return site, {int(address[1]) for address in self._runner.addresses}

    async def run(self) -> None:
        """Discover and dial until cancelled; then say goodbye to all and close the port."""
        try:
            async with aiohttp.ClientSession() as http, asyncio.TaskGroup() as group:
                self._http, self._group = http, group
                for host, port in self._config.peers:
                    self._membership.typed(host, port, _now())
                if self._config.names:
                    names = self._config.names
                    tasks.start(group, "names", watch_names, names, self._came, self._went)
                if self._config.discovery:
                    self.discovery = self._discovery()
                    tasks.start(group, "discovery", self.discovery.run)
                self._running.set()
                try:
                    await self._dial_forever()
                finally:
                    await self._say_goodbye()
        finally:
            await self.close_port()

    def _discovery(self) -> Discovery:
        name = self._make_hello().name
        return Discovery(self._me, name, self.port, on_found=self._found, on_gone=self._gone)

    async def close_port(self) -> None:
        """Stop listening, and end what came in by it. :meth:`run` does so at its end."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _say_goodbye(self) -> None:
        self._leaving = True
        closing = [link.close("leaving") for link in self._links]
        with suppress(TimeoutError):
            async with asyncio.timeout(limits.SHUTDOWN_S):
                await asyncio.gather(*closing, return_exceptions=True)

    # --- who is there -----------------------------------------------------------------------------

    def link(self, peer: PeerId) -> Link | None:
        """The open link to a peer."""
        link = self._membership.link(peer)
        return link if link is not None and link.is_open else None

    def peers(self) -> list[PeerId]:
        """Peers with an open link."""
        return [peer for peer in self._membership.peers() if self.link(peer) is not None]

    def place(self, peer: PeerId) -> str:
        """Where others can dial a peer, by what it announced; empty if that is not known."""
        for host, port in self._membership.addresses(peer):
            if not host.startswith("fe80:"):  # those hold on one machine only
                return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return ""

    def _found(self, peer: PeerId, name: str, addresses: list[Address]) -> None:
        log.debug("found %s (%s) at %s", name, peer[:8], addresses)
        self._membership.found(peer, addresses, _now())
        self._wake.set()

    def _came(self, host: str, port: int) -> None:
        self._membership.typed(host, port, _now())
        self._wake.set()

    def _went(self, host: str, port: int) -> None:
        self._membership.untyped(host, port)
        self._wake.set()

    def _gone(self, peer: PeerId) -> None:
        self._membership.gone(peer, _now())
        self._wake.set()

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
        timings = self._config.timings
        dial_s = min(timings.dial_s, limits.DIAL_KNOWN_S) if candidate.brief else timings.dial_s
        brief = replace(timings, dial_s=dial_s)
        try:
            socket, address = await dial_any(self._http, candidate.addresses, timings=brief)
        except Exception as error:
            self._membership.failed(candidate.key, _now())
            self._wake.set()
            if not isinstance(error, MeshError):
                raise
            if candidate.expected is None:
                self._complain(error.message)
            else:
                log.debug("%s", error.message)
            return
        session = Session(self._make_hello(), timings, expected=candidate.expected)
        shown = f"{address[0]}:{address[1]}"
        link = Link(socket, session, timings=timings, dialled=True, address=shown)
        await self._drive(link, candidate.key)

    def _session(self) -> Session:
        return Session(self._make_hello(), self._config.timings)

    async def _serve(self, link: Link) -> None:
        await self._running.wait()
        await self._drive(link, None)

    async def _drive(self, link: Link, key: str | None) -> None:
        if self._leaving:
            await link.close("leaving")
            return
        self._links.add(link)
        link.on_silence = lambda: self._silence(link)
        try:
            await link.run(lambda message: self._take(link, message, key))
        except Exception:
            log.exception("the link to %s ended by an error of this peer", link.address)
        finally:
            self._links.discard(link)
            self._over(link, key, link.close_error)

    def _take(self, link: Link, message: AnyMessage, key: str | None) -> None:
        if isinstance(message, Hello) and message.role is Role.PEER:
            self._opened(link, message, key)
        self._on_message(link, message)

    def _opened(self, link: Link, hello: Hello, key: str | None) -> None:
        extra = self._membership.opened(link, hello.peer, dialled=link.dialled, now=_now(), key=key)
        for other in extra:
            other.refuse(Reason.DUPLICATE)
        if link not in extra and not self._leaving:
            assert self._group is not None  # links are driven from run on
            tasks.start(self._group, "a probe", _probe, link)

    def _silence(self, link: Link) -> None:
        hello = link.peer
        if hello is None or hello.role is not Role.PEER:
            return
        self._membership.silent(link, hello.peer, _now(), is_silent=link.is_silent)
        self._on_silence(link)
        self._wake.set()

    def _over(self, link: Link, key: str | None, error: MeshError | None) -> None:
        now, hello = _now(), link.peer
        joined = hello is not None and hello.role is Role.PEER
        if not joined and key is not None:
            own = self._me if link.session.close_reason is Reason.SELF else None
            self._membership.failed(key, now, own)
        if hello is None:
            self._complain_of(link, key, error)
        else:
            left = error is None
            last = joined and self._membership.closed(link, hello.peer, now, left=left)
            self._on_closed(link, error, last)
        self._wake.set()

    # --- what the log is told ---------------------------------------------------------------------

    def _complain_of(self, link: Link, key: str | None, error: MeshError | None) -> None:
        """A link that never opened. Those that come in have another port each time."""
        why = error.message if error is not None else "it left without a hello"
        self._complain(f"{link.address if key else link.address.rpartition(':')[0]}: {why}")

    def _complain(self, text: str) -> None:
        """Warn once: what fails is tried again for ever, and others may knock as often."""
        if text in self._complaints or len(self._complaints) >= limits.CANDIDATES:
            log.debug("%s", text)
            return
        self._complaints.add(text)
        log.warning("%s", text)


async def _probe(link: Link) -> None:
    """Measure a link, and again when its traffic has not for a while, until it is over."""
    while True:
        try:
            if not link.is_measured and not link.is_silent:
                await link.probe()
        except MeshError as error:
            log.debug("no throughput of %s: %s", link.address, error.message)
        if await link.wait_closed(limits.PROBE_EVERY_S * random.uniform(0.8, 1.2)):
            return


def _now() -> float:
    return asyncio.get_running_loop().time()
