"""Which devices of a mesh can be reached from here, by every way there is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

import aiohttp

from astra_mesh.client.addresses import parse_address
from astra_mesh.client.pairing_search import search
from astra_mesh.errors import AstraMeshError
from astra_mesh.mesh.connect import Address, Secure, dial_any
from astra_mesh.mesh.meeting import MeetingPlaces
from astra_mesh.mesh.trust import Trust
from astra_mesh.wire.messages import DeviceId


async def who_answers(trust: Trust) -> dict[DeviceId, float]:
    """Devices that answered, and how long that took, seconds."""
    identity = trust.device.issue()
    tls = await asyncio.to_thread(trust.tls, identity)
    secure = Secure(tls.client, trust.whose_connection)
    found: dict[DeviceId, float] = {}
    tried: set[Address] = set()
    async with aiohttp.ClientSession() as http, aclosing(_places(trust)) as places:
        async for addresses in places:
            if tried.issuperset(addresses):
                continue
            tried.update(addresses)
            began = time.perf_counter()
            with suppress(AstraMeshError):
                socket, _ = await dial_any(http, addresses, secure=secure)
                known = secure.known(socket)
                await socket.close()
                if known is not None:
                    found.setdefault(known.device, time.perf_counter() - began)
    return found


async def _places(trust: Trust) -> AsyncGenerator[list[Address], None]:
    """Where members may be: kept addresses, those that peers here are linked with, announced ones
    (all of one peer). An address may come twice.
    """
    for address in await asyncio.to_thread(MeetingPlaces(trust.folder).of, trust.members()):
        yield [address]
    for address in await _linked():
        yield [address]
    async with aclosing(search()) as found:
        async for addresses in found:
            yield addresses


async def _linked() -> list[Address]:
    """Addresses of the peers with which peers of this machine are linked."""
    from astra_mesh.client.mesh import Mesh
    from astra_mesh.peer.local import local_peers

    found = []
    for local in await asyncio.to_thread(local_peers):
        with suppress(AstraMeshError):
            async with Mesh(local.address) as mesh:
                texts = [one.address for one in await mesh.peers() if not (one.self or one.via)]
            found += [parse_address(text) for text in texts]
    return found
