"""A WebSocket whose messages are sealed (:mod:`astra_mesh.mesh.sealed`), for a link."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import WSMsgType

from astra_mesh import limits
from astra_mesh.errors import DeadlineError, PeerLostError, ProtocolError
from astra_mesh.mesh.sealed import Answerer, Channel, Opener, Speaker
from astra_mesh.mesh.sockets import Socket
from astra_mesh.mesh.trust import Known
from astra_mesh.wire.messages import PeerId


class SealedSocket:
    """What a link reads and writes after the handshake."""

    def __init__(self, inner: Socket, channel: Channel) -> None:
        self._inner, self._channel = inner, channel
        self._writer = getattr(inner, "_writer", None)  # for astra_mesh.mesh.sockets

    async def receive(self) -> aiohttp.WSMessage:
        """The next frame; one that does not open is an error, and the last."""
        message = await self._inner.receive()
        if message.type is not WSMsgType.BINARY:
            return message
        try:
            return aiohttp.WSMessage(WSMsgType.BINARY, self._channel.open(message.data), None)
        except ProtocolError as error:
            return aiohttp.WSMessage(WSMsgType.ERROR, error, None)

    async def send_bytes(self, data: bytes) -> None:
        """Seal a frame and send it."""
        await self._inner.send_bytes(self._channel.seal(data))

    async def close(self) -> bool:
        """The closing handshake of the WebSocket."""
        return await self._inner.close()


async def open_sealed(
    socket: Socket, me: Speaker, expected: PeerId, within_s: float = limits.HANDSHAKE_S
) -> SealedSocket:
    """The opening end of the handshake.

    Raises:
        ProtocolError: Another peer answers, or something was altered.
        PeerLostError, DeadlineError: The other end is gone, or says nothing.
    """
    opener = Opener(me, expected)
    async with _deadline(within_s):
        await socket.send_bytes(opener.first)
        third, channel = opener.finish(await receive_bytes(socket))
        await socket.send_bytes(third)
    return SealedSocket(socket, channel)


async def answer_sealed(
    socket: Socket,
    me: Speaker,
    judge: Callable[[bytes], Known],
    within_s: float = limits.HANDSHAKE_S,
) -> tuple[SealedSocket, Known]:
    """The answering end of the handshake.

    Args:
        socket: Where it happens.
        me: This end.
        judge: Who has a certificate; ProtocolError if it does not count here.
        within_s: How long it may take.

    Raises:
        ProtocolError: Whoever opens is nobody for ``judge``, or something was altered.
        PeerLostError, DeadlineError: The other end is gone, or says nothing.
    """
    async with _deadline(within_s):
        answerer = Answerer(me, await receive_bytes(socket))
        known = judge(answerer.certificate)
        await socket.send_bytes(answerer.second)
        channel = answerer.finish(await receive_bytes(socket))
    return SealedSocket(socket, channel), known


async def receive_bytes(socket: Socket) -> bytes:
    """The next message, which must be a binary one.

    Raises:
        PeerLostError: The connection is over.
        ProtocolError: It is something else.
    """
    message = await socket.receive()
    if message.type is WSMsgType.BINARY:
        return bytes(message.data)
    if message.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED):
        raise PeerLostError("the connection was closed before the channel was open")
    raise ProtocolError("a channel that begins with something that is no binary message")


@asynccontextmanager
async def _deadline(within_s: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(within_s):
            yield
    except TimeoutError:
        raise DeadlineError(f"the channel was not open within {within_s:g} s") from None
    except (ConnectionError, aiohttp.ClientError) as error:
        raise PeerLostError(f"the connection broke before the channel was open: {error}") from None
