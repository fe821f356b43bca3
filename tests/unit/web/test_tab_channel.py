"""Channels of tabs over sockets that tests steer."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import WSMessage, WSMsgType

from astra_mesh.errors import PeerLostError
from astra_mesh.web.tab_channel import Channel, Load


class FakeSocket:
    """A peer's end. What is sent waits for :attr:`reading`."""

    def __init__(self) -> None:
        self.reading = asyncio.Event()
        self.sent: list[bytes] = []
        self.closed = False
        self.broken = False
        self._came: asyncio.Queue[WSMessage] = asyncio.Queue()

    def say(self, kind: WSMsgType, data: bytes | None = None) -> None:
        self._came.put_nowait(WSMessage(kind, data, None))

    async def receive(self) -> WSMessage:
        return await self._came.get()

    async def send_bytes(self, data: bytes) -> None:
        await self.reading.wait()
        if self.broken:
            raise ConnectionResetError("gone")
        self.sent.append(data)

    async def close(self) -> bool:
        self.closed = True
        return True


async def has_room(load: Load) -> bool:
    try:
        async with asyncio.timeout(0.01):
            await load.room()
    except TimeoutError:
        return False
    return True


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_tab_is_read_no_further_than_peers_take() -> None:
    load, far = Load(100), FakeSocket()
    channel = Channel(load, deliver_to([]))
    carrying = asyncio.create_task(channel.carry(far))
    for _ in range(9):
        channel.put(bytes(11))
    assert await has_room(load)
    channel.put(bytes(11))
    assert not await has_room(load)
    far.reading.set()
    assert await has_room(load)
    await turns()
    assert len(far.sent) == 10
    far.say(WSMsgType.CLOSE)
    assert await carrying == "the peer closed it"
    assert far.closed


async def test_a_channel_that_ends_gives_its_room_back() -> None:
    load = Load(10)
    stuck, other = Channel(load, deliver_to([])), Channel(load, deliver_to([]))
    stuck.put(bytes(9))
    other.put(bytes(9))
    assert not await has_room(load)
    stuck.end()
    assert await has_room(load)
    stuck.put(bytes(9))  # was on its way: dropped
    assert await has_room(load)
    other.drop()
    other.drop()
    other.put(bytes(9))
    assert await has_room(load)


async def test_what_is_being_sent_is_counted_once() -> None:
    load, far = Load(20), FakeSocket()
    channel = Channel(load, deliver_to([]))
    carrying = asyncio.create_task(channel.carry(far))
    channel.put(bytes(15))
    await turns()  # it waits for the peer
    channel.drop()
    far.reading.set()
    await turns()
    load.add(15)
    assert await has_room(load)
    load.add(5)
    assert not await has_room(load)
    far.say(WSMsgType.CLOSED)
    await carrying


async def test_what_a_peer_says_is_delivered_in_order() -> None:
    got: list[bytes] = []
    far = FakeSocket()
    channel = Channel(Load(), deliver_to(got))
    for part in (b"one", b"two", b"three"):
        far.say(WSMsgType.BINARY, part)
    far.say(WSMsgType.TEXT, b"x")
    assert await channel.carry(far) == "the connection to the peer broke"
    assert got == [b"one", b"two", b"three"]
    assert far.closed


async def test_a_tab_that_is_gone_ends_the_channel() -> None:
    async def gone(payload: bytes) -> None:
        raise PeerLostError("the tab is gone")

    far = FakeSocket()
    far.say(WSMsgType.BINARY, b"x")
    with pytest.raises(PeerLostError):
        await Channel(Load(), gone).carry(far)
    assert far.closed


async def test_a_peer_that_cannot_be_written_to_is_read_to_its_end() -> None:
    far = FakeSocket()
    far.broken = True
    far.reading.set()
    channel = Channel(Load(), deliver_to([]))
    channel.put(b"lost")
    carrying = asyncio.create_task(channel.carry(far))
    await turns()
    assert not carrying.done()
    far.say(WSMsgType.CLOSED)
    assert await carrying == "the peer closed it"


async def test_ending_a_channel_closes_its_socket() -> None:
    far = FakeSocket()
    channel = Channel(Load(), deliver_to([]))
    channel.task = asyncio.create_task(_carry(channel, far))
    await turns()
    channel.end()
    await asyncio.wait([channel.task])
    assert channel.task.cancelled()
    assert far.closed


async def _carry(channel: Channel, far: FakeSocket) -> None:
    await channel.carry(far)


def deliver_to(got: list[bytes]):  # type: ignore[no-untyped-def]
    async def deliver(payload: bytes) -> None:
        got.append(payload)

    return deliver
