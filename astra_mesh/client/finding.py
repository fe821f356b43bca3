"""Which peer a client asks: the address given, a peer of this machine, or one started here."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import socket
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import aiohttp

from astra_mesh import limits
from astra_mesh.client.addresses import parse_address
from astra_mesh.client.line import Line
from astra_mesh.errors import NoPeerError, NotPairedError, PeerLostError
from astra_mesh.mesh.connect import Address, Secure, dial, show_address
from astra_mesh.mesh.link import Link
from astra_mesh.mesh.session import Session
from astra_mesh.mesh.timings import Timings
from astra_mesh.mesh.trust import Trust
from astra_mesh.naming import PASSING
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
    trust_dir: Path | None  # None: that of this user


async def find_line(stack: AsyncExitStack, target: Target) -> tuple[Line, bool]:
    """An open line, and whether its peer runs inside this process; ``stack`` closes all of it.

    Raises:
        MeshError: As :meth:`astra_mesh.client.Mesh.open`.
    """
    http = await stack.enter_async_context(aiohttp.ClientSession())
    dialler = await asyncio.to_thread(_Dialler, http, target)
    address = target.address
    if address is None and (chosen := os.environ.get(ENVIRONMENT)):
        address = parse_address(chosen)
    if address is not None:
        return await _open_line(stack, dialler, address), False
    if not target.typed:
        for place in await asyncio.to_thread(_local_places):
            try:
                return await _open_line(stack, dialler, place), False
            except (NoPeerError, NotPairedError, PeerLostError) as exc:
                log.info("a peer of this machine does not answer: %s", exc)
    peer = await _make_embedded(target)
    await stack.enter_async_context(peer)
    return await _open_line(stack, dialler, ("127.0.0.1", peer.port)), True


class _Dialler:
    """Dials as this device. Making it reads files and blocks."""

    def __init__(self, http: aiohttp.ClientSession, target: Target) -> None:
        self.http, self.target = http, target
        trust = Trust.open(target.trust_dir)
        self.identity = trust.device.issue()
        self.secure = Secure(trust.client_tls(self.identity), trust.whose_connection)


def own_way(trust_dir: Path | None = None) -> Secure:
    """How this device dials the members of its mesh. Reads files and blocks."""
    trust = Trust.open(trust_dir)
    return Secure(trust.client_tls(trust.device.issue()), trust.whose_connection)


async def open_line(stack: AsyncExitStack, address: Address, target: Target) -> Line:
    """An open line to one address, closed by ``stack``; an error leaves nothing open.

    Raises:
        MeshError: As :meth:`astra_mesh.client.Mesh.open`.
    """
    async with AsyncExitStack() as own:
        http = await own.enter_async_context(aiohttp.ClientSession())
        dialler = await asyncio.to_thread(_Dialler, http, target)
        line = await _open_line(own, dialler, address)
        stack.push_async_exit(own.pop_all())
    return line


async def _open_line(stack: AsyncExitStack, dialler: _Dialler, address: Address) -> Line:
    target, secure = dialler.target, dialler.secure
    socket = await dial(dialler.http, *address, timings=target.timings, secure=secure)
    known = secure.known(socket)
    proven = known.peer if known is not None else PeerId("")
    hello = _hello(dialler.identity.peer_id, target.window_bytes)
    line = Line(
        Link(
            socket,
            Session(hello, target.timings, proven=proven),
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
        name=_host_name(PASSING),
        port=0,
        peers=target.typed,
        ephemeral=True,
        precision="auto",
        trust_dir=target.trust_dir,
    )
    peer: Peer = module.Peer(config)
    return peer


def _hello(own: PeerId, window_bytes: int) -> Hello:
    return Hello(
        magic=MAGIC,
        version=PROTOCOL_VERSION,
        peer=own,
        name=_host_name(),
        role=Role.CLIENT,
        window_bytes=window_bytes,
    )


def _host_name(suffix: str = "") -> str:
    """The name of this machine, as the name of a peer or client."""
    name = sanitise(socket.gethostname().split(".")[0], limits.NAME_CHARS - len(suffix))
    return (name or "client") + suffix


def _local_places() -> list[Address]:
    """Where this user's peers on this machine are, the newest first."""
    from astra_mesh.peer.local import local_peers

    return [peer.address for peer in reversed(local_peers())]
