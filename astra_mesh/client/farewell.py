"""Leaving a mesh: this device says so to all members that it reaches, and then forgets them."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import aiohttp

from astra_mesh import limits
from astra_mesh.client.nearby import dial_all
from astra_mesh.client.reach import dial_member, member_places
from astra_mesh.mesh.connect import Address, Secure, show_address
from astra_mesh.mesh.identity import Identity
from astra_mesh.mesh.link import Link
from astra_mesh.mesh.roster import RosterBook
from astra_mesh.mesh.session import Session
from astra_mesh.mesh.sockets import close_soon
from astra_mesh.mesh.told import Told
from astra_mesh.mesh.trust import Trust
from astra_mesh.wire.codec import AnyMessage
from astra_mesh.wire.messages import (
    MAGIC,
    PROTOCOL_VERSION,
    DeviceId,
    Hello,
    Role,
    Roster,
    RosterEntry,
)

_LOOK_S: Final = 0.1  # at who was told by peers of this device


@dataclass(frozen=True)
class Farewell:
    """What came of it: the others of the mesh, by whether they are known to have heard.

    ``ended`` are those that only ended the connection: they probably do not know this device any
    more, so there is nothing to tell them.
    """

    told: dict[DeviceId, RosterEntry]
    untold: dict[DeviceId, RosterEntry]
    ended: dict[DeviceId, RosterEntry] = field(default_factory=dict)


async def leave(trust: Trust) -> Farewell:
    """Say farewell, tell who can be reached in some seconds, be alone in a new mesh.

    Peers of this device tell those with which they are linked, and this all that it can dial. If it
    is cancelled nobody else is told, and the device has left.

    Raises:
        IdentityError: The roster cannot be read or kept.
    """
    await asyncio.to_thread(trust.change, RosterBook.say_farewell)
    book, own = trust.book, trust.device.id
    others = {key: entry for key, entry in book.members().items() if key != own}
    told = Told(trust.folder, book.farewell)
    heard: Collection[DeviceId] = ()
    ended: set[DeviceId] = set()
    try:
        if others:
            with suppress(TimeoutError):
                async with asyncio.timeout(limits.FAREWELL_S):
                    await _tell(trust, told, others, ended)
            heard = await asyncio.to_thread(told.devices)
    finally:
        await asyncio.to_thread(trust.change, partial(_forget, book.mesh))
    ended -= set(heard)
    return Farewell(
        {key: entry for key, entry in others.items() if key in heard},
        {key: entry for key, entry in others.items() if key not in heard and key not in ended},
        {key: entry for key, entry in others.items() if key in ended},
    )


def _forget(mesh: bytes, book: RosterBook) -> bool:
    left = book.mesh == mesh  # a peer of this device may have done it
    if left:
        book.begin_anew()
    return left


async def _tell(
    trust: Trust, told: Told, others: Collection[DeviceId], ended: set[DeviceId]
) -> None:
    """Until all know, whoever told them, or will not be told."""
    async with asyncio.TaskGroup() as group:
        dialling = group.create_task(_dial_all(trust, told, ended))
        while True:
            if ended.union(await asyncio.to_thread(told.devices)).issuperset(others):
                break
            await asyncio.sleep(_LOOK_S)
        dialling.cancel()


async def _dial_all(trust: Trust, told: Told, ended: set[DeviceId]) -> None:
    """Tell whoever answers where members may be; ``ended`` gets those that end the connection."""
    identity = await asyncio.to_thread(trust.device.issue)
    tls = await asyncio.to_thread(trust.client_tls, identity)
    speaker = _Speaker(trust, told, identity, Secure(tls, trust.whose_connection), ended)
    async with aiohttp.ClientSession() as http:
        await dial_all(member_places(trust), partial(speaker.tell, http))


@dataclass(frozen=True)
class _Speaker:
    """Tells one peer after the other. It is a peer to them for that time, with no model."""

    trust: Trust
    told: Told
    identity: Identity
    secure: Secure
    ended: set[DeviceId]

    async def tell(self, http: aiohttp.ClientSession, addresses: list[Address]) -> None:
        """Dial a peer, give it the roster, and wait until it shows that it took it.

        Raises:
            AstraMeshError: It cannot be reached, or goes before that.
        """
        socket, address = await dial_member(http, addresses, self.secure, self.ended)
        known = self.secure.known(socket)
        if known is None or known.device == self.trust.device.id:
            await close_soon(socket, limits.CLOSE_TIMEOUT_S)
            return
        session = Session(self._hello(), proven=known.peer)
        link = Link(socket, session, dialled=True, address=show_address(address))
        heard = asyncio.Event()

        def take(message: AnyMessage) -> None:
            if isinstance(message, Hello):
                link.send(self.trust.book.message())
            elif isinstance(message, Roster) and self.trust.book.is_heard_in(message):
                heard.set()

        await link.run(take)  # until it refuses the link
        if heard.is_set():
            await asyncio.to_thread(self.told.note, known.device)

    def _hello(self) -> Hello:
        return Hello(
            magic=MAGIC,
            version=PROTOCOL_VERSION,
            peer=self.identity.peer_id,
            name=self.trust.name,
            role=Role.PEER,
            window_bytes=limits.WINDOW_BYTES,
        )
