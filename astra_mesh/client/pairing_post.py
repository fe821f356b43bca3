"""Where a device can be reached for pairing: at a peer that runs, or at a post meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final

from astra_mesh.client.addresses import DEFAULT_PORT
from astra_mesh.errors import PortInUseError
from astra_mesh.mesh.connect import Address, show_address
from astra_mesh.mesh.discovery import Discovery
from astra_mesh.mesh.doorman import Doorman
from astra_mesh.mesh.interfaces import is_loopback
from astra_mesh.mesh.listening import listen
from astra_mesh.mesh.pairing_host import PairingHost
from astra_mesh.mesh.trust import Trust
from astra_mesh.peer.local import local_peers
from astra_mesh.peer.places import own_hosts
from astra_mesh.wire.messages import PeerId

_SHOWN: Final = 3  # addresses in a QR; more make it too large to scan


@dataclass(frozen=True)
class Post:
    """Where a device answers to pairings.

    Attributes:
        near: Addresses at which it really answers, the likeliest first.
        far: Those of them that other devices can dial.
        note: What a person has to know if there are none of these; else empty.
        port: Of this program, which answers itself; 0: a peer does.
    """

    near: tuple[str, ...]
    far: tuple[str, ...]
    note: str = ""
    port: int = 0


def post_at(host: str | None, port: int) -> Post:
    """Where something answers that listens on a port of ``host``; None: of all addresses."""
    hosts = own_hosts(host, link_local=False)[:_SHOWN]
    near = tuple(show_address((one, port)) for one in hosts)
    far = tuple(show_address((one, port)) for one in hosts if not is_loopback(one))
    if far:
        return Post(near, far)
    if host and is_loopback(host):
        why = (
            f"the peer of this device listens on {host} only, where no other device can reach it; "
            "start it without --listen, or with --listen and an address that others see"
        )
    else:
        why = "this device is in no network, so no other can reach it; join the Wi-Fi of the others"
    return Post(near, far, why)


async def pairing_post(stack: AsyncExitStack, trust: Trust) -> Post:
    """Where a guest finds this device; ``stack`` ends what was started for it, as is to be done
    when a peer starts that waits for the port.
    """
    posts = [post_at(*place) for place in await asyncio.to_thread(_peers_here)]
    if not posts:
        port = await _open_post(stack, trust)
        return replace(post_at(None, port), port=port)
    return next((post for post in posts if post.far), posts[0])


def _peers_here() -> list[Address]:
    """What the peers of this user listen on ("": everything), the newest first."""
    return [(peer.listen, peer.port) for peer in reversed(local_peers())]


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
    await stack.enter_async_context(_announced(identity.peer_id, trust.name, doorman.port))
    return doorman.port


@asynccontextmanager
async def _announced(peer: PeerId, name: str, port: int) -> AsyncIterator[None]:
    discovery = Discovery(peer, name, port, on_found=lambda *_: None, on_gone=lambda peer: None)
    task = asyncio.create_task(discovery.run(), name="astra_mesh announcement")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
