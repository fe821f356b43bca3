"""The port that a peer listens on: TLS, pairing, links, and what else is served there."""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress
from typing import Final

from aiohttp import web

from astra_mesh import limits
from astra_mesh.errors import IdentityError, PortInUseError
from astra_mesh.mesh.doorman import Doorman
from astra_mesh.mesh.http_log import without_bad_requests
from astra_mesh.mesh.interfaces import is_loopback
from astra_mesh.mesh.invitations import Invitations
from astra_mesh.mesh.listening import listen, port_of
from astra_mesh.mesh.pairing_host import PairingHost
from astra_mesh.peer.config import DEFAULT_PORT, PeerConfig
from astra_mesh.peer.local import check_own_port
from astra_mesh.peer.security import Security

log = logging.getLogger(__name__)

_PORT_LOOK_S: Final = 0.05  # between two tries whether a port is free
_KEEPALIVE_S: Final = 10.0  # of idle HTTP connections
_HANDLERS_S: Final = 0.1  # for what serves them, once the links had their goodbyes


class Port:
    """Open from :meth:`open` to :meth:`close`.

    Attributes:
        number: Of the port; 0 before it was opened.
    """

    def __init__(self, config: PeerConfig, security: Security) -> None:
        self._config, self._security = config, security
        self._runner: web.AppRunner | None = None
        self._doorman: Doorman | None = None
        self.number = 0

    async def open(self, app: web.Application) -> None:
        """Serve ``app`` to members; PortInUseError if the port is taken."""
        # No handler_cancellation: a link sees by itself that its socket is gone, and says so.
        self._runner = web.AppRunner(
            app,
            keepalive_timeout=_KEEPALIVE_S,
            access_log=None,
            logger=without_bad_requests(__name__),
            shutdown_timeout=_HANDLERS_S,
        )
        await self._runner.setup()
        server = self._runner.server
        assert server is not None
        sockets = await self._sockets()
        self.number = port_of(sockets[0])
        trust = self._security.trust
        pairing = PairingHost(trust, self._security.identity)
        self._doorman = Doorman(
            self._security.server, trust.whose_connection, server, pairing.answer
        )
        self._doorman.open(sockets)

    async def _sockets(self) -> list[socket.socket]:
        wanted = self._config.port
        port = DEFAULT_PORT if wanted is None else wanted
        try:
            return await listen(self._config.listen, port)
        except PortInUseError:
            given_up = await self._of_pairing(port)
            if given_up is not None:
                return given_up
            if wanted is not None:
                await asyncio.to_thread(check_own_port, wanted)
                raise
            return await listen(self._config.listen, 0)

    async def _of_pairing(self, port: int) -> list[socket.socket] | None:
        """A port at which ``astra-mesh pair`` answers, which gives it to a peer that starts: the
        other device may dial it for good. None if it is not so, or does not give it up in time.

        Raises:
            PortInUseError: It does not, and no other port will do.
        """
        config, folder = self._config, self._security.trust.folder
        if config.ephemeral or is_loopback(config.listen or ""):
            return None  # it goes with its command, or the other device does not reach it
        with suppress(IdentityError):
            if not await asyncio.to_thread(Invitations(folder).want_port, port):
                return None
            with suppress(TimeoutError):
                async with asyncio.timeout(limits.PAIR_PORT_S):
                    return await _soon(config.listen, port)
            held = f"port {port} is that of `astra-mesh pair`, to which a device is just talking"
            if config.port is not None:
                raise PortInUseError(f"{held}: start this peer once that is over")
            log.warning(
                "%s: this peer listens on another one, and has to be started anew to be found at "
                "that address",
                held,
            )
        return None

    def upgraded(self, transport: asyncio.Transport | None) -> None:
        """A connection became a WebSocket."""
        if self._doorman is not None:
            self._doorman.upgraded(transport)

    async def close(self) -> None:
        """Stop listening, and end what came in by it."""
        doorman, self._doorman = self._doorman, None
        if doorman is not None:
            await doorman.close()
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()


async def _soon(host: str | None, port: int) -> list[socket.socket]:
    """Sockets on a port that is about to be free. Cancelled, it has opened none."""
    while True:
        with suppress(PortInUseError):
            return await listen(host, port)
        await asyncio.sleep(_PORT_LOOK_S)
