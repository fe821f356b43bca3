"""Who comes in: TLS first, then the certificate decides between the mesh and the pairing answer.

Nobody else is told anything. What is not yet a link is bounded in number, for each host and in all,
and in time: before TLS, before the upgrade to a WebSocket, and in a pairing. Where there is no room
the oldest of the host that takes most of it has to go, so that floods hurt their own host first.
And hosts begin only so many handshakes a second, as each costs this peer more than who begins it.
Those that members come from wait for their turn. All others share a few turns, and one too many is
closed as it is taken; the port rests a moment then.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from astra_mesh import limits
from astra_mesh.mesh.interfaces import is_loopback
from astra_mesh.mesh.listening import close_all, port_of
from astra_mesh.mesh.rate import Turns
from astra_mesh.mesh.room import Room
from astra_mesh.mesh.trust import Known

log = logging.getLogger(__name__)

_ACCEPT_RETRY_S: Final = 0.1  # after an error, such as too many open files

Accepted = tuple[socket.socket, Any]  # and an address of its family
OnPairing = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True)
class Waits:
    """How long each step may take, seconds."""

    handshake_s: float = limits.HANDSHAKE_S
    upgrade_s: float = limits.UPGRADE_S
    pairing_s: float = limits.PAIR_EXCHANGE_S


class Doorman:
    """Accepts connections for one peer.

    Args:
        tls: The context to use now.
        whose: Who shows a certificate; None for a stranger.
        http: Makes the protocol that serves a member.
        pair: Serves whoever shows no certificate.
        waits: Deadlines.
    """

    def __init__(
        self,
        tls: Callable[[], ssl.SSLContext],
        whose: Callable[[ssl.SSLObject | None], Known | None],
        http: Callable[[], asyncio.Protocol],
        pair: OnPairing,
        waits: Waits | None = None,
    ) -> None:
        self._tls, self._whose, self._http, self._pair = tls, whose, http, pair
        self._waits = waits or Waits()
        self._sockets: Sequence[socket.socket] = ()
        self._tasks: set[asyncio.Task[None]] = set()
        self._greeting = _room(limits.HANDSHAKES, limits.HANDSHAKES_PER_HOST)
        self._turns = Turns()
        self._pairing = _room(limits.PAIR_CONNECTIONS, limits.PAIR_CONNECTIONS)
        self._late: dict[asyncio.BaseTransport, asyncio.TimerHandle] = {}

    @property
    def port(self) -> int:
        """Where it listens."""
        return port_of(self._sockets[0]) if self._sockets else 0

    def open(self, sockets: Sequence[socket.socket]) -> None:
        """Begin to accept on listening sockets, which are its own from now on."""
        self._sockets = sockets
        for one in sockets:
            self._start(self._accept(one))

    async def close(self) -> None:
        """Stop accepting; end what is no link yet. May be called twice."""
        tasks, sockets = list(self._tasks), self._sockets
        self._sockets = ()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        close_all(sockets)
        for timer in self._late.values():
            timer.cancel()
        self._late.clear()

    def upgraded(self, transport: asyncio.BaseTransport | None) -> None:
        """A connection became a link, which has deadlines of its own."""
        timer = self._late.pop(transport, None) if transport is not None else None
        if timer is not None:
            timer.cancel()

    # --- inside -----------------------------------------------------------------------------------

    def _start(
        self, work: Coroutine[Any, Any, None], after: Callable[[], object] = lambda: None
    ) -> asyncio.Task[None]:
        """A task, and what is done when it is over, even if it was cancelled before it began."""
        task = asyncio.create_task(work, name="astra_mesh doorman")
        self._tasks.add(task)

        def over(_: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            after()

        task.add_done_callback(over)
        return task

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                came = await _next_at(listener)
                taken = [self._take(one, str(at[0]) if at else "") for one, at in came]
                if not all(taken):
                    await asyncio.sleep(limits.ACCEPT_REST_S)
            except OSError as error:
                log.warning("cannot take a connection: %s", error.strerror or error)
                await asyncio.sleep(_ACCEPT_RETRY_S)

    def _take(self, connection: socket.socket, host: str) -> bool:
        """Begin with a connection; False if it is a stranger's whose turn it is not."""
        waits = is_loopback(host) or self._turns.knows(host)
        if not waits and not self._turns.take(host, asyncio.get_running_loop().time()):
            connection.close()
            return False
        taken = _Taken(connection)
        task = self._start(self._greet(taken, host), taken.close)
        task.add_done_callback(self._greeting.leave)
        self._greeting.enter(task, host)
        return True

    async def _greet(self, taken: _Taken, host: str) -> None:
        """TLS; what follows it begins in :meth:`_enter`."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._waits.handshake_s
        try:
            async with asyncio.timeout_at(end):
                await taken.first_byte()
                await self._turn(host)
            await loop.connect_accepted_socket(
                lambda: _Usher(lambda transport: self._enter(transport, host)),
                taken.hand_over(),
                ssl=self._tls(),
                ssl_handshake_timeout=max(0.01, end - loop.time()),
                ssl_shutdown_timeout=limits.CLOSE_TIMEOUT_S,
            )
        except (OSError, TimeoutError) as error:  # ssl.SSLError is an OSError
            log.debug("a connection without a good TLS handshake: %s", error)

    async def _turn(self, host: str) -> None:
        """Of a host that members come from."""
        loop = asyncio.get_running_loop()
        while self._turns.knows(host) and not self._turns.take(host, loop.time()):  # noqa: ASYNC110
            await asyncio.sleep(1 / limits.HANDSHAKES_PER_S)  # turns come with time

    def _enter(self, transport: asyncio.Transport, host: str) -> None:
        """TLS is complete: whose connection is it?"""
        secure = transport.get_extra_info("ssl_object")
        known = self._whose(secure)
        if known is not None:
            if not is_loopback(host):
                self._turns.welcome(host)
            protocol = self._http()
            transport.set_protocol(protocol)
            protocol.connection_made(transport)
            loop = asyncio.get_running_loop()
            self._late[transport] = loop.call_later(
                self._waits.upgrade_s, self._too_late, transport
            )
        elif secure.getpeercert() is None:
            reader, writer = _streams(transport)
            task = self._start(self._serve_pairing(reader, writer), lambda: abandon(writer))
            task.add_done_callback(self._pairing.leave)
            self._pairing.enter(task, host)
        else:
            transport.abort()

    def _too_late(self, transport: asyncio.Transport) -> None:
        if self._late.pop(transport, None) is not None:
            transport.abort()

    async def _serve_pairing(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            async with asyncio.timeout(self._waits.pairing_s):
                await self._pair(reader, writer)
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, EOFError) as error:
            log.debug("a pairing that was not complete: %s", error)
        except Exception:
            log.exception("a pairing ended by an error of this peer")


class _Taken:
    """A connection that was accepted; closed unless a transport took it over."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection: socket.socket | None = connection

    async def first_byte(self) -> None:
        """Until it is there: whoever says nothing costs no TLS."""
        assert self._connection is not None
        with suppress(NotImplementedError):
            await _readable(self._connection)

    def hand_over(self) -> socket.socket:
        connection, self._connection = self._connection, None
        assert connection is not None
        return connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


