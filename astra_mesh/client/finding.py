"""Which peer a client asks: the address given, a peer of this machine, or one started here."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import secrets
import socket
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import aiohttp

from astra_mesh import limits
from astra_mesh.client.addresses import parse_address, show_address
from astra_mesh.client.line import Line
from astra_mesh.errors import NoPeerError, PeerLostError
from astra_mesh.mesh.connect import Address, dial
from astra_mesh.mesh.link import Link
from astra_mesh.mesh.session import Session
from astra_mesh.mesh.timings import Timings
from astra_mesh.wire.codec import sanitise
from astra_mesh.wire.messages import MAGIC, PROTOCOL_VERSION, Hello, PeerId, Role

if TYPE_CHECKING:
    from astra_mesh.peer import Peer

log = logging.getLogger(__name__)

ENVIRONMENT: Final = "ASTRA_MESH_PEER"


@dataclass(frozen=True)
class Target:
    """Where to connect, and how."""

    address: Address | None  # None: find one
    typed: tuple[Address, ...]  # for a peer that is started here
    timings: Timings
    window_bytes: int


async def find_line(stack: AsyncExitStack, target: Target) -> tuple[Line, bool]:
    """An open line, and whether its peer runs inside this process; ``stack`` closes all of it.

    Raises:
        MeshError: As :meth:`astra_mesh.client.Mesh.open`.
    """
    http = await stack.enter_async_context(aiohttp.ClientSession())
    address = target.address
    if address is None and (chosen := os.environ.get(ENVIRONMENT)):
        address = parse_address(chosen)
    if address is not None:
        return await _open_line(stack, http, address, target), False
    if not target.typed:
        for port in await asyncio.to_thread(_local_ports):
            try:
                return await _open_line(stack, http, ("127.0.0.1", port), target), False
            except (NoPeerError, PeerLostError) as exc:
                log.info("a peer of this machine does not answer: %s", exc)
    peer = await _make_embedded(target)
    await stack.enter_async_context(peer)
    return await _open_line(stack, http, ("127.0.0.1", peer.port), target), True


async def open_line(stack: AsyncExitStack, address: Address, target: Target) -> Line:
    """An open line to one address, closed by ``stack``; an error leaves nothing open.

    Raises:
        MeshError: As :meth:`astra_mesh.client.Mesh.open`.
    """
    async with AsyncExitStack() as own:
        http = await own.enter_async_context(aiohttp.ClientSession())
        line = await _open_line(own, http, address, target)
        stack.push_async_exit(own.pop_all())
    return line


async def _open_line(
    stack: AsyncExitStack, http: aiohttp.ClientSession, address: Address, target: Target
) -> Line:
    socket = await dial(http, *address, timings=target.timings)
    line = Line(
        Link(
            socket,
            Session(_hello(target.window_bytes), target.timings),
            timings=target.timings,
            dialled=True,
            address=show_address(address),
        ),
        place=address,
    )
    stack.push_async_callback(line.close)
    await line.open()
    return line


async def _make_embedded(target: Target) -> Peer:
    """A peer that is not started. Its imports (torch among them) take seconds, in a thread."""
    module = await asyncio.to_thread(importlib.import_module, "astra_mesh.peer")
    config = module.PeerConfig(
        name=_host_name("-client"), port=0, peers=target.typed, ephemeral=True, precision="auto"
    )
    peer: Peer = module.Peer(config)
    return peer


def _hello(window_bytes: int) -> Hello:
    return Hello(
        magic=MAGIC,
        version=PROTOCOL_VERSION,
        peer=PeerId(secrets.token_hex(32)),  # of this connection only
        name=_host_name(),
        role=Role.CLIENT,
        window_bytes=window_bytes,
    )


def _host_name(suffix: str = "") -> str:
    """The name of this machine, as the name of a peer or client."""
    name = sanitise(socket.gethostname().split(".")[0], limits.NAME_CHARS - len(suffix))
    return (name or "client") + suffix


def _local_ports() -> list[int]:
    """Ports of this user's peers on this machine, the newest first."""
    from astra_mesh.peer.local import local_peers

    return [peer.port for peer in reversed(local_peers())]
