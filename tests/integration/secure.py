"""Dialling and serving as a member of the mesh of this test's user."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp

from astra_mesh.mesh.connect import Secure, dial
from astra_mesh.mesh.identity import Identity
from astra_mesh.mesh.trust import Trust
from astra_mesh.wire.messages import PeerId


class Caller:
    """One more program of this device, with an id of its own. Made by :meth:`new`."""

    def __init__(self, folder: Path | None = None) -> None:
        self.trust = Trust.open(folder)
        self.identity: Identity = self.trust.device.issue()
        self.tls = self.trust.tls(self.identity)
        self.secure = Secure(self.tls.client, self.trust.whose_connection)

    @classmethod
    async def new(cls, folder: Path | None = None) -> Caller:
        return await asyncio.to_thread(cls, folder)

    @property
    def id(self) -> PeerId:
        return self.identity.peer_id

    async def dial(self, http: aiohttp.ClientSession, port: int) -> aiohttp.ClientWebSocketResponse:
        return await dial(http, "127.0.0.1", port, secure=self.secure)
