"""Opening WebSockets for links: the dialling side and the serving side (``/mesh``)."""

from __future__ import annotations

import asyncio
import socket as sockets
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, TypeVar

import aiohttp
from aiohttp import web
from yarl import URL

from astra_mesh import limits
from astra_mesh.errors import MeshError, NoPeerError, NotPairedError
from astra_mesh.mesh.link import Link
from astra_mesh.mesh.session import Session
from astra_mesh.mesh.sockets import close_soon
from astra_mesh.mesh.timings import Timings
from astra_mesh.mesh.trust import Known
from astra_mesh.wire.messages import DeviceId

PATH: Final = "/mesh"
_STAGGER_S: Final = 0.25  # between the addresses of one peer, which are tried side by side

_NOT_TLS: Final = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE")
TLS_NAME: Final = "astra-mesh"  # what TLS is told instead of an address; ids prove who answers

Address = tuple[str, int]  # host or IP address (IPv6 with a scope where it needs one), port
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
T = TypeVar("T")


def show_address(address: Address) -> str:
    """An address for people, and for whoever is to dial it: ``host:port`` or ``[IPv6]:port``."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def link_url(address: Address, path: str = PATH, *, secure: bool) -> URL:
    """What is asked for when an address is dialled."""
    host, port = address
    return URL.build(scheme="https" if secure else "http", host=host, port=port, path=path)


@dataclass(frozen=True)
class Secure:
    """How to dial members of a mesh.

    Attributes:
        tls: With the own certificate, and those of all members.
        whose: Who is at the other end of a connection; None: no member.
    """

    tls: ssl.SSLContext
    whose: Callable[[ssl.SSLObject | None], Known | None]

    def known(self, socket: aiohttp.ClientWebSocketResponse) -> Known | None:
        """Who is at the other end."""
        return self.whose(socket.get_extra_info("ssl_object"))


async def dial(
    http: aiohttp.ClientSession,
    host: str,
    port: int,
    *,
    path: str = PATH,
    timings: Timings | None = None,
    secure: Secure | None = None,
) -> aiohttp.ClientWebSocketResponse:
    """Open a WebSocket to a peer. Cancelling it leaves nothing open.

    Args:
        http: Whose connections are used.
        host: Name or address.
        port: Of the peer.
        path: Where links are, or a tab's way through another peer.
        timings: Deadlines.
        secure: How; None: without TLS, for tests of what lies above it.

    Raises:
        NoPeerError: Nobody answers there, or not as a peer.
        NotPairedError: The device that answers is no member of this mesh, or does not know us.
    """
    timings = timings if timings is not None else Timings()
    where, ended = show_address((host, port)), False
    try:
        url = link_url((host, port), path, secure=secure is not None)
        async with asyncio.timeout(timings.dial_s):
            socket = await http.ws_connect(
                url,
                max_msg_size=limits.SEALED_FRAME_BYTES,
                compress=0,
                autoping=True,
                heartbeat=None,  # the session has its own, which dripping bytes do not defeat
                timeout=aiohttp.ClientWSTimeout(ws_receive=None, ws_close=timings.close_s),
                ssl=secure.tls if secure is not None else True,
                server_hostname=TLS_NAME if secure is not None else None,
            )
        if secure is None or secure.known(socket) is not None:
            return socket
        await _drop(socket)
        raise NotPairedError(_not_paired(where))
    except TimeoutError:
        why = f"no answer within {timings.dial_s:g} s"
    except aiohttp.WSServerHandshakeError as exc:
        why = f"what answers there is no astra_mesh peer (HTTP {exc.status})"
    except (aiohttp.ClientError, OSError, ValueError) as exc:
        if _is_about_certificates(exc):
            raise NotPairedError(_not_paired(where)) from None
        why, ended = _short(exc), _is_end(exc)
    if ended and secure is not None:
        device = await ends_at_once((host, port), secure, timings.dial_s)
        if device is not None:
            error = NotPairedError(forgotten(f"the paired device at {where}"))
            error.ended_by = device
            raise error
    raise NoPeerError(
        f"no peer at {where}: {why}. Check that `astra-mesh peer` runs there, that the address is "
        "right, and that no firewall blocks the port"
    )


async def ends_at_once(
    address: Address, secure: Secure, dial_s: float = limits.DIAL_TIMEOUT_S
) -> DeviceId | None:
    """The member that answers there and ends the connection by itself right after the handshake.

    Who does not know our certificate does that: by TLS 1.3 our handshake is complete before the
    other end judges it, and asyncio sends no alert. Who knows it waits for a request, and who died
    takes no connection. That is a hint and no proof: who is on the way can cut connections too. So
    it is good for a sentence, and nothing else may follow from it.
    """
    writer = None
    try:
        async with asyncio.timeout(dial_s):
            host, port = await resolved(address)
            reader, writer = await asyncio.open_connection(
                host, port, ssl=secure.tls, server_hostname=TLS_NAME
            )
        known = secure.whose(writer.get_extra_info("ssl_object"))
        return known.device if known is not None and await _is_ended(reader) else None
    except (TimeoutError, OSError):
        return None
    finally:
        if writer is not None:
            writer.transport.abort()


async def _is_ended(reader: asyncio.StreamReader) -> bool:
    try:
        async with asyncio.timeout(limits.ENDS_AT_ONCE_S):
            return not await reader.read(1)
    except TimeoutError:
        return False
    except OSError:  # an alert, or a reset
        return True


async def resolved(address: Address) -> Address:
    """The address with a number for its name: uvloop leaves a lookup that it began for a
    connection alone once that is given up, so nobody hears that it failed.
    """
    host, port = address
    with suppress(ValueError):
        ip_address(host)
        return address
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=sockets.SOCK_STREAM)
    flags = sockets.NI_NUMERICHOST | sockets.NI_NUMERICSERV
    number, _ = sockets.getnameinfo(found[0][4], flags)
    return number, port


async def dial_any(
    http: aiohttp.ClientSession,
    addresses: Sequence[Address],
    *,
    path: str = PATH,
    timings: Timings | None = None,
    secure: Secure | None = None,
) -> tuple[aiohttp.ClientWebSocketResponse, Address]:
    """Open a WebSocket to the first of a peer's addresses that answers.

    Raises:
        NoPeerError, NotPairedError: None does; as :func:`first_of`.
    """

    async def attempt(address: Address) -> aiohttp.ClientWebSocketResponse:
        return await dial(http, *address, path=path, timings=timings, secure=secure)

    return await first_of(addresses, attempt, _drop)


async def first_of(
    addresses: Sequence[Address],
    attempt: Callable[[Address], Awaitable[T]],
    drop: Callable[[T], Awaitable[None]],
) -> tuple[T, Address]:
    """What the first of a peer's addresses gave that answers; they are tried side by side.

    Args:
        addresses: Of one peer.
        attempt: Opens something there, or raises MeshError.
        drop: Ends what another address gave later.

    Raises:
        MeshError: None does: that of a member that does not know us, else what the last one raised.
    """
    won: list[tuple[T, Address]] = []
    errors: list[MeshError] = []
    decided = asyncio.Event()

    async def one(place: int, address: Address) -> None:
        await asyncio.sleep(place * _STAGGER_S)
        try:
            opened = await attempt(address)
        except MeshError as exc:
            errors.append(exc)
        else:
            won.append((opened, address))
        if won or len(errors) == len(tried):
            decided.set()

    tried = list(addresses)[: limits.DIAL_ADDRESSES]
    if not tried:
        raise NoPeerError("the peer announced no address")
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(*item)) for item in enumerate(tried)]
            await decided.wait()
            for task in tasks:
                task.cancel()
    except BaseException:
        for opened, _ in won:
            await drop(opened)
        raise
    for opened, _ in won[1:]:
        await drop(opened)
    if not won:
        raise next((error for error in errors if is_of_member(error)), errors[-1])
    return won[0]


def is_of_member(error: MeshError) -> bool:
    """Whether a member of the mesh, by its certificate, ended the connection that was dialled."""
    return isinstance(error, NotPairedError) and bool(error.ended_by)


async def _drop(socket: aiohttp.ClientWebSocketResponse) -> None:
    await close_soon(socket, 0.0)


class Places:
    """How many connections there may be, and of one device."""

    def __init__(self, most: int = limits.LINKS) -> None:
        self._most = most
        self._taken: Counter[DeviceId | None] = Counter()

    @contextmanager
    def take(self, device: DeviceId | None) -> Iterator[None]:
        """A place, as long as the ``with`` lasts.

        Raises:
            web.HTTPServiceUnavailable: There is none.
        """
        if self._taken.total() >= self._most or self._taken[device] >= limits.LINKS_PER_DEVICE:
            raise web.HTTPServiceUnavailable(text="this peer has as many links as it takes\n")
        self._taken[device] += 1
        try:
            yield
        finally:
            self._taken[device] -= 1
            if not self._taken[device]:
                del self._taken[device]


async def upgrade(
    request: web.Request, max_bytes: int, close_s: float
) -> web.WebSocketResponse | None:
    """The WebSocket that was asked for; None if whoever asked is gone.

    Raises:
        web.HTTPException: A page asks, or no WebSocket is asked for.
    """
    if "Origin" in request.headers:
        raise web.HTTPForbidden(text="web pages cannot open links to this peer\n")
    socket = web.WebSocketResponse(
        timeout=close_s,
        autoping=True,
        heartbeat=None,
        compress=False,
        max_msg_size=max_bytes,
        writer_limit=limits.UNSENT_BYTES // 4,
    )
    if not socket.can_prepare(request).ok:
        raise web.HTTPUpgradeRequired(text="this is the address of a WebSocket\n")
    try:
        await socket.prepare(request)
    except ConnectionError:  # whoever dialled gave up: this process stood still meanwhile
        return None
    return socket


def websocket_handler(
    make_session: Callable[[Known | None], Session],
    on_link: Callable[[Link, Known | None], Awaitable[None]],
    *,
    whose: Callable[[ssl.SSLObject | None], Known | None] = lambda secure: None,
    timings: Timings | None = None,
    places: Places | None = None,
    upgraded: Callable[[asyncio.Transport | None], None] = lambda transport: None,
) -> Handler:
    """The aiohttp handler of :data:`PATH`.

    Args:
        make_session: A fresh session for a connection, and who is there by its certificate.
        on_link: Runs the link; the connection ends when it returns.
        whose: Who is at the other end of a TLS connection.
        timings: Deadlines.
        places: For connections at once; more are told to come back later (HTTP 503).
        upgraded: Told the transport of each connection that became a WebSocket.
    """
    timings = timings if timings is not None else Timings()
    places = places if places is not None else Places()

    async def handle(request: web.Request) -> web.StreamResponse:
        known = whose(request.get_extra_info("ssl_object"))
        with places.take(known.device if known is not None else None):
            socket = await upgrade(request, limits.FRAME_BYTES, timings.close_s)
            if socket is None:
                return web.Response(status=408)
            upgraded(request.transport)
            session, address = make_session(known), remote(request)
            link = Link(socket, session, timings=timings, dialled=False, address=address)
            await on_link(link, known)
        return socket

    return handle


def remote(request: web.Request) -> str:
    """Where a connection comes from, for people."""
    name = request.transport.get_extra_info("peername") if request.transport else None
    if not isinstance(name, tuple):
        return "?"
    host, port = name[:2]
    if len(name) > 3 and name[3] and "%" not in host:  # a link-local address needs its interface
        host = f"{host}%{name[3]}"
    return show_address((host, port))


def _not_paired(where: str) -> str:
    return (
        f"the device at {where} and this one are not paired: run `astra-mesh pair` on one of them, "
        "and give the code that it shows to `astra-mesh pair CODE` on the other"
    )


def forgotten(who: str) -> str:
    """What to say of a member that ends connections as :func:`ends_at_once` tells."""
    return (
        f"{who} ends each connection right after the handshake: it probably does not know this "
        "device any more (somebody shut it out by `astra-mesh unpair`, or that device left the "
        "mesh), or not yet. If it stays so, pair again: `astra-mesh pair` there, and here "
        "`astra-mesh pair CODE` with the code that it shows"
    )


def over(until: int) -> str:
    """What to say where this device's time as a guest is over: no other answers it."""
    moment = time.strftime("%Y-%m-%d %H:%M", time.localtime(until))
    return (
        f"this device was a guest until {moment} (by its own clock), so the others let it in no "
        "more. To come back: `astra-mesh pair` on one of them, and here `astra-mesh pair CODE` "
        "with the code that it shows"
    )


