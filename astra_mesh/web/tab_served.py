"""One tab that takes part through this peer, from its welcome to its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from aiohttp import WSMsgType, web

from astra_mesh import limits
from astra_mesh.errors import BusyError, MeshError, PeerLostError, ProtocolError
from astra_mesh.mesh.sockets import Socket, transport_of
from astra_mesh.peer import Peer, tasks
from astra_mesh.web.tab_channel import Channel, Load
from astra_mesh.web.tab_messages import Close, Join, Open, framed, read, text_of, unframed
from astra_mesh.wire.codec import sanitise
from astra_mesh.wire.messages import PeerId


class Tab:
    """What this peer does for one tab.

    Args:
        socket: Its WebSocket.
        peer: That serves it.
        own: Its id.
        write_s: How long it may read nothing.
    """

    def __init__(
        self, socket: web.WebSocketResponse, peer: Peer, own: PeerId, write_s: float
    ) -> None:
        self.id = own
        self._socket, self._peer, self._write_s = socket, peer, write_s
        self._load = Load()
        self._channels: dict[int, Channel] = {}
        self._highest = [0, -1]  # numbers so far: of channels of others (even), and of its own
        self._group: asyncio.TaskGroup | None = None

    async def run(self, welcome: str, until: float) -> None:
        """Serve it until it goes or its time is over; then all its channels end at once.

        Raises:
            ProtocolError: It broke a rule; perhaps in an ExceptionGroup, as the others.
            PeerLostError: It is gone.
        """
        await self._say(welcome)
        async with asyncio.TaskGroup() as group:
            self._group = group
            around = [
                tasks.start(group, "a tab's list of peers", self._tell_peers),
                tasks.start(group, "a tab's last moment", self._end_at, until),
            ]
            try:
                await self._read()
            finally:
                self._group = None
                for task in around:
                    task.cancel()
                for channel in list(self._channels.values()):
                    channel.end()

    # --- what the tab says ------------------------------------------------------------------------

    async def _read(self) -> None:
        async for message in self._socket:
            if message.type is WSMsgType.BINARY:
                number, payload = unframed(message.data)
                channel = self._known(number)
                if channel is not None:
                    channel.put(payload)
                    await self._load.room()
            elif message.type is WSMsgType.TEXT:
                self._take(read(message.data))
            else:
                raise PeerLostError("what it sent is no valid WebSocket frame")

    def _take(self, message: Join | Open | Close) -> None:
        if isinstance(message, Open):
            number = message.channel
            if number % 2 == 0 or number <= self._highest[1]:
                raise ProtocolError(f"channel {number}: a tab opens odd ones, each a higher one")
            if len(self._channels) >= limits.TAB_CHANNELS:
                raise ProtocolError(f"more than {limits.TAB_CHANNELS} channels at once")
            self._highest[1] = number
            self._start(number, lambda channel: self._dial(channel, message.to))
        elif isinstance(message, Close):
            closed = self._known(message.channel)
            if closed is not None:
                closed.end()
        else:
            raise ProtocolError("a second join")

    def _known(self, number: int) -> Channel | None:
        """A channel; None for one that has ended, which the tab may not know yet."""
        channel = self._channels.get(number)
        if channel is None and number > self._highest[number % 2]:
            raise ProtocolError(f"channel {number}, which nobody opened")
        return channel

    # --- channels ---------------------------------------------------------------------------------

    async def accept(self, far: Socket, opener: PeerId, first: bytes) -> None:
        """Carry a channel that another tab opened, until it is over.

        Raises:
            MeshError: The tab is gone, or has as many channels as it takes.
        """
        if len(self._channels) >= limits.TAB_CHANNELS:
            raise BusyError("the tab has as many channels as it takes")
        self._highest[0] += 2
        number = self._highest[0]

        async def carry(channel: Channel) -> str:
            await self._say(text_of("open", channel=number, **{"from": opener}))
            await self._deliver(number, first)
            return await channel.carry(far)

        task = self._start(number, carry)
        try:
            await asyncio.wait([task])
        finally:
            task.cancel()

    async def _dial(self, channel: Channel, to: PeerId) -> str:
        if to == self.id:
            raise MeshError("that is the tab itself")
        async with self._peer.tabs.dialling:
            far = await self._peer.open_relay(to)
        return await channel.carry(far)

    def _start(
        self, number: int, work: Callable[[Channel], Coroutine[Any, Any, str]]
    ) -> asyncio.Task[None]:
        """A new channel, and the task that carries it; all its ends come together there."""
        if self._group is None:
            raise PeerLostError("the tab is gone")
        channel = Channel(self._load, lambda payload: self._deliver(number, payload))
        self._channels[number] = channel
        channel.task = tasks.start(self._group, "a tab's channel", self._carry, number, work)
        channel.task.add_done_callback(lambda _: self._forget(number))
        return channel.task

    async def _carry(
        self, number: int, work: Callable[[Channel], Coroutine[Any, Any, str]]
    ) -> None:
        try:
            why = await work(self._channels[number])
        except MeshError as error:
            why = error.message
        self._forget(number)
        with suppress(MeshError):
            await self._say(text_of("closed", channel=number, why=sanitise(why)))

    def _forget(self, number: int) -> None:
        channel = self._channels.pop(number, None)
        if channel is not None:
            channel.drop()

    # --- what the tab is told ---------------------------------------------------------------------

    async def _tell_peers(self) -> None:
        """Who is here, at once and on every change."""
        told: list[dict[str, Any]] = []
        with suppress(PeerLostError):
            while True:
                if told != (told := self._listed()):
                    await self._say(text_of("peers", peers=told))
                with suppress(TimeoutError):
                    async with asyncio.timeout(limits.TAB_LOOK_S):
                        await self._peer.others_changed()

    def _listed(self) -> list[dict[str, Any]]:
        here = [(self._peer.id, self._peer.name, False)]
        here += [(peer, hello.name, bool(hello.via)) for peer, hello in self._peer.others().items()]
        return [
            {"id": peer, "name": sanitise(name), "tab": is_tab}
            for peer, name, is_tab in here
            if peer != self.id
        ]

    async def _end_at(self, until: float) -> None:
        await asyncio.sleep(max(0.0, until - time.time()))
        with suppress(PeerLostError):
            await self._say(text_of("refused", why="its time here is over; join again"))
            await self._socket.close()

    async def _deliver(self, number: int, payload: bytes) -> None:
        await self._send(self._socket.send_bytes(framed(number, payload)))

    async def _say(self, text: str) -> None:
        await self._send(self._socket.send_str(text))

    async def _send(self, sending: Coroutine[Any, Any, None]) -> None:
        """PeerLostError if the tab is gone, or reads nothing for too long; that ends it."""
        try:
            async with asyncio.timeout(self._write_s):
                await sending
        except (ConnectionError, TimeoutError, RuntimeError) as error:
            transport = transport_of(self._socket)
            if transport is not None:
                transport.abort()
            raise PeerLostError(f"the tab is gone: {error}") from None
