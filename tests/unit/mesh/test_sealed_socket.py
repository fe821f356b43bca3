"""The handshake and frames over a pair of sockets in memory."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import WSMessage, WSMsgType

from astra_mesh.errors import DeadlineError, PeerLostError, ProtocolError
from astra_mesh.mesh.identity import peer_id
from astra_mesh.mesh.sealed import Speaker
from astra_mesh.mesh.sealed_socket import SealedSocket, answer_sealed, open_sealed
from astra_mesh.mesh.trust import Known
from astra_mesh.wire.messages import DeviceId, PeerId
from tools import make_sealed_vectors as made

TAB, PEER = peer_id(made.TAB_CERTIFICATE), peer_id(made.PEER_CERTIFICATE)
KNOWN = Known(TAB, DeviceId("d" * 64))


class Wire:
    """One end of a connection in memory; what it sends goes through ``change``."""

    def __init__(self) -> None:
        self.other: Wire = self
        self.came: asyncio.Queue[WSMessage] = asyncio.Queue()
        self.sent = 0
        self.closed = False

    def change(self, data: bytes) -> bytes:
        return data

    async def receive(self) -> WSMessage:
        return await self.came.get()

    async def send_bytes(self, data: bytes) -> None:
        self.sent += 1
        self.other.came.put_nowait(WSMessage(WSMsgType.BINARY, self.change(data), None))

    async def close(self) -> bool:
        self.closed = True
        self.other.came.put_nowait(WSMessage(WSMsgType.CLOSED, None, None))
        return True


def wires() -> tuple[Wire, Wire]:
    near, far = Wire(), Wire()
    near.other, far.other = far, near
    return near, far


def judge(certificate: bytes) -> Known:
    if certificate != made.TAB_CERTIFICATE:
        raise ProtocolError("nobody")
    return KNOWN


async def both(near: Wire, far: Wire) -> tuple[SealedSocket, SealedSocket]:
    tab = Speaker.with_key(made.TAB_CERTIFICATE, made.TAB)
    peer = Speaker.with_key(made.PEER_CERTIFICATE, made.PEER)
    opened, (answered, known) = await asyncio.gather(
        open_sealed(near, tab, PEER, 5.0), answer_sealed(far, peer, judge, 5.0)
    )
    assert known == KNOWN
    return opened, answered


async def test_frames_go_both_ways() -> None:
    opened, answered = await both(*wires())
    for text in (b"one", b"two"):
        await opened.send_bytes(text)
        assert (await answered.receive()).data == text
        await answered.send_bytes(text)
        assert (await opened.receive()).data == text
    await opened.close()
    assert (await answered.receive()).type is WSMsgType.CLOSED


async def test_a_changed_frame_is_an_error_of_the_connection() -> None:
    near, far = wires()
    opened, answered = await both(near, far)
    near.change = lambda data: data[:-1] + bytes([data[-1] ^ 1])  # type: ignore[method-assign]
    await opened.send_bytes(b"a frame")
    message = await answered.receive()
    assert message.type is WSMsgType.ERROR
    assert "altered" in str(message.data)


async def test_who_is_not_let_in_is_told_nothing() -> None:
    near, far = wires()
    stranger = Speaker.with_key(made.PEER_CERTIFICATE, made.PEER)
    peer = Speaker.with_key(made.PEER_CERTIFICATE, made.PEER)
    opening = asyncio.create_task(open_sealed(near, stranger, PEER, 5.0))
    with pytest.raises(ProtocolError, match="nobody"):
        await answer_sealed(far, peer, judge, 5.0)
    assert far.sent == 0
    await far.close()
    with pytest.raises(PeerLostError):
        await opening


async def test_a_handshake_with_somebody_else() -> None:
    near, far = wires()
    tab = Speaker.with_key(made.TAB_CERTIFICATE, made.TAB)
    peer = Speaker.with_key(made.PEER_CERTIFICATE, made.PEER)
    answering = asyncio.create_task(answer_sealed(far, peer, judge, 5.0))
    with pytest.raises(ProtocolError, match="instead of"):
        await open_sealed(near, tab, PeerId("e" * 64), 5.0)
    await near.close()
    with pytest.raises(PeerLostError):
        await answering


async def test_silence_has_an_end() -> None:
    tab = Speaker.with_key(made.TAB_CERTIFICATE, made.TAB)
    with pytest.raises(DeadlineError):
        await open_sealed(wires()[0], tab, PEER, 0.01)
    with pytest.raises(DeadlineError):
        await answer_sealed(wires()[0], tab, judge, 0.01)


async def test_text_is_no_handshake() -> None:
    near, _ = wires()
    near.came.put_nowait(WSMessage(WSMsgType.TEXT, "hello", None))
    tab = Speaker.with_key(made.TAB_CERTIFICATE, made.TAB)
    with pytest.raises(ProtocolError, match="no binary"):
        await answer_sealed(near, tab, judge, 5.0)
