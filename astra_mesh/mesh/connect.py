"""Opening WebSockets for links: the dialling side and the serving side (``/mesh``)."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

import aiohttp
from aiohttp import web
from yarl import URL

from astra_mesh import limits
from astra_mesh.errors import MeshError, NoPeerError
from astra_mesh.mesh.link import Link
from astra_mesh.mesh.session import Session
from astra_mesh.mesh.timings import Timings

PATH: Final = "/mesh"
_STAGGER_S: Final = 0.25  # between the addresses of one peer, which are tried side by side

Address = tuple[str, int]  # host or IP address (IPv6 with a scope where it needs one), port
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def dial(
    http: aiohttp.ClientSession,
    host: str,
    port: int,
    *,
    timings: Timings | None = None,
    tls: ssl.SSLContext | None = None,
) -> aiohttp.ClientWebSocketResponse:
    """Open a WebSocket to a peer. Cancelling it leaves nothing open.

    Raises:
        NoPeerError: Nobody answers there, or not as a peer.
    """
    timings = timings if timings is not None else Timings()
    where = f"{host}:{port}" if ":" not in host else f"[{host}]:{port}"
    try:
        url = URL.build(scheme="https" if tls else "http", host=host, port=port, path=PATH)
        async with asyncio.timeout(timings.dial_s):
            return await http.ws_connect(
                url,
                max_msg_size=limits.FRAME_BYTES,
                compress=0,
                autoping=True,
                heartbeat=None,  # the session has its own, which dripping bytes do not defeat
                timeout=aiohttp.ClientWSTimeout(ws_receive=None, ws_close=timings.close_s),
                ssl=tls if tls is not None else True,
            )
    except TimeoutError:
        why = f"no answer within {timings.dial_s:g} s"
    except aiohttp.WSServerHandshakeError as exc:
        why = f"what answers there is no astra_mesh peer (HTTP {exc.status})"
    except (aiohttp.ClientError, OSError, ValueError) as exc:
        why = _short(exc)
    raise NoPeerError(
        f"no peer at {where}: {why}. Check that `astra-mesh peer` runs there, that the address is "
        "right, and that no firewall blocks the port"
    )


async def dial_any(
    http: aiohttp.ClientSession,
    addresses: Sequence[Address],
    *,
    timings: Timings | None = None,
    tls: ssl.SSLContext | None = None,
) -> tuple[aiohttp.ClientWebSocketResponse, Address]:
    """Open a WebSocket to the first of a peer's addresses that answers.

    Raises:
        NoPeerError: None does; the text is that of the last.
    """
    won: list[tuple[aiohttp.ClientWebSocketResponse, Address]] = []
    errors: list[MeshError] = []
    decided = asyncio.Event()

    async def attempt(place: int, address: Address) -> None:
        await asyncio.sleep(place * _STAGGER_S)
        try:
            socket = await dial(http, *address, timings=timings, tls=tls)
        except NoPeerError as exc:
            errors.append(exc)
        else:
            won.append((socket, address))
        if won or len(errors) == len(tried):
            decided.set()

    tried = list(addresses)[: limits.DIAL_ADDRESSES]
    if not tried:
        raise NoPeerError("the peer announced no address")
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(attempt(*item)) for item in enumerate(tried)]
            await decided.wait()
            for task in tasks:
                task.cancel()
    except BaseException:
        for socket, _ in won:
            await _drop(socket)
        raise
    for socket, _ in won[1:]:
        await _drop(socket)
    if not won:
        raise errors[-1]
    return won[0]


async def _drop(socket: aiohttp.ClientWebSocketResponse) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(0):
            await socket.close()


def websocket_handler(
    make_session: Callable[[], Session],
    on_link: Callable[[Link], Awaitable[None]],
    *,
    timings: Timings | None = None,
    max_links: int = limits.LINKS,
) -> Handler:
    """The aiohttp handler of :data:`PATH`.

    Args:
        make_session: A fresh session for each connection.
        on_link: Runs the link; the connection ends when it returns.
        timings: Deadlines.
        max_links: Connections at once; more are told to come back later (HTTP 503).
    """
    timings = timings if timings is not None else Timings()
    served = 0

    async def handle(request: web.Request) -> web.StreamResponse:
        nonlocal served
        if "Origin" in request.headers:
            return web.Response(status=403, text="web pages cannot open links to this peer\n")
        if served >= max_links:
            return web.Response(status=503, text="this peer has as many links as it takes\n")
        socket = web.WebSocketResponse(
            timeout=timings.close_s,
            autoping=True,
            heartbeat=None,
            compress=False,
            max_msg_size=limits.FRAME_BYTES,
            writer_limit=limits.UNSENT_BYTES // 4,
        )
        if not socket.can_prepare(request).ok:
            return web.Response(status=426, text="this is the address of a WebSocket\n")
        try:
            await socket.prepare(request)
        except ConnectionError:  # whoever dialled gave up: this process stood still meanwhile
            return web.Response(status=408)
        link = Link(
            socket, make_session(), timings=timings, dialled=False, address=_remote(request)
        )
        served += 1
        try:
            await on_link(link)
        finally:
            served -= 1
        return socket

    return handle


def _remote(request: web.Request) -> str:
    name = request.transport.get_extra_info("peername") if request.transport else None
    if not isinstance(name, tuple):
        return "?"
    host, port = name[:2]
    if len(name) > 3 and name[3] and "%" not in host:  # a link-local address needs its interface
        host = f"{host}%{name[3]}"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _short(exc: BaseException) -> str:
    if isinstance(exc, aiohttp.ClientConnectorError):
        return exc.strerror or str(exc.os_error)
    return str(exc) or type(exc).__name__
