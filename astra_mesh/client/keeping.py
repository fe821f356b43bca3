"""A peer that gets the codebooks of its models from the other peers of the mesh, by itself.

Only for models in the person's own folder, and only where this device has none for a model at all.
"""

from __future__ import annotations

import asyncio
import logging
import time

from astra_mesh import limits
from astra_mesh.bundle import Bundle
from astra_mesh.bundle.store import user_models_path
from astra_mesh.client.fetch_codebooks import CodebookFetch, lacking
from astra_mesh.client.finding import own_way
from astra_mesh.client.mesh import Mesh
from astra_mesh.errors import AstraMeshError
from astra_mesh.peer import Peer
from astra_mesh.peer.complaints import Complaints
from astra_mesh.peer.places import own_address
from astra_mesh.wire.messages import ModelId

log = logging.getLogger(__name__)


async def keep_codebooks(peer: Peer) -> None:
    """Look every :data:`limits.CODEBOOK_LOOK_S`, until cancelled; what came by then is kept.

    Args:
        peer: Runs in this process.
    """
    after: dict[ModelId, float] = {}  # those that did not come are tried again then
    complaints = Complaints()
    while True:
        for model, bundle in _bare(peer).items():
            if time.monotonic() < after.get(model, 0.0):
                continue
            try:
                await _get(peer, bundle)
            except AstraMeshError as error:
                after[model] = time.monotonic() + limits.CODEBOOK_AGAIN_S
                complaints.make(f"codebooks of {bundle.name} did not come: {error.message}")
        await asyncio.sleep(limits.CODEBOOK_LOOK_S)


def _bare(peer: Peer) -> dict[ModelId, Bundle]:
    """The models without codebooks."""
    found = {}
    for offer in peer.models.offers():
        bundle = peer.models.bundle(offer.id)
        if bundle is not None and not offer.codebooks and bundle.path.parent == user_models_path():
            found[offer.id] = bundle
    return found


async def _get(peer: Peer, bundle: Bundle) -> None:
    place = own_address(peer.config.listen, peer.port)
    async with Mesh(place, trust_dir=peer.config.trust_dir, stays=True) as mesh:
        around = await mesh.peers()
    secure = await asyncio.to_thread(own_way, peer.config.trust_dir)
    ids, holders = await asyncio.to_thread(lacking, bundle, around, place, secure)
    if not ids:
        return
    fetch = CodebookFetch(bundle, ids, holders)
    await fetch.look()
    await fetch.run()
    log.info("codebooks of %s came from the mesh", bundle.name)
    await peer.models.renew(bundle.model_id)
