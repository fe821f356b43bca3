"""What a link needs of a WebSocket, and the TCP connection under one, kept short of backlog."""

from __future__ import annotations

import asyncio
import logging
import socket as sockets
import sys
from typing import Final, Protocol, cast

import aiohttp

from astra_mesh import limits

log = logging.getLogger(__name__)

_TCP_RTO_MAX_MS: Final = 44 if sys.platform == "linux" else None  # since Linux 6.15; no name yet


class Socket(Protocol):
    """A WebSocket of aiohttp, of either end, or one that is sealed."""

    async def receive(self) -> aiohttp.WSMessage:
        """The next message, or that the connection is over or broken."""

    async def send_bytes(self, data: bytes) -> None:
        """Send a binary message; it waits while too much is unsent."""

    async def close(self) -> bool:
        """The closing handshake."""


def transport_of(socket: Socket) -> asyncio.Transport | None:
    """The transport under a WebSocket; on the client's side aiohttp has no public name for it."""
    writer = getattr(socket, "_writer", None)
    transport = getattr(writer, "transport", None)
    if not hasattr(transport, "abort") or not hasattr(transport, "set_write_buffer_limits"):
        return None
    return cast(asyncio.Transport, transport)  # uvloop's is no subclass


def tune(socket: Socket) -> None:
    """Keep little in the buffers below, so that control need not queue behind codes there."""
    transport = transport_of(socket)
    if transport is None:
        return
    transport.set_write_buffer_limits(high=limits.UNSENT_BYTES // 4)
    writer = getattr(socket, "_writer", None)
    if writer is not None and hasattr(
        writer, "_limit"
    ):  # bytes between looks at those limits: 256 KiB by default
        writer._limit = limits.UNSENT_BYTES // 4
    raw = transport.get_extra_info("socket")
    options = {
        getattr(sockets, "TCP_NOTSENT_LOWAT", None): limits.UNSENT_BYTES,
        _TCP_RTO_MAX_MS: limits.RESEND_MS,
    }
    for option, value in options.items() if raw is not None else ():
        try:
            if option is not None:
                raw.setsockopt(sockets.IPPROTO_TCP, option, value)
        except OSError as exc:
            log.debug("no option %s of TCP here: %s", option, exc)


async def close_soon(socket: Socket, patience_s: float) -> None:
    """The closing handshakes, WebSocket's and TLS's, no longer than that; afterwards the socket is
    gone. TLS alone would wait 30 s for the farewell of a peer that is lost.
    """
    transport = transport_of(socket)
    gone = _gone(transport)
    done = False
    try:
        async with asyncio.timeout(patience_s):
            await socket.close()
            if gone is not None:
                await asyncio.wait([gone])
        done = True
    except TimeoutError:
        pass
    finally:
        if transport is not None and not (done and transport.is_closing()):
            transport.abort()


def _gone(transport: asyncio.Transport | None) -> asyncio.Future[None] | None:
    """Done when a connection is over; None: it is, or a server has it and will end it."""
    try:
        protocol = transport.get_protocol() if transport is not None else None
    except AttributeError:  # what asyncio says of TLS that was closed twice
        return None
    gone: asyncio.Future[None] | None = getattr(protocol, "closed", None)
    if gone is not None:
        gone.add_done_callback(lambda future: future.cancelled() or future.exception())
    return gone