def _is_end(exc: BaseException) -> bool:
    """Whether a connection was there and is over, before any answer."""
    ended = isinstance(exc, aiohttp.ServerDisconnectedError | OSError)
    return ended and not isinstance(exc, aiohttp.ClientConnectorError)


def _is_about_certificates(exc: BaseException | None) -> bool:
    """Whether one of the ends does not know the other one's device."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return True
    # aiohttp has SSL errors of its own, without a reason.
    if isinstance(exc, ssl.SSLError) and "ALERT" in (getattr(exc, "reason", None) or "").upper():
        return True
    if isinstance(exc, aiohttp.ClientConnectorCertificateError):
        return True
    inner = getattr(exc, "os_error", None) or (exc.__cause__ if exc is not None else None)
    return inner is not None and inner is not exc and _is_about_certificates(inner)


def no_tls(exc: BaseException) -> str | None:
    """What to say of an end that answers without TLS, as other ports than those of peers do."""
    inner = getattr(exc, "os_error", exc)
    if isinstance(inner, ssl.SSLError) and (inner.reason or "") in _NOT_TLS:
        return (
            "what answers there is no port of the mesh (perhaps the API's, or the page's): "
            "`astra-mesh peer` prints its own behind `at`"
        )
    return None


def _short(exc: BaseException) -> str:
    if (why := no_tls(exc)) is not None:
        return why
    if isinstance(exc, aiohttp.ClientConnectorError):
        return exc.strerror or str(exc.os_error)
    return str(exc) or type(exc).__name__
