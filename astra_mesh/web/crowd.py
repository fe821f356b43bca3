"""The connections of the API: bounded in number, and in time until they ask for something.

What asks stays, however long its answer takes: a stream, or the page that looks on.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable
from typing import cast

from astra_mesh import limits
from astra_mesh.mesh.room import Room


class Crowd:
    """The connections of one API.

    Args:
        header_s: From a connection to the end of its first request's header.
    """

    def __init__(self, header_s: float) -> None:
        self._header_s = header_s
        self._asking: set[asyncio.BaseTransport] = set()
        self._late: dict[asyncio.BaseTransport, asyncio.TimerHandle] = {}
        self._room: Room[asyncio.Transport] = Room(
            limits.API_CONNECTIONS,
            _most_of,
            evict=lambda transport: transport.abort(),
            at_work=self._asking.__contains__,
        )

    def __len__(self) -> int:
        return len(self._room)

    def protocol(self, serve: Callable[[], asyncio.Protocol]) -> asyncio.Protocol:
        """For one connection: ``serve`` makes what serves it if there is room."""
        return _Counted(self, serve)

    def came(self, transport: asyncio.Transport) -> bool:
        """A connection; whether it may stay."""
        name = transport.get_extra_info("peername")
        host = str(name[0]) if isinstance(name, tuple) else ""
        self._room.enter(transport, host)
        if transport.is_closing():
            return False
        loop = asyncio.get_running_loop()
        self._late[transport] = loop.call_later(self._header_s, transport.abort)
        return True

    def went(self, transport: asyncio.Transport) -> None:
        """It is over."""
        self._room.leave(transport)
        self._on_time(transport)

    def asks(self, transport: asyncio.BaseTransport | None) -> None:
        """A request of it begins."""
        if transport is not None:
            self._asking.add(transport)
            self._on_time(transport)

    def asked(self, transport: asyncio.BaseTransport | None) -> None:
        """The request is over."""
        if transport is not None:
            self._asking.discard(transport)

    def _on_time(self, transport: asyncio.BaseTransport) -> None:
        timer = self._late.pop(transport, None)
        if timer is not None:
            timer.cancel()


class _Counted(asyncio.Protocol):
    """Hands all to the protocol that serves a connection, and tells where it begins and ends."""

    def __init__(self, crowd: Crowd, serve: Callable[[], asyncio.Protocol]) -> None:
        self._crowd, self._serve = crowd, serve
        self._transport: asyncio.Transport | None = None
        self._inner = asyncio.Protocol()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        if self._crowd.came(self._transport):
            self._inner = self._serve()
            self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._crowd.went(self._transport)
        self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()


def _most_of(host: str) -> int:
    try:
        own = ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        own = False
    return limits.API_CONNECTIONS_LOOPBACK if own else limits.API_CONNECTIONS_PER_HOST
