"""What the shell completes from the mesh: quickly, or nothing."""

from __future__ import annotations

import asyncio
from typing import Final

from astra_mesh.errors import AstraMeshError

_ASK_S: Final = 0.3  # that a person waits for the network


def models_elsewhere() -> list[str]:
    """Names of models that other peers have and this device has not, by a peer of this user on this
    machine; empty where none runs, or it does not answer at once.
    """
    from astra_mesh.bundle.store import folders_by_name
    from astra_mesh.peer.local import local_peers

    try:
        running = local_peers()
        if not running:
            return []
        found = asyncio.run(_told(running[-1].address))
    except (AstraMeshError, OSError):
        return []
    return sorted(found - folders_by_name().keys())


async def _told(place: tuple[str, int]) -> set[str]:
    """All names of all models of the mesh, as the peer there sees it."""
    from astra_mesh.client.mesh import Mesh
    from astra_mesh.wire.messages import names_of

    async with asyncio.timeout(_ASK_S), Mesh(place, stays=True) as mesh:
        peers = await mesh.peers()
    return {name for one in peers for offer in one.models for name in names_of(offer)}


def paired_names() -> list[str]:
    """Names of the other devices of this one's mesh, as the mesh keeps them."""
    from astra_mesh.mesh.trust import Trust

    try:
        trust = Trust.open()
    except (AstraMeshError, OSError):
        return []
    own = trust.device.id
    return sorted({entry.name for key, entry in trust.members().items() if key != own})
