"""Dialling the addresses of paired devices that were kept when they were paired."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from astra_mesh import limits
from astra_mesh.mesh.connect import Address
from astra_mesh.mesh.meeting import MeetingPlaces
from astra_mesh.mesh.trust import Trust
from astra_mesh.peer.names import tell_changes


async def watch_places(
    trust: Trust,
    typed: Collection[Address],
    came: Callable[[str, int], None],
    went: Callable[[str, int], None],
) -> None:
    """Look again and again which addresses of members are kept, until cancelled.

    Args:
        trust: Of the device.
        typed: Addresses that are dialled anyway; they are left alone.
        came: Called with each address that is new.
        went: Called with each that counts no more.
    """
    places, known = MeetingPlaces(trust.folder), set[Address]()
    while True:
        others = trust.members().keys() - {trust.device.id}
        here = set(await asyncio.to_thread(places.of, others)) - set(typed)
        tell_changes(known, here, came, went)
        known = here
        await asyncio.sleep(limits.TRUST_POLL_S)
