"""Which devices of a mesh can be reached from here, by every way there is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field

import aiohttp

from astra_mesh import limits
from astra_mesh.client.addresses import parse_address
from astra_mesh.client.clocks import Clocks
from astra_mesh.client.nearby import dial_all, nearby_places
from astra_mesh.errors import AstraMeshError, NotPairedError
from astra_mesh.mesh.connect import Address, Secure, dial_any, show_address
from astra_mesh.mesh.sockets import close_soon
from astra_mesh.mesh.trust import Known, Trust
from astra_mesh.wire.messages import DeviceId, PeerId, PeerInfo


@dataclass(frozen=True, slots=True)
class Answered:
    """How a device answered."""

    after_s: float
    ahead_s: float | None  # its clock, of this one's; None if it does not tell its time


@dataclass(frozen=True)
class Reach:
    """What came of dialling all devices.

    Attributes:
        answered: Those that did.
        ended: Those that only ended the connection: they probably do not know this device any more.
        names: Of peers that run on them, with which peers of this machine are linked.
    """

    answered: dict[DeviceId, Answered]
    ended: set[DeviceId]
    names: dict[DeviceId, set[str]] = field(default_factory=dict)


async def who_answers(trust: Trust) -> Reach:
    """Dial all devices of the mesh."""
    identity = trust.device.issue()
    tls = await asyncio.to_thread(trust.tls, identity)
    secure = Secure(tls.client, trust.whose_connection)
    found: dict[DeviceId, Answered] = {}
    ended: set[DeviceId] = set()
    names: dict[DeviceId, set[str]] = {}
    called = {one.address: one.name for one in await _linked()}
    clocks = Clocks()
    async with clocks.session() as http:

        async def ask(addresses: list[Address]) -> None:
            began = time.perf_counter()
            socket, address = await dial_member(http, addresses, secure, ended)
            after_s, known = time.perf_counter() - began, secure.known(socket)
            await close_soon(socket, limits.CLOSE_TIMEOUT_S)
            if known is not None:
                found.setdefault(known.device, Answered(after_s, clocks.ahead_s(address)))
                if name := called.get(show_address(address)):
                    names.setdefault(known.device, set()).add(name)

        with suppress(TimeoutError):
            async with asyncio.timeout(limits.REACH_S):
                await dial_all(member_places(trust), ask)
    return Reach(found, ended - found.keys(), names)


async def dial_member(
    http: aiohttp.ClientSession, addresses: list[Address], secure: Secure, ended: set[DeviceId]
) -> tuple[aiohttp.ClientWebSocketResponse, Address]:
    """Dial, and once more where the connection was ended: a peer that does not know a device yet
    that was let in just now ends it too. ``ended`` gets the device that does it both times.

    Raises:
        NoPeerError, NotPairedError: As :func:`astra_mesh.mesh.connect.dial_any`.
    """
    try:
        return await dial_any(http, addresses, secure=secure)
    except NotPairedError as error:
        if not error.ended_by:
            raise
    await asyncio.sleep(limits.MEMBER_AGAIN_S)
    try:
        return await dial_any(http, addresses, secure=secure)
    except NotPairedError as error:
        if error.ended_by:
            ended.add(DeviceId(error.ended_by))
        raise


@dataclass(frozen=True, slots=True)
class Running:
    """A peer that is in the mesh now, and the device on which it runs."""

    peer: PeerId
    name: str
    device: DeviceId


async def who_runs(trust: Trust) -> list[Running]:
    """The peers of this machine and those with which they are linked; each of another device is
    asked for its certificate, and left out if it does not answer. So are tabs: whoever shuts one
    out does not mean the device that serves it.
    """
    from astra_mesh.client.mesh import Mesh
    from astra_mesh.peer.local import local_peers

    listed: dict[PeerId, PeerInfo] = {}
    own: set[PeerId] = set()
    for local in await asyncio.to_thread(local_peers):
        with suppress(AstraMeshError):
            async with Mesh(local.address) as mesh:
                for one in await mesh.peers():
                    listed[one.peer] = one
                    own |= {one.peer} if one.self else set()
    others = [one for one in listed.values() if one.peer not in own and not one.via]
    devices = dict.fromkeys(own, trust.device.id)
    if others:
        identity = trust.device.issue()
        tls = await asyncio.to_thread(trust.tls, identity)
        secure = Secure(tls.client, trust.whose_connection)
        async with aiohttp.ClientSession() as http:
            known = await asyncio.gather(*(_known(http, secure, one.address) for one in others))
        devices |= {one.peer: one.device for one in known if one is not None}
    return [
        Running(one.peer, one.name, devices[one.peer])
        for one in listed.values()
        if one.peer in devices
    ]


async def _known(http: aiohttp.ClientSession, secure: Secure, text: str) -> Known | None:
    """Who answers there."""
    with suppress(AstraMeshError):
        socket, _ = await dial_any(http, [parse_address(text)], secure=secure)
        known = secure.known(socket)
        await close_soon(socket, limits.CLOSE_TIMEOUT_S)
        return known
    return None


async def member_places(trust: Trust) -> AsyncGenerator[list[Address], None]:
    """Where members may be, those first with which peers here are linked. One may come twice."""
    for one in await _linked():
        yield [parse_address(one.address)]
    async with aclosing(nearby_places(trust)) as found:
        async for addresses in found:
            yield addresses


async def _linked() -> list[PeerInfo]:
    """The peers with which peers of this machine are linked."""
    from astra_mesh.client.mesh import Mesh
    from astra_mesh.peer.local import local_peers

    found = []
    for local in await asyncio.to_thread(local_peers):
        with suppress(AstraMeshError):
            async with Mesh(local.address) as mesh:
                found += [one for one in await mesh.peers() if not (one.self or one.via)]
    return found