async def _next_at(listener: socket.socket) -> list[Accepted]:
    """Connections and where they come from, at least one. Cancelled, it has taken none
    (``sock_accept`` may).
    """
    found: list[Accepted] = []
    while not found:
        try:
            await _readable(listener)
        except NotImplementedError:
            return [await asyncio.get_running_loop().sock_accept(listener)]
        try:
            while len(found) < limits.ACCEPTS:
                found.append(listener.accept())
                found[-1][0].setblocking(False)
        except BlockingIOError:
            pass  # all that were there are taken, or have gone
        except OSError:
            if not found:
                raise
    return found


async def _readable(one: socket.socket) -> None:
    """Until there is something to take.

    Raises:
        NotImplementedError: This loop cannot tell, as those of Windows.
    """
    loop, number = asyncio.get_running_loop(), one.fileno()
    came: asyncio.Future[None] = loop.create_future()
    loop.add_reader(number, _set, came)
    try:
        await came
    finally:
        loop.remove_reader(number)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class _Usher(asyncio.Protocol):
    """Stands in until the other end is known."""

    def __init__(self, enter: Callable[[asyncio.Transport], None]) -> None:
        self._enter = enter

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._enter(transport)  # type: ignore[arg-type]  # uvloop's are no subclasses


def _room(most: int, most_of_host: int) -> Room[asyncio.Task[None]]:
    return Room(most, lambda _: most_of_host, asyncio.Task.cancel)


def abandon(writer: asyncio.StreamWriter) -> None:
    """End a connection at once, without waiting for what was not sent."""
    writer.close()
    writer.transport.abort()


def _streams(
    transport: asyncio.Transport,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection as streams, as asyncio.start_server does it."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=limits.PAIR_FRAME_BYTES, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)
