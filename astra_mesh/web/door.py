"""The way from the API to its peer: the same client, link and limits as any other caller's."""

from __future__ import annotations

import asyncio

from astra_mesh.client import Mesh
from astra_mesh.errors import AstraMeshError, NoPeerError
from astra_mesh.peer import Peer
from astra_mesh.peer.places import own_address


class Door:
    """One client of the peer, opened at its first use and again after it was lost."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._mesh: Mesh | None = None
        self._lock = asyncio.Lock()

    async def mesh(self) -> Mesh:
        """The open client.

        Raises:
            NoPeerError: The peer does not answer.
        """
        async with self._lock:
            if self._mesh is not None and not self._mesh.is_open:
                await self.close()
            if self._mesh is None:
                self._mesh = await self._open()
            return self._mesh

    async def close(self) -> None:
        """Say goodbye. Requests that run end."""
        mesh, self._mesh = self._mesh, None
        if mesh is not None:
            await mesh.close()

    async def _open(self) -> Mesh:
        if not self._peer.port:
            raise NoPeerError("the peer behind this API has stopped; start it again")
        try:
            config = self._peer.config
            place = own_address(config.listen, self._peer.port)
            return await Mesh(place, trust_dir=config.trust_dir, stays=True).open()
        except AstraMeshError as error:
            raise NoPeerError(
                f"the peer behind this API does not answer: {error.message}"
            ) from None
