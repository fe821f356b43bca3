"""All links of a peer: the port that it listens on, discovery, and dialling."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
from collections.abc import Callable
from contextlib import suppress

import aiohttp
from aiohttp import web

from astra_mesh import limits
from astra_mesh.errors import MeshError, PortInUseError, RefusedError
from astra_mesh.mesh.connect import PATH, Address, dial_any, websocket_handler
from astra_mesh.mesh.discovery import Discovery
from astra_mesh.mesh.link import Link
from astra_mesh.mesh.membership import Candidate, Membership
from astra_mesh.mesh.session import Session
from astra_mesh.peer.config import DEFAULT_PORT, PeerConfig
from astra_mesh.wire.codec import AnyMessage
from astra_mesh.wire.messages import Hello, PeerId, Reason, Role

log = logging.getLogger(__name__)

_KEEPALIVE_S = 10.0  # of idle HTTP connections


class LinkKeeper:
    """Keeps one link to every peer that can be reached.

    Args:
        config: of the peer.
        me: its id.
        make_hello: the current hello.
        on_message: called with each message of an open link, the hello first.
        on_closed: called when a link is over (which had a hello), and why.
    """

    def __init__(
        self,
        config: PeerConfig,
        me: PeerId,
        make_hello: Callable[[], Hello],
        on_message: Callable[[Link, AnyMessage], None],
        on_closed: Callable[[Link, MeshError | None, bool], None],
    ) -> None:
        self._config, self._me, self._make_hello = config, me, make_hello
        self._on_message, self._on_closed = on_message, on_closed
        self._membership: Membership[Link] = Membership(me)
        self._links: set[Link] = set()
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
        self._runner = web.AppRunner(
            app, keepalive_timeout=_KEEPALIVE_S, handler_cancellation=True, access_log=None
        )
        await self._runner.setup()
        wanted = self._config.port
        try:
            await self._bind(DEFAULT_PORT if wanted is None else wanted)
        except PortInUseError:
            if wanted is not None:
                await self._runner.cleanup()
                raise
            await self._bind(0)

    async def _bind(self, port: int) -> None:
        assert self._runner is not None
        site = web.TCPSite(
            self._runner, self._config.listen, port, shutdown_timeout=0.1, reuse_address=True
        )
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
        self.port = port or _port_of(self._runner)
        if port == 0 and self._config.listen is None:
            await self._align(site)

    async def _align(self, site: web.TCPSite) -> None:
        """With port 0 each address family got a port of its own: take the first for all."""
        assert self._runner is not None
        ports = {address[1] for address in self._runner.addresses}
        if len(ports) > 1:
            await site.stop()
            with suppress(PortInUseError):
                await self._bind(self.port)

    async def run(self) -> None:
        """Discover and dial until cancelled; then say goodbye to all and close the port."""
        async with aiohttp.ClientSession() as http:
            self._http = http
            for host, port in self._config.peers:
                self._membership.typed(host, port, _now())
            try:
                async with asyncio.TaskGroup() as group:
                    self._group = group
                    if self._config.discovery:
                        self.discovery = Discovery(
                            self._me,
                            self._make_hello().name,
                            self.port,
                            on_found=self._found,
                            on_gone=self._gone,
                        )
                        group.create_task(self.discovery.run())
                    try:
                        await self._dial_forever()
                    finally:
                        await self._say_goodbye()
            finally:
                self._group = None
                if self._runner is not None:
                    await self._runner.cleanup()

    async def close_port(self) -> None:
        """For a start that went wrong before :meth:`run`."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _say_goodbye(self) -> None:
        closing = [link.close("leaving") for link in self._links]
        with suppress(TimeoutError):
            async with asyncio.timeout(limits.SHUTDOWN_S):
                await asyncio.gather(*closing)

    # --- who is there -----------------------------------------------------------------------------

    def link(self, peer: PeerId) -> Link | None:
        """The open link to a peer."""
        link = self._membership.link(peer)
        return link if link is not None and link.is_open else None

    def peers(self) -> list[PeerId]:
        """Peers with an open link."""
        return [peer for peer in self._membership.peers() if self.link(peer) is not None]

    def _found(self, peer: PeerId, name: str, addresses: list[Address]) -> None:
        log.debug("found %s (%s) at %s", name, peer[:8], addresses)
        self._membership.found(peer, addresses, _now())
        self._wake.set()

    def _gone(self, peer: PeerId) -> None:
        self._membership.gone(peer)
        self._wake.set()

    # --- dialling ---------------------------------------------------------------------------------

    async def _dial_forever(self) -> None:
        assert self._group is not None
        while True:
            for candidate in self._membership.due(_now()):
                self._group.create_task(self._dial(candidate))
            self._wake.clear()
            due = self._membership.next_due()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(None if due == math.inf else due):
                    await self._wake.wait()

    async def _dial(self, candidate: Candidate) -> None:
        assert self._http is not None
        timings = self._config.timings
        try:
            socket, address = await dial_any(self._http, candidate.addresses, timings=timings)
        except MeshError as error:
            level = logging.WARNING if candidate.expected is None else logging.DEBUG
            log.log(level, "%s", error.message)
            self._membership.failed(candidate.key, _now())
            self._wake.set()
            return
        session = Session(self._make_hello(), timings, expected=candidate.expected)
        link = Link(
            socket, session, timings=timings, dialled=True, address=f"{address[0]}:{address[1]}"
        )
        await self._drive(link, candidate.key)

    def _session(self) -> Session:
        return Session(self._make_hello(), self._config.timings)

    async def _serve(self, link: Link) -> None:
        await self._drive(link, None)

    async def _drive(self, link: Link, key: str | None) -> None:
        opened = False

        def on_message(message: AnyMessage) -> None:
            nonlocal opened
            if isinstance(message, Hello):
                opened = True
                self._opened(link, message, key)
            self._on_message(link, message)

        self._links.add(link)
        error: MeshError | None = None
        try:
            error = await link.run(on_message)
        except Exception:
            log.exception("the link to %s ended by an error of this peer", link.address)
        finally:
            self._links.discard(link)
            self._over(link, key, error, opened)

    def _opened(self, link: Link, hello: Hello, key: str | None) -> None:
        if hello.role is not Role.PEER:
            return
        extra = self._membership.opened(link, hello.peer, dialled=link.dialled, now=_now(), key=key)
        for other in extra:
            other.refuse(Reason.DUPLICATE)
        if link not in extra and self._group is not None:
            self._group.create_task(_probe(link))

    def _over(self, link: Link, key: str | None, error: MeshError | None, opened: bool) -> None:
        now, hello = _now(), link.peer
        if not opened and key is not None:
            own = self._me if link.session.close_reason is Reason.SELF else None
            self._membership.failed(key, now, own)
            if isinstance(error, RefusedError) or own is None:
                log.warning("%s: %s", link.address, error.message if error else "no hello")
        last = False
        if opened and hello is not None and hello.role is Role.PEER:
            last = self._membership.closed(link, hello.peer, now)
        if opened:
            self._on_closed(link, error, last)
        self._wake.set()


async def _probe(link: Link) -> None:
    try:
        await link.probe()
    except MeshError as error:
        log.debug("no throughput of %s: %s", link.address, error.message)


def _port_of(runner: web.AppRunner) -> int:
    return int(runner.addresses[0][1])


def _now() -> float:
    return asyncio.get_running_loop().time()
