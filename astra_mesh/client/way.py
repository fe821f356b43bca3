"""The line to the peer that is asked, and the way on to another one when that peer is lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from astra_mesh import limits
from astra_mesh.client.addresses import parse_address
from astra_mesh.client.finding import Target, open_line
from astra_mesh.client.line import Conversation, Line, new_request
from astra_mesh.errors import AstraMeshError, InputError, MeshError, NoPeerError, PeerLostError
from astra_mesh.mesh.connect import Address, show_address
from astra_mesh.mesh.interfaces import is_loopback
from astra_mesh.mesh.trust import Trust
from astra_mesh.wire.codec import sanitise
from astra_mesh.wire.messages import ListPeers, PeerId, Peers, Planned, Refer

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)

Dial = Callable[[list[Address]], Awaitable[None]]


class Way:
    """Where a mesh's requests go.

    Args:
        stack: Closes the lines that are opened later.
        line: To the peer that is asked now.
        target: How to connect.
        stays: Never go on with another peer.
    """

    def __init__(
        self, stack: AsyncExitStack, line: Line, target: Target, *, stays: bool = False
    ) -> None:
        self.line, self._stays = line, stays
        self._stack, self._target = stack, target
        self._elsewhere: list[Address] = []  # of other peers, the ones told last
        self._others: dict[PeerId, Line] = {}  # to peers that were referred to
        self._roster: Conversation | None = None
        self._turn = asyncio.Lock()

    def look_around(self) -> None:
        """Ask once on each line who else is there; the answer is read when it is needed."""
        if self._roster is None and self.line.is_open and not self._stays:
            self._roster = self.line.start(ListPeers(request=new_request()))

    def learn(self, planned: Planned) -> None:
        """Other peers that hold the model, as the coordinator sees them now."""
        if planned.elsewhere:
            self._elsewhere = self._reachable(planned.elsewhere)

    async def referred(self, message: Refer) -> Line:
        """The line to a peer that would answer sooner, opened once. Cancelling it changes nothing.

        Raises:
            MeshError: It cannot be reached, or is another one.
        """
        async with self._turn:
            line = self._others.get(message.peer)
            if line is not None and line.is_open:
                return line
            for place in self._reachable([message.address]):
                line = await self._open(place)
                if line.hello.peer == message.peer:
                    self._others[message.peer] = line
                    return line
                await line.close()
        raise NoPeerError(f"{sanitise(message.name)} is not where it was said to be")

    async def onward(
        self, lost: Line, error: MeshError, *, after: str = "", again: bool = False
    ) -> str:
        """Go on with another peer; the sentence for a report. Cancelling it changes nothing.

        Args:
            lost: The line that ended.
            error: Why; raised if no other peer answers.
            after: What had come by then, for the report.
            again: Whether the peer that was lost may be tried, too: nothing was under way.
        """
        if self._stays:
            raise error
        async with self._turn:
            if self.line is not lost and self.line.is_open:  # another request was faster
                return continued(self.line, error, after)
            await self._read_roster()
            places = [place for place in self._elsewhere if place != lost.place]
            if again and lost.place is not None:
                places.append(lost.place)
            for place in places[: limits.CLIENT_PLACES]:
                if await self._move(place, limits.CLIENT_MOVE_S):
                    return continued(self.line, error, after)
            if await self._search(lost, places, again=again):
                return continued(self.line, error, after)
            for place in places[: limits.CLIENT_BUSY_PLACES]:
                if await self._move(place, limits.CLIENT_MOVE_BUSY_S):
                    return continued(self.line, error, after)
        raise error

    async def _search(self, lost: Line, tried: Collection[Address], *, again: bool) -> bool:
        """Look for others as this device knows the mesh itself: the peer that was lost told of none
        that answers, or was lost before it told of any.
        """
        dial_all = await asyncio.to_thread(_nearby, self._target.trust_dir)
        shun = None if again else lost.hello.peer
        won, decided = list[Line](), asyncio.Event()

        async def attempt(addresses: list[Address]) -> None:
            for place in addresses:
                if place in tried or place == lost.place:
                    continue
                line = await self._try(place, limits.CLIENT_MOVE_S, shun=shun)
                if line is not None and won:
                    await line.close()
                elif line is not None:
                    won.append(line)
                    decided.set()
                    return

        looking = asyncio.create_task(dial_all(attempt), name="astra_mesh search")
        looking.add_done_callback(lambda _: decided.set())
        try:
            async with asyncio.timeout(limits.CLIENT_SEARCH_S):
                await decided.wait()
        except TimeoutError:
            log.info("nobody else was found within %g s", limits.CLIENT_SEARCH_S)
        finally:
            looking.cancel()
            await asyncio.wait([looking])
            if not looking.cancelled() and (fault := looking.exception()):
                log.error("the search for others met an error of its own", exc_info=fault)
        if won:
            self.line, self._roster = won[0], None
        return bool(won)

    async def _move(self, place: Address, dial_s: float) -> bool:
        """Whether a peer answers there; it is asked from now on."""
        line = await self._try(place, dial_s)
        if line is not None:
            self.line, self._roster = line, None
        return line is not None

    async def _try(
        self, place: Address, dial_s: float, *, shun: PeerId | None = None
    ) -> Line | None:
        """The line to a peer that answers there and is not the one to be shunned."""
        try:
            line = await self._open(place, dial_s)
        except MeshError as why:
            log.info("cannot go on at %s: %s", show_address(place), why.message)
            return None
        if line.hello.peer == shun:
            await line.close()
            return None
        return line

    async def _open(self, place: Address, dial_s: float = limits.CLIENT_MOVE_S) -> Line:
        timings = replace(self._target.timings, dial_s=dial_s)
        return await open_line(self._stack, place, replace(self._target, timings=timings))

    async def _read_roster(self) -> None:
        """What the lost peer said about the others before it was lost."""
        conversation, self._roster = self._roster, None
        if conversation is None:
            return
        try:
            peers = (await conversation.expect(Peers)).peers
        except AstraMeshError:
            return
        finally:
            conversation.close()
        found = self._reachable(one.address for one in peers if not one.self)
        self._elsewhere += [place for place in found if place not in self._elsewhere]

    def _reachable(self, texts: Iterable[str]) -> list[Address]:
        """Addresses as this client can use them: the asked peer's own machine is where it is."""
        found: list[Address] = []
        for text in texts:
            try:
                host, port = parse_address(text)
            except InputError:
                continue
            if is_loopback(host) and self.line.place is not None:
                host = self.line.place[0]
            if (host, port) not in found:
                found.append((host, port))
        return found


def _nearby(trust_dir: Path | None) -> Callable[[Dial], Coroutine[Any, Any, None]]:
    """Dials whoever may be a member of this device's mesh. Imports what few need, and blocks."""
    from astra_mesh.client.nearby import dial_all, nearby_places

    return partial(dial_all, nearby_places(Trust.open(trust_dir)))


def continued(line: Line, error: MeshError, after: str = "") -> str:
    """The sentence for a report: who went on after an error, and what had come by then."""
    why = (error.happened if isinstance(error, PeerLostError) else "") or error.message
    return sanitise(f"continued by {sanitise(line.hello.name)}{after}: {why}")


def may_go_on(line: Line, error: MeshError) -> bool:
    """Whether a request ended because its peer went away, not because of what it was asked."""
    return isinstance(error, PeerLostError) and not line.is_open and not line.closed_here
