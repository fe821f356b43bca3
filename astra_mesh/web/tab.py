"""``/tab``: one WebSocket on which a browser tab takes part in the mesh (docs/browser-peer.md).

Text messages are JSON (:mod:`astra_mesh.web.tab_messages`), binary ones carry channels: four bytes
of number, then what the tab and another peer say to each other, sealed.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import logging
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from aiohttp import WSMsgType, web

from astra_mesh import limits
from astra_mesh.errors import PeerLostError, ProtocolError
from astra_mesh.mesh.identity import peer_id
from astra_mesh.mesh.interfaces import own_addresses
from astra_mesh.mesh.sockets import close_soon, tune
from astra_mesh.peer import Peer
from astra_mesh.web.errors import busy
from astra_mesh.web.guard import check_protocol
from astra_mesh.web.state import STATE, State
from astra_mesh.web.tab_messages import CHANNEL_BYTES, VERSION, Join, read, read_key, text_of
from astra_mesh.web.tab_served import Tab
from astra_mesh.wire.codec import sanitise

log = logging.getLogger(__name__)

PATH: Final = "/tab"
PROTOCOL: Final = "astra-mesh.tab"
_CLOSE_S: Final = 1.0


async def tab(request: web.Request) -> web.WebSocketResponse:
    """Handle ``GET /tab``, until the tab goes away."""
    state = request.app[STATE]
    socket = web.WebSocketResponse(
        protocols=(PROTOCOL,),
        heartbeat=limits.TAB_BEAT_S,
        timeout=_CLOSE_S,
        compress=False,
        max_msg_size=limits.SEALED_FRAME_BYTES + CHANNEL_BYTES,
        writer_limit=limits.UNSENT_BYTES // 4,
    )
    with _place(state):  # checked first: a tab asks here over HTTP why its WebSocket was refused
        check_protocol(request.headers, PROTOCOL)
        if not socket.can_prepare(request):
            raise web.HTTPUpgradeRequired(
                reason="this address speaks WebSocket: open the page at /"
            )
        await socket.prepare(request)
        tune(socket)
        try:
            await _serve(socket, state, request.remote or "")
        except* (PeerLostError, ConnectionError) as errors:
            log.debug("a tab is gone: %s", errors.exceptions[0])
        finally:
            await close_soon(socket, _CLOSE_S)
    return socket


@contextmanager
def _place(state: State) -> Iterator[None]:
    if state.tabs >= limits.TABS:
        raise busy(f"{limits.TABS} tabs take part through this peer already; close one of them")
    state.tabs += 1
    try:
        yield
    finally:
        state.tabs -= 1


async def _serve(socket: web.WebSocketResponse, state: State, remote: str) -> None:
    """All that one tab does; what it does wrong ends it with a reason."""
    try:
        join = await _first(socket)
        peer = state.peer
        certificate, until = await asyncio.to_thread(_certify, peer, join)
        served = Tab(socket, peer, peer_id(certificate), state.config.write_s)
        welcome = text_of(
            "welcome",
            version=VERSION,
            peer=served.id,
            certificate=b64encode(certificate).decode(),
            until=until,
            host={"id": peer.id, "name": peer.name},
            machine=await asyncio.to_thread(_machine, peer, remote),
            seal=b64encode(state.envelopes.point).decode(),
        )
        with peer.tabs.hosting(served.id, served.accept):
            await served.run(welcome, until)
    except* ProtocolError as errors:
        error = errors.exceptions[0]
        log.info("a tab was refused: %s", error)
        with suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await socket.send_str(text_of("refused", why=sanitise(str(error))))


async def _first(socket: web.WebSocketResponse) -> Join:
    try:
        async with asyncio.timeout(limits.TAB_JOIN_S):
            message = await socket.receive()
    except TimeoutError:
        raise ProtocolError(f"no join within {limits.TAB_JOIN_S:g} s") from None
    if message.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED):
        raise PeerLostError("it left before it joined")
    join = read(message.data) if message.type is WSMsgType.TEXT else None
    if not isinstance(join, Join):
        raise ProtocolError("something else than join as the first message")
    return join


def _certify(peer: Peer, join: Join) -> tuple[bytes, int]:
    """A certificate for the tab's key, and until when it holds."""
    assert peer.trust is not None  # it runs
    until = int(time.time() + limits.TAB_S)
    try:
        return peer.trust.device.issue_tab(read_key(join.key), until), until
    except ValueError as error:
        raise ProtocolError(str(error)) from None


def _machine(peer: Peer, remote: str) -> str:
    """What the tab is to tell as its machine, which it cannot know: tabs of one device, and those
    on the machine of this peer, share its cores."""
    address = ipaddress.ip_address(remote.partition("%")[0])
    address = getattr(address, "ipv4_mapped", None) or address
    if address.is_loopback or address in own_addresses():
        return peer.device.host
    seed = f"astra-mesh-tab\0{peer.device.host}\0{address}"
    return hashlib.sha256(seed.encode()).hexdigest()[:16]
