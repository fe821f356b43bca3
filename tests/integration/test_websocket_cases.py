"""WebSocket frames that break RFC 6455 or stretch it, against a peer.

They follow the groups of the Autobahn test suite, whose numbers the comments give. That suite talks
to a server that sends every message back; a peer answers a ping of its own protocol instead.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

import pytest

from astra_mesh import limits
from astra_mesh.mesh.doorman import abandon
from astra_mesh.mesh.timings import Timings
from astra_mesh.peer import Peer, PeerConfig
from astra_mesh.wire.codec import decode, encode
from astra_mesh.wire.messages import MAGIC, PROTOCOL_VERSION, Hello, LinkRefused, Ping, Pong, Role
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


def close(code: int, reason: bytes = b"") -> bytes:
    return frame(CLOSE, struct.pack(">H", code) + reason)


def in_pieces(data: bytes, *, between: bytes = b"", size: int = 1) -> bytes:
    """A binary message in frames of ``size`` bytes, with other frames after each but the last."""
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    frames = [
        frame(BINARY if i == 0 else CONTINUATION, part, final=i == len(parts) - 1)
        for i, part in enumerate(parts)
    ]
    return between.join(frames)


# What comes after is a ping of the protocol, which must not be answered.
BROKEN = {
    # 2: pings and pongs
    "a ping of 126 bytes": frame(PING, bytes(126)),
    # 3: reserved bits
    **{
        f"reserved bits {bits} with opcode {kind}": frame(kind, b"\x03\xe8", reserved=bits)
        for bits in range(1, 8)
        for kind in (BINARY, CLOSE, PING)
    },
    # 4: opcodes without a meaning
    **{f"opcode {n}": frame(n) for n in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    **{f"opcode {n}, filled": frame(n, b"x" * 9) for n in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    # 5: pieces
    "a ping in pieces": frame(PING, b"x", final=False) + frame(CONTINUATION, b"y"),
    "a pong in pieces": frame(PONG, b"x", final=False) + frame(CONTINUATION, b"y"),
    "a close in pieces": frame(CLOSE, b"\x03\xe8", final=False),
    "a continuation of nothing": frame(CONTINUATION, b"x"),
    "one that goes on": frame(CONTINUATION, b"x", final=False) + frame(CONTINUATION, b"y"),
    "a continuation after a message": in_pieces(b"xy") + frame(CONTINUATION, b"z"),
    "a new message inside another": frame(BINARY, b"x", final=False) + frame(BINARY, b"y"),
    # 6: text, which the protocol does not use, whatever its bytes
    "text": frame(TEXT, b"hello"),
    "text without a letter": frame(TEXT),
    "text in pieces": frame(TEXT, b"hel", final=False) + frame(CONTINUATION, b"lo"),
    "text that is no UTF-8": frame(TEXT, b"\xff\xfe"),
    "a surrogate": frame(TEXT, b"\xed\xa0\x80"),
    "an overlong letter": frame(TEXT, b"\xc0\xaf"),
    "a letter beyond the last": frame(TEXT, b"\xf4\x90\x80\x80"),
    "text in pieces that is no UTF-8": frame(TEXT, b"\xce", final=False)
    + frame(CONTINUATION, b"\xff"),
    # 7: closing
    "a close": frame(CLOSE),
    "a close inside a message": frame(BINARY, b"x", final=False) + close(1000),
    "two closes": close(1000) + close(1000),
    "a message after the close": close(1000) + frame(BINARY, b"\x92\x03\x91\x01"),
    "a close of one byte": frame(CLOSE, b"\x03"),
    "a close with a reason": close(1000, b"x" * 123),
    "a close of 126 bytes": close(1000, b"x" * 124),
    "a close with a reason that is no UTF-8": close(1000, b"\xff\xfe"),
    **{
        f"a close with the code {n}": close(n)
        for n in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999)
    },
    **{
        f"a close with the code {n}, which is none": close(n)
        for n in (0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999, 5000, 65535)
    },
    # 9: sizes
    "a length of 2^63": frame(BINARY, b"x", claimed=2**63),
    "a length of 2^64 - 1": frame(BINARY, b"x", claimed=2**64 - 1),
    "a frame above the limit": frame(BINARY, b"x", claimed=limits.FRAME_BYTES + 1),
    "pieces above the limit": frame(BINARY, b"x", final=False)
    + frame(CONTINUATION, b"y", claimed=limits.FRAME_BYTES),
    # 12, 13: compression, which was not agreed on
    "a compressed message": frame(BINARY, b"\x4a\x04\x00", reserved=4),
    "a compressed message in pieces": frame(BINARY, b"\x4a", reserved=4, final=False)
    + frame(CONTINUATION, b"\x04\x00"),
    # and what is no WebSocket at all
    "an empty message": frame(BINARY),
    "garbage": bytes(range(256)),
    "HTTP again": UPGRADE,
}


def numbered(number: int, size: int = 0) -> bytes:
    """A ping of the protocol in a message of ``size`` bytes, or as short as it is."""
    data = encode(Ping(number))
    for padding in range(max(0, size - 16), size):
        data = encode(Ping(number, bytes(padding)))
        if len(data) == size:
            break
    assert len(data) >= size
    return data


SEVEN = (BINARY, encode(Pong(7)))
SIZES = (125, 126, 127, 128, 65_535, 65_536)
# Each is followed by a ping of the protocol, which must be answered; so must what is named.
ALLOWED: dict[str, tuple[bytes, list[tuple[int, bytes]]]] = {
    # 1: framing
    **{f"a message of {size} bytes": (frame(BINARY, numbered(7, size)), [SEVEN]) for size in SIZES},
    "a short length written long": (
        bytes([FINAL | BINARY, MASK | 126, 0, len(numbered(7))]) + bytes(4) + numbered(7),
        [SEVEN],
    ),
    # 2: pings and pongs
    "an empty ping": (frame(PING), [(PONG, b"")]),
    "a ping": (frame(PING, b"Hello"), [(PONG, b"Hello")]),
    "a ping that is no text": (frame(PING, b"\x00\xff\xfe"), [(PONG, b"\x00\xff\xfe")]),
    "a ping of 125 bytes": (frame(PING, b"\xfe" * 125), [(PONG, b"\xfe" * 125)]),
    "a pong": (frame(PONG), []),
    "a pong of 125 bytes": (frame(PONG, b"x" * 125), []),
    "a pong and a ping": (frame(PONG, b"a") + frame(PING, b"b"), [(PONG, b"b")]),
    "ten pings": (
        b"".join(frame(PING, bytes([i])) for i in range(10)),
        [(PONG, bytes([i])) for i in range(10)],
    ),
    # 5: pieces
    "a message in pieces": (in_pieces(numbered(7)), [SEVEN]),
    "a message in pieces and pings": (
        in_pieces(numbered(7), between=frame(PING, b"in")),
        [(PONG, b"in")] * (len(numbered(7)) - 1) + [SEVEN],
    ),
    "empty pieces": (
        frame(BINARY, final=False)
        + frame(CONTINUATION, final=False)
        + frame(CONTINUATION, numbered(7)),
        [SEVEN],
    ),
    # 9: sizes
    "65,536 bytes in pieces of 64": (in_pieces(numbered(7, 65_536), size=64), [SEVEN]),
}


class Ends(NamedTuple):
    """A connection, and how the upgrade was answered."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    answer: bytes


