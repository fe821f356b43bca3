"""One channel of a tab: what the tab sends goes to a peer's socket, and the other way round."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

import aiohttp
from aiohttp import WSMsgType

from astra_mesh import limits
from astra_mesh.mesh.sockets import Socket, close_soon, tune


class Load:
    """Bytes that a tab sent and that no peer has taken yet, of all its channels.

    Whoever reads from the tab waits for :meth:`room`, so that a tab that sends faster than others
    take fills no memory here.
    """

    def __init__(self, most: int = limits.TAB_WAITING_BYTES) -> None:
        self._most = most
        self._bytes = 0
        self._room = asyncio.Event()
        self._room.set()

    def add(self, size: int) -> None:
        """More (or, negative, less) is waiting."""
        self._bytes += size
        if self._bytes < self._most:
            self._room.set()
        else:
            self._room.clear()

    async def room(self) -> None:
        """Return when little enough is waiting."""
        await self._room.wait()


class Channel:
    """One channel, from when its number is known.

    Args:
        load: Of the tab.
        deliver: Sends a payload to the tab; it waits while the tab does not read, and raises when
            the tab is gone.
    """

    def __init__(self, load: Load, deliver: Callable[[bytes], Awaitable[None]]) -> None:
        self._load, self._deliver = load, deliver
        self._waiting: deque[bytes] = deque()
        self._news = asyncio.Event()
        self._over = False
        self.task: asyncio.Task[None] | None = None  # that carries it

    def put(self, payload: bytes) -> None:
        """The tab sent something."""
        if self._over:
            return
        self._waiting.append(payload)
        self._load.add(len(payload))
        self._news.set()

    def drop(self) -> None:
        """Nothing more is taken from the tab; what waits is dropped."""
        self._over = True
        self._load.add(-sum(map(len, self._waiting)))
        self._waiting.clear()

    def end(self) -> None:
        """The same, and whoever carries it stops."""
        self.drop()
        if self.task is not None:
            self.task.cancel()

    async def carry(self, far: Socket) -> str:
        """Carry both ways until the peer's side is over; why it is. The socket is closed then.

        Cancelling it closes the socket too.
        """
        tune(far)
        up = asyncio.create_task(self._up(far), name="astra_mesh tab channel")
        try:
            return await self._down(far)
        finally:
            up.cancel()
            try:  # a tab that vanishes ends this twice: by its group, and as its channel
                await asyncio.wait([up])
            finally:
                await close_soon(far, limits.CLOSE_TIMEOUT_S)

    async def _up(self, far: Socket) -> None:
        while True:
            self._news.clear()
            while self._waiting:
                try:
                    await far.send_bytes(self._waiting[0])
                except (ConnectionError, aiohttp.ClientError, RuntimeError):
                    return  # reading tells why
                if self._waiting:
                    self._load.add(-len(self._waiting.popleft()))
            await self._news.wait()

    async def _down(self, far: Socket) -> str:
        while True:
            message = await far.receive()
            if message.type is WSMsgType.BINARY:
                await self._deliver(message.data)
            elif message.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED):
                return "the peer closed it"
            else:
                return "the connection to the peer broke"
