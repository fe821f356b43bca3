"""Where peers may be, as far as this device knows by itself: kept addresses, and announced ones."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Final

from astra_mesh import limits
from astra_mesh.errors import AstraMeshError
from astra_mesh.mesh.connect import Address
from astra_mesh.mesh.discovery import Discovery
from astra_mesh.mesh.meeting import MeetingPlaces
from astra_mesh.mesh.trust import Trust
from astra_mesh.wire.messages import PeerId

SEARCH_S: Final = 5.0  # announcements are repeated within it


async def nearby_places(trust: Trust) -> AsyncGenerator[list[Address], None]:
    """Where members may be: peers of this machine, kept addresses, then all of one peer that
    announces itself, as it is found. Whoever dials them learns from the certificate who it is. An
    address may come twice.
    """
    from astra_mesh.peer.local import local_peers

    for local in reversed(await asyncio.to_thread(local_peers)):
        yield [local.address]
    for address in await asyncio.to_thread(MeetingPlaces(trust.folder).of, trust.members()):
        yield [address]
    async with aclosing(search()) as found:
        async for addresses in found:
            yield addresses


async def dial_all(
    places: AsyncGenerator[list[Address], None], dial: Callable[[list[Address]], Awaitable[None]]
) -> None:
    """Dial each of these places as it is found, an address once, :data:`limits.SEARCH_DIALS` at the
    same time: whoever announces itself and answers nothing keeps nobody waiting.

    Args:
        places: The addresses of each peer; closed here.
        dial: What to do there; an AstraMeshError of it means that nobody is there.
    """
    room, tried = asyncio.Semaphore(limits.SEARCH_DIALS), set[Address]()

    async def one(addresses: list[Address]) -> None:
        try:
            with suppress(AstraMeshError):
                await dial(addresses)
        finally:
            room.release()

    async with aclosing(places), asyncio.TaskGroup() as group:
        async for addresses in places:
            if fresh := [address for address in addresses if address not in tried]:
                tried.update(fresh)
                await room.acquire()
                group.create_task(one(fresh))


async def search() -> AsyncGenerator[list[Address], None]:
    """The addresses of each peer that announces itself within :data:`SEARCH_S`, as it is found;
    more of them later, also where somebody else announced other ones under its id before.
    """
    places: asyncio.Queue[list[Address]] = asyncio.Queue(limits.CANDIDATES)
    known: set[tuple[PeerId, Address]] = set()

    def on_found(peer: PeerId, name: str, addresses: list[Address]) -> None:
        fresh = [address for address in addresses if (peer, address) not in known]
        if fresh and not places.full():
            known.update((peer, address) for address in fresh)
            places.put_nowait(fresh)

    me = PeerId(secrets.token_hex(32))
    watch = Discovery(me, "", None, on_found=on_found, on_gone=lambda peer: None)
    task = asyncio.create_task(watch.run(), name="astra_mesh search")
    end = asyncio.get_running_loop().time() + SEARCH_S
    try:
        while True:
            try:
                async with asyncio.timeout_at(end):
                    place = await places.get()
            except TimeoutError:
                return
            yield place
    finally:
        task.cancel()
        await asyncio.wait([task])
