"""What a peer does while its device leaves the mesh: the others are told before they are forgotten.

Its links carry the roster, which says so (:mod:`astra_mesh.peer.rosters`). Who took it sends it
back, and then refuses the link.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from astra_mesh import limits
from astra_mesh.mesh.told import Told
from astra_mesh.peer.security import Security

_LOOK_S: Final = 0.1  # at who was told: by this peer, others of the device, or the command


async def leave(security: Security, on_change: Callable[[], None]) -> None:
    """Wait until all members know that this device leaves, or some time; then forget the mesh."""
    trust = security.trust
    others = trust.members().keys() - {trust.device.id}
    told = Told(trust.folder, trust.book.farewell)
    end = asyncio.get_running_loop().time() + limits.FAREWELL_S
    while trust.book.is_leaving and asyncio.get_running_loop().time() < end:
        if others <= await asyncio.to_thread(told.devices):
            break
        await asyncio.sleep(_LOOK_S)
    await security.settle(on_change)
