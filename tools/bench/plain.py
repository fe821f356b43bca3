"""``python -m tools.bench.plain MODULE ...``: a program of astra_mesh that speaks without TLS,
and works as evenly as :mod:`tools.bench.even`.

Only for telling what TLS costs (:mod:`tools.bench.tls`), on networks made for that: there is nobody
to be kept out, and everybody is believed.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
import sys
from collections.abc import Callable, Sequence
from typing import Any, cast

from astra_mesh.client import finding
from astra_mesh.mesh import connect
from astra_mesh.mesh.trust import Known, Trust
from astra_mesh.peer import port
from astra_mesh.wire.messages import PeerId
from tools.bench.even import run, work_evenly


class PlainDoorman:
    """In the place of :class:`astra_mesh.mesh.doorman.Doorman`: lets all in."""

    def __init__(
        self,
        tls: Callable[[], ssl.SSLContext],
        whose: object,
        http: Callable[[], asyncio.Protocol],
        pair: object,
    ) -> None:
        self._http = http
        self._servers: list[asyncio.Server] = []
        self._opening: asyncio.Task[None] | None = None

    def open(self, sockets: Sequence[socket.socket]) -> None:
        """Listen, soon."""
        self._opening = asyncio.get_running_loop().create_task(self._open(sockets))

    async def _open(self, sockets: Sequence[socket.socket]) -> None:
        loop = asyncio.get_running_loop()
        for one in sockets:
            self._servers.append(await loop.create_server(self._http, sock=one))

    def upgraded(self, transport: asyncio.Transport | None) -> None:
        """Nothing is bounded here."""

    async def close(self) -> None:
        """Stop listening."""
        if self._opening is not None:
            await self._opening
        for server in self._servers:
            server.close()


def _anybody(trust: Trust) -> Known:
    """No id is proven, so that whatever the hello states is believed."""
    return Known(cast(PeerId, None), trust.device.id)


def take_tls_out() -> None:
    """Of this process, before it listens or dials."""
    without: Any = functools.partial(_dial, connect.dial)
    for module in (connect, finding):
        setattr(module, "dial", without)  # noqa: B010
    setattr(port, "Doorman", PlainDoorman)  # noqa: B010 (types)
    setattr(Trust, "whose_connection", lambda trust, secure: _anybody(trust))  # noqa: B010


async def _dial(dial: Any, *args: Any, secure: object = None, **options: Any) -> Any:
    return await dial(*args, **options)


if __name__ == "__main__":
    take_tls_out()
    work_evenly()
    run(sys.argv[1:])
