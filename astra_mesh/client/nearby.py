"""Where peers may be, as far as this device knows by itself: kept addresses, and announced ones."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Final

from astra_mesh import limits
from astra_mesh.errors import AstraMeshError
from astra_mesh.mesh.connect import Address
from astra_mesh.mesh.discovery import Discovery
from astra_mesh.mesh.meeting import MeetingPlaces
from astra_mesh.mesh.trust import Trust
from astra_mesh.wire.messages import PeerId

Dial = Callable[[list[Address]], Awaitable[None]]

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


async def dial_all(places: AsyncGenerator[list[Address], None], dial: Dial) -> None:
    """Dial each of these places as it is found, an address once, :data:`limits.SEARCH_DIALS` at the
    same time: whoever announces itself and answers nothing keeps nobody waiting.

    Args:
        places: The addresses of each peer; closed here.
        dial: What to do there; an AstraMeshError of it means that nobody is there. Where there are
            more places than are dialled at once it may be cancelled, and called again later.
    """
    tried = set[Address]()
    async with aclosing(places), asyncio.TaskGroup() as group:
        turns = _Turns(group, dial)
        async for addresses in places:
            if fresh := [address for address in addresses if address not in tried]:
                tried.update(fresh)
                await turns.give(fresh)
        turns.go_on()


@dataclass(frozen=True, slots=True)
class _Turn:
    addresses: list[Address]
    end: float  # of the loop's clock; from then on others may have its place


class _Turns:
    """The dials of one search: where there is room for no more they take turns."""

    def __init__(self, group: asyncio.TaskGroup, dial: Dial) -> None:
        self._group, self._dial = group, dial
        self._running: dict[asyncio.Task[None], _Turn] = {}  # the oldest first
        self._late: deque[list[Address]] = deque()  # had a turn and did not come to an end in it
        self._asked = False  # somebody waits for a first turn
        self._freed = asyncio.Event()

    async def give(self, addresses: list[Address]) -> None:
        """Begin to dial a place, if need be in that of who has had its turn. One call at a time."""
        self._asked = True
        while self._is_full():
            task, turn = next(iter(self._running.items()))
            self._freed.clear()
            try:
                async with asyncio.timeout_at(turn.end):
                    await self._freed.wait()
            except TimeoutError:
                del self._running[task]
                task.cancel()
                self._late.append(turn.addresses)
        self._asked = False
        self._start(addresses)

    def go_on(self) -> None:
        """Dial those again that were cut short, as far as there is room."""
        while self._late and not self._asked and not self._is_full():
            self._start(self._late.popleft())

    def _is_full(self) -> bool:
        return len(self._running) >= limits.SEARCH_DIALS

    def _start(self, addresses: list[Address]) -> None:
        end = asyncio.get_running_loop().time() + limits.SEARCH_TURN_S
        self._running[self._group.create_task(self._one(addresses))] = _Turn(addresses, end)

    async def _one(self, addresses: list[Address]) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            with suppress(AstraMeshError):
                await self._dial(addresses)
        finally:
            self._running.pop(task, None)
            self._freed.set()
        self.go_on()


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
