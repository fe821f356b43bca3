"""``/relay/{peer}``: where the peer that serves a tab opens that tab's channels to other peers.

The address is behind TLS like ``/mesh``, so whoever asks is a member. ``{peer}`` is this peer,
which answers the tab itself, or a tab that this peer serves, to which it forwards. Either way only
a tab that the asking peer's own device certified gets through.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from astra_mesh import limits
from astra_mesh.errors import MeshError
from astra_mesh.mesh.connect import Places, upgrade
from astra_mesh.mesh.link import Link
from astra_mesh.mesh.sealed import Speaker, certificate_of
from astra_mesh.mesh.sealed_socket import answer_sealed, receive_bytes
from astra_mesh.mesh.session import Session
from astra_mesh.mesh.sockets import Socket, close_soon
from astra_mesh.mesh.timings import Timings
from astra_mesh.mesh.trust import Known, Trust
from astra_mesh.wire.messages import PeerId, Reason

log = logging.getLogger(__name__)

PATH: Final = "/relay"

# Carries a channel to a tab until it is over: its WebSocket, who opened it, its first message.
Forward = Callable[[Socket, PeerId, bytes], Awaitable[None]]


def path_to(peer: PeerId) -> str:
    """The address for one peer or tab."""
    return f"{PATH}/{peer}"


@dataclass(frozen=True)
class Relay:
    """The handler of one peer.

    Attributes:
        me: The peer.
        speaker: The same, for handshakes.
        trust: Whom it trusts.
        hosted: How to reach a tab that it serves; None if it serves no such tab.
        make_session: A fresh session for a connection.
        on_link: Runs the link of a tab; the connection ends when it returns.
        timings: Deadlines.
        places: For connections at once.
        upgraded: Told the transport of each connection that became a WebSocket.
    """

    me: PeerId
    speaker: Speaker
    trust: Trust
    hosted: Callable[[PeerId], Forward | None]
    make_session: Callable[[Known], Session]
    on_link: Callable[[Link, Known], Awaitable[None]]
    timings: Timings
    places: Places
    upgraded: Callable[[asyncio.Transport | None], None]

    def add_routes(self, app: web.Application) -> None:
        """Serve at :data:`PATH`."""
        app.router.add_get(path_to(PeerId("{peer}")), self.handle)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one channel, until it is over."""
        secure: ssl.SSLObject | None = request.get_extra_info("ssl_object")
        host = self.trust.whose_connection(secure)
        if host is None:
            raise web.HTTPForbidden(text="no member of this mesh\n")
        wanted = PeerId(request.match_info["peer"])
        forward = self.hosted(wanted)
        if wanted != self.me and forward is None:
            raise web.HTTPNotFound(text="no such peer is here\n")
        with self.places.take(host.device):
            socket = await upgrade(request, limits.SEALED_FRAME_BYTES, self.timings.close_s)
            if socket is None:
                return web.Response(status=408)
            self.upgraded(request.transport)
            try:
                if forward is not None:
                    await self._forward(socket, host, forward)
                else:
                    await self._answer(socket, host)
            except MeshError as error:
                log.info("a tab was not let in: %s", error.message)
            finally:
                await close_soon(socket, self.timings.close_s)
        return socket

    async def _forward(self, socket: Socket, host: Known, forward: Forward) -> None:
        """The first message names who opens, so that the tab is told the truth about it."""
        first = b""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.timings.handshake_s):
                first = await receive_bytes(socket)
        opener = self.trust.whose_tab(certificate_of(first), host)
        await forward(socket, opener.peer, first)

    async def _answer(self, socket: Socket, host: Known) -> None:
        """A link like any other, of a tab that comes through ``host``."""
        sealed, tab = await answer_sealed(
            socket,
            self.speaker,
            lambda certificate: self.trust.whose_tab(certificate, host),
            self.timings.handshake_s,
        )
        link = Link(
            sealed,
            self.make_session(tab),
            timings=self.timings,
            dialled=False,
            address=f"a tab of {host.peer[:8]}",
        )
        ending = asyncio.get_running_loop().call_later(
            tab.until - time.time(), link.refuse, Reason.UNPAIRED, "the tab's certificate has ended"
        )
        try:
            await self.on_link(link, tab)
        finally:
            ending.cancel()
