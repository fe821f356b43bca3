"""Listening sockets: one port on all of a machine's addresses, or on one of them."""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from collections.abc import Sequence
from typing import Final

from astra_mesh.errors import MeshError, PortInUseError

_PORT_TRIES: Final = 20
_BACKLOG: Final = 256  # connections that the kernel holds until they are accepted


async def listen(host: str | None, port: int) -> list[socket.socket]:
    """Sockets that listen on ``port`` (0: on one free port) of ``host``, all families together.

    Raises:
        PortInUseError: The port is taken.
        MeshError: It cannot listen there.
    """
    if port:
        return await open_sockets(host, port)
    for _ in range(_PORT_TRIES):
        sockets = await open_sockets(host, 0)
        if len({port_of(one) for one in sockets}) == 1:
            return sockets
        # Each family got a port of its own: try one of them on all.
        port = port_of(sockets[0])
        close_all(sockets)
        try:
            return await open_sockets(host, port)
        except PortInUseError:
            continue
    raise PortInUseError("no port is free on all of this machine's addresses")


def port_of(one: socket.socket) -> int:
    """Where a socket listens."""
    return int(one.getsockname()[1])


def close_all(sockets: Sequence[socket.socket]) -> None:
    """Stop listening."""
    for one in sockets:
        one.close()


async def open_sockets(host: str | None, port: int) -> list[socket.socket]:
    """One socket for each address of ``host``; with port 0 each has a port of its own."""
    where = host or "all interfaces"
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        why = error.strerror or error
        raise MeshError(f"cannot listen on {where}, port {port}: {why}") from error
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            sockets += _open_one(family, kind, protocol, address)
        if not sockets:
            raise MeshError(f"cannot listen on {where}, port {port}: it has no usable address")
    except OSError as error:
        close_all(sockets)
        if error.errno == errno.EADDRINUSE:
            raise PortInUseError(
                f"port {port} is taken by another program; choose another with --port, or "
                "--port 0 for any free one"
            ) from error
        raise MeshError(f"cannot listen on {where}, port {port}: {error.strerror}") from error
    return sockets


def _open_one(family: int, kind: int, protocol: int, address: object) -> list[socket.socket]:
    """A listening socket, or none where the machine lacks the family."""
    try:
        one = socket.socket(family, kind, protocol)
    except OSError:
        return []
    try:
        if sys.platform != "win32":
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(address)  # type: ignore[arg-type]
        one.listen(_BACKLOG)
        one.setblocking(False)
    except BaseException:
        one.close()
        raise
    return [one]
