"""WebSocket frames that break RFC 6455 or stretch it, against a peer (after Autobahn's list)."""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import msgspec
import pytest

from astra_mesh import limits
from astra_mesh.mesh.doorman import abandon
from astra_mesh.mesh.timings import Timings
from astra_mesh.peer import Peer, PeerConfig
from astra_mesh.wire.codec import decode, encode
from astra_mesh.wire.messages import MAGIC, PROTOCOL_VERSION, Hello, LinkRefused, Role
from tests.integration.mesh_fixtures import client_of, until
from tests.integration.secure import Caller
from tests.integration.test_trust import UPGRADE
from tests.timings import patient

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
FINAL, MASK = 0x80, 0x80
WAIT_S = 20.0


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    final: bool = True,
    reserved: int = 0,
    masked: bool = True,
    claimed: int | None = None,
) -> bytes:
    """One frame; ``claimed``: a length that is not the payload's."""
    size = len(payload) if claimed is None else claimed
    head = bytes([(FINAL if final else 0) | reserved << 4 | opcode])
    mask = MASK if masked else 0
    if size < 126:
        head += bytes([mask | size])
    elif size < 65_536:
        head += bytes([mask | 126]) + struct.pack(">H", size)
    else:
        head += bytes([mask | 127]) + struct.pack(">Q", size)
    return head + (bytes(4) if masked else b"") + payload  # a mask of zeros changes nothing


BROKEN = {
    "reserved bit 1": frame(BINARY, b"x", reserved=4),
    "reserved bit 2": frame(BINARY, b"x", reserved=2),
    "reserved bit 3": frame(BINARY, b"x", reserved=1),
    **{f"opcode {number}": frame(number, b"x") for number in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    "a ping of 126 bytes": frame(PING, bytes(126)),
    "a ping in pieces": frame(PING, b"x", final=False),
    "a close in pieces": frame(CLOSE, b"\x03\xe8", final=False),
    "a close of one byte": frame(CLOSE, b"\x03"),
    "a close with a code that is none": frame(CLOSE, struct.pack(">H", 999)),
    "a close with a reserved code": frame(CLOSE, struct.pack(">H", 1005)),
    "a close with text that is no UTF-8": frame(CLOSE, b"\x03\xe8\xff\xfe"),
    "a close of 126 bytes": frame(CLOSE, b"\x03\xe8" + bytes(124)),
    "a continuation of nothing": frame(CONTINUATION, b"x"),
    "a new message inside another": frame(BINARY, b"x", final=False) + frame(BINARY, b"y"),
    "text": frame(TEXT, b"hello"),
    "text that is no UTF-8": frame(TEXT, b"\xff\xfe"),
    "text in pieces that is no UTF-8": frame(TEXT, b"\xce", final=False)
    + frame(CONTINUATION, b"\xff"),
    "an empty message": frame(BINARY),
    "a length of 2^63": frame(BINARY, b"x", claimed=2**63),
    "a length of 2^64 - 1": frame(BINARY, b"x", claimed=2**64 - 1),
    "a frame above the limit": frame(BINARY, b"x", claimed=limits.FRAME_BYTES + 1),
    "garbage": bytes(range(256)),
    "HTTP again": UPGRADE,
}


@asynccontextmanager
async def upgraded(peer: Peer) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A member's connection after the upgrade, without a WebSocket library."""
    caller = await Caller.new()
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", peer.port, ssl=caller.tls.client, server_hostname="astra-mesh"
    )
    try:
        writer.write(UPGRADE)
        async with asyncio.timeout(patient(WAIT_S)):
            assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
            yield reader, writer
    finally:
        abandon(writer)
        with suppress(OSError):
            await writer.wait_closed()


@asynccontextmanager
async def peer(timings: Timings | None = None) -> AsyncIterator[Peer]:
    config = PeerConfig(
        port=0,
        listen="127.0.0.1",
        models=(),
        discovery=False,
        ephemeral=True,
        timings=timings or Timings(),
    )
    async with Peer(config) as one:
        yield one


async def rest(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except OSError:
        return b""


def hello(caller: Caller) -> bytes:
    return encode(
        Hello(
            magic=MAGIC,
            version=PROTOCOL_VERSION,
            peer=caller.id,
            name="cases",
            role=Role.CLIENT,
            window_bytes=1 << 20,
        )
    )


async def test_broken_frames_end_their_link_only(caplog: pytest.LogCaptureFixture) -> None:
    async with peer() as one, client_of(one) as client:
        for name, data in BROKEN.items():
            async with upgraded(one) as (reader, writer):
                writer.write(data)
                with suppress(OSError):
                    await writer.drain()
                await rest(reader)  # it ends, or the timeout fails the test
            assert client.link.is_open, name
        await until(lambda: one._links is not None and len(one._links._links) == 1)
    assert not [r for r in caplog.records if r.exc_info and r.levelno >= logging.ERROR]


async def test_a_frame_that_never_ends_is_cut_off_at_the_hello() -> None:
    """Dripped bytes inside one frame are no hello, and no sign of life."""
    async with peer(Timings().scaled(0.2)) as one, upgraded(one) as (reader, writer):
        writer.write(frame(BINARY, b"\x92", claimed=1_000))
        ended = asyncio.ensure_future(rest(reader))
        while not ended.done():
            writer.write(b"\x00")
            await asyncio.sleep(0.05)
        await ended


async def test_what_the_standard_allows() -> None:
    """Pieces, and pings between them."""
    caller = await Caller.new()
    async with peer() as one:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", one.port, ssl=caller.tls.client, server_hostname="astra-mesh"
        )
        data = hello(caller)
        async with asyncio.timeout(patient(WAIT_S)):
            writer.write(UPGRADE)
            await reader.readuntil(b"\r\n\r\n")
            first = await message(reader)
            assert isinstance(decode(first), Hello)
            writer.write(frame(BINARY, data[:1], final=False) + frame(PING, b"between"))
            writer.write(frame(CONTINUATION, final=False))
            writer.write(frame(CONTINUATION, data[1:-5], final=False) + frame(PONG, b"unasked"))
            writer.write(frame(CONTINUATION, data[-5:]))
            await until(lambda: one._links is not None and len(one._links._links) == 1)
            await until(lambda: next(iter(one._links._links)).is_open)  # type: ignore[union-attr]
            writer.write(frame(BINARY, b"\x92\xff\xc0"))
            while not isinstance(last := decode(await message(reader)), LinkRefused):
                continue
            assert "unknown message type" in last.text
        abandon(writer)
        with suppress(OSError):
            await writer.wait_closed()


async def message(reader: asyncio.StreamReader) -> bytes:
    """The next binary message of the peer, which sends each in one frame."""
    while True:
        first, second = await reader.readexactly(2)
        assert not second & MASK
        size = second
        if size == 126:
            (size,) = struct.unpack(">H", await reader.readexactly(2))
        elif size == 127:
            (size,) = struct.unpack(">Q", await reader.readexactly(8))
        payload = await reader.readexactly(size)
        if first == FINAL | BINARY:
            return payload
        assert first in (FINAL | PONG, FINAL | PING), msgspec.to_builtins([first])