@asynccontextmanager
async def upgraded(
    peer: Peer, caller: Caller | None = None, upgrade: bytes = UPGRADE
) -> AsyncIterator[Ends]:
    """A member's connection after the upgrade, without a WebSocket library."""
    caller = caller or await Caller.new()
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", peer.port, ssl=caller.tls.client, server_hostname="astra-mesh"
    )
    try:
        writer.write(upgrade)
        async with asyncio.timeout(patient(WAIT_S)):
            answer = await reader.readuntil(b"\r\n\r\n")
            assert b" 101 " in answer
            yield Ends(reader, writer, answer)
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


@asynccontextmanager
async def talking(
    one: Peer,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A member's open link, without a WebSocket library."""
    caller = await Caller.new()
    async with upgraded(one, caller) as (reader, writer, _):
        writer.write(frame(BINARY, hello(caller)))
        assert isinstance(decode(await message(reader)), Hello)
        yield reader, writer


async def frames(reader: asyncio.StreamReader) -> AsyncIterator[tuple[int, bytes]]:
    """Opcode and payload of each frame that comes; the peer sends no pieces."""
    while True:
        try:
            first, second = await reader.readexactly(2)
            assert first & FINAL
            assert not second & MASK
            size = second
            if size == 126:
                (size,) = struct.unpack(">H", await reader.readexactly(2))
            elif size == 127:
                (size,) = struct.unpack(">Q", await reader.readexactly(8))
            yield first & 15, await reader.readexactly(size)
        except (asyncio.IncompleteReadError, OSError):
            return


AFTER = 4_711


async def test_broken_frames_end_their_link_only(caplog: pytest.LogCaptureFixture) -> None:
    async with peer() as one, client_of(one) as client:
        for name, data in BROKEN.items():
            for chop in (len(data), 1 + len(data) // 3):
                async with talking(one) as (reader, writer):
                    for at in range(0, len(data), chop):
                        writer.write(data[at : at + chop])
                        await asyncio.sleep(0)
                    writer.write(frame(BINARY, encode(Ping(AFTER))))
                    with suppress(OSError):
                        await writer.drain()
                    # It ends, or the timeout fails the test.
                    answers = [payload async for kind, payload in frames(reader) if kind == BINARY]
                    assert encode(Pong(AFTER)) not in answers, name
                assert client.link.is_open, name
        await until(lambda: one._links is not None and len(one._links._links) == 1)
    assert not [r for r in caplog.records if r.exc_info and r.levelno >= logging.ERROR]


@pytest.mark.parametrize("chop", [0, 1, 997])
async def test_frames_that_are_allowed_are_answered(chop: int) -> None:
    """In one go, byte by byte, and in lumps that fall anywhere."""
    async with peer() as one:
        for name, (data, wanted) in ALLOWED.items():
            if chop == 1 and len(data) > 5_000:
                continue
            async with talking(one) as (reader, writer):
                lump = chop or len(data)
                for at in range(0, len(data), lump):
                    writer.write(data[at : at + lump])
                    await asyncio.sleep(0)
                writer.write(frame(BINARY, encode(Ping(AFTER))))
                found: list[tuple[int, bytes]] = []
                async for kind, payload in frames(reader):
                    found.append((kind, payload))
                    if payload == encode(Pong(AFTER)):
                        break
                assert found[-1:] == [(BINARY, encode(Pong(AFTER)))], name
                assert [x for x in found if x[0] == PONG or x == SEVEN] == wanted, name


async def test_a_close_is_answered_with_a_close() -> None:
    async with peer() as one:
        for code in (1000, 3000, 4999):
            async with talking(one) as (reader, writer):
                writer.write(close(code, b"bye"))
                kinds = [kind async for kind, _ in frames(reader)]
                assert kinds[-1:] == [CLOSE]


@pytest.mark.parametrize(
    "offer",
    [
        "permessage-deflate",
        "permessage-deflate; client_max_window_bits; server_no_context_takeover",
        "x-webkit-deflate-frame, permessage-bzip2",
    ],
)
async def test_compression_is_not_agreed_on(offer: str) -> None:
    head = f"\r\nSec-WebSocket-Extensions: {offer}\r\n\r\n".encode()
    async with peer() as one, upgraded(one, upgrade=UPGRADE.replace(b"\r\n\r\n", head)) as ends:
        assert b"extensions" not in ends.answer.lower()


async def test_a_frame_that_never_ends_is_cut_off_at_the_hello() -> None:
    """Dripped bytes inside one frame are no hello, and no sign of life."""
    async with peer(Timings().scaled(0.2)) as one, upgraded(one) as (reader, writer, _):
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
    """The next binary message of the peer."""
    async for kind, payload in frames(reader):
        if kind == BINARY:
            return payload
        assert kind in (PING, PONG)
    raise EOFError
