"""Where a device can be reached for pairing: at a peer that runs, or at a post meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from astra_mesh.client.addresses import DEFAULT_PORT
from astra_mesh.errors import PortInUseError
from astra_mesh.mesh.connect import show_address
from astra_mesh.mesh.discovery import Discovery
from astra_mesh.mesh.doorman import Doorman
from astra_mesh.mesh.interfaces import own_addresses
from astra_mesh.mesh.listening import listen
from astra_mesh.mesh.pairing_host import PairingHost, own_name
from astra_mesh.mesh.trust import Trust
from astra_mesh.peer.local import local_peers
from astra_mesh.wire.messages import PeerId

_SHOWN = 3  # addresses in a QR; more make it too large to scan


async def pairing_addresses(stack: AsyncExitStack, trust: Trust) -> list[str]:
    """Addresses of this device for a guest; ``stack`` ends what was started for it."""
    peers = await asyncio.to_thread(local_peers)
    port = peers[-1].port if peers else await _open_post(stack, trust)
    hosts = [str(ip) for ip in own_addresses() if not ip.is_link_local]
    return [show_address((host, port)) for host in hosts[:_SHOWN]]


async def _open_post(stack: AsyncExitStack, trust: Trust) -> int:
    """No peer runs: answer to pairings here."""
    identity = trust.device.issue()
    tls = await asyncio.to_thread(trust.tls, identity)
    host = PairingHost(trust, identity)
    doorman = Doorman(lambda: tls.server, lambda secure: None, asyncio.Protocol, host.answer)
    try:
        sockets = await listen(None, DEFAULT_PORT)
    except PortInUseError:
        sockets = await listen(None, 0)
    stack.push_async_callback(doorman.close)
    doorman.open(sockets)
    await stack.enter_async_context(_announced(identity.peer_id, doorman.port))
    return doorman.port


@asynccontextmanager
async def _announced(peer: PeerId, port: int) -> AsyncIterator[None]:
    discovery = Discovery(
        peer, own_name(), port, on_found=lambda *_: None, on_gone=lambda peer: None
    )
    task = asyncio.create_task(discovery.run(), name="astra_mesh announcement")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
