"""Links over real sockets on this machine."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import aiohttp
import msgpack  # type: ignore[import-untyped]
import pytest
from aiohttp import WSMsgType, web

from astra_mesh import limits
from astra_mesh.errors import (
    MeshError,
    NoPeerError,
    PeerLostError,
    ProtocolError,
    RefusedError,
    VersionMismatchError,
)
from astra_mesh.mesh.connect import PATH, Places, dial, dial_any, websocket_handler
from astra_mesh.mesh.link import Link
from astra_mesh.mesh.session import Session
from astra_mesh.mesh.sockets import transport_of
from astra_mesh.mesh.timings import Timings
from astra_mesh.wire import messages as m
from astra_mesh.wire.codec import AnyMessage, decode, encode
from tests.timings import patient

A, B = m.PeerId("a" * 64), m.PeerId("b" * 64)
R1 = m.RequestId(1)
QUICK = Timings().scaled(patient(0.1))


def hello(peer: m.PeerId, window: int = limits.WINDOW_BYTES) -> m.Hello:
    return m.Hello(
        magic=m.MAGIC,
        version=m.PROTOCOL_VERSION,
        peer=peer,
        name=f"peer {peer[0]}",
        role=m.Role.PEER,
        window_bytes=window,
    )


@dataclass
class End:
    """One end of a link, running."""

    link: Link
    got: list[AnyMessage] = field(default_factory=list)
    consume: bool = True
    result: MeshError | None = None
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        try:
            self.result = await self.link.run(self.take)
        finally:
            self.over.set()

    def take(self, message: AnyMessage) -> None:
        if isinstance(message, m.Hello):
            self.opened.set()
            return
        self.got.append(message)
        if self.consume and isinstance(message, m.Codes):
            self.link.consumed(message)


@dataclass
class Server:
    """A peer B that serves links."""

    port: int
    ends: asyncio.Queue[End] = field(default_factory=asyncio.Queue)
    window: int = limits.WINDOW_BYTES
    consume: bool = True


@asynccontextmanager
async def serving(
    timings: Timings = QUICK, window: int = limits.WINDOW_BYTES, consume: bool = True
) -> AsyncIterator[Server]:
    server = Server(0, window=window, consume=consume)

    async def on_link(link: Link, known: object) -> None:
        end = End(link, consume=server.consume)
        server.ends.put_nowait(end)
        await end.run()

    def session(known: object) -> Session:
        return Session(hello(B, server.window), timings)

    app = web.Application()
    app.router.add_get(PATH, websocket_handler(session, on_link, timings=timings, places=Places(3)))
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.port = runner.addresses[0][1]
        yield server
    finally:
        await runner.cleanup()


@asynccontextmanager
async def linked(
    server: Server, own: m.Hello | None = None, timings: Timings = QUICK
) -> AsyncIterator[tuple[End, End]]:
    """Both ends of an open link."""
    async with aiohttp.ClientSession() as http, asyncio.TaskGroup() as group:
        websocket = await dial(http, "127.0.0.1", server.port, timings=timings)
        link = Link(websocket, Session(own or hello(A), timings), timings=timings, dialled=True)
        near = End(link)
        group.create_task(near.run())
        far = await server.ends.get()
        await until(near.opened.is_set)
        await until(far.opened.is_set)
        yield near, far
        await near.link.close()


@asynccontextmanager
async def raw(server: Server) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """A WebSocket without a session behind it."""
    async with aiohttp.ClientSession() as http:
        websocket = await dial(http, "127.0.0.1", server.port, timings=QUICK)
        try:
            yield websocket
        finally:
            await websocket.close()


async def until(condition: Callable[..., object], seconds: float = 5.0) -> None:
    async with asyncio.timeout(patient(seconds)):
        while not condition():
            await asyncio.sleep(0.002)


def codes(number: int, size: int = 1_000) -> m.Codes:
    return m.Codes(R1, 0, 0, number, 1, bytes(size))


# --- a link ---------------------------------------------------------------------------------------


async def test_hello_both_ways_and_goodbye() -> None:
    async with serving() as server, linked(server) as (near, far):
        assert near.link.peer == hello(B)
        assert far.link.peer == hello(A)
        assert near.link.dialled
        assert not far.link.dialled
        assert far.link.address.startswith("127.0.0.1:")
        near.link.send(codes(1))
        far.link.send(codes(2))
        await until(lambda: near.got and far.got)
        assert (near.got, far.got) == ([codes(2)], [codes(1)])
        assert near.link.sent_bytes(R1) == len(encode(codes(1)))
        await near.link.close("bye")
        await until(far.over.is_set)
        assert near.result is far.result is None
        with pytest.raises(PeerLostError):
            near.link.send(codes(3))
        with pytest.raises(PeerLostError):
            await near.link.drain()


async def test_the_round_trip_is_known_at_once() -> None:
    async with serving() as server, linked(server) as (near, far):
        await until(lambda: near.link.round_trip_s and far.link.round_trip_s)
        assert 0 < (near.link.round_trip_s or 0) < patient(0.5)


async def test_the_sockets_are_tuned() -> None:
    async with serving() as server, linked(server) as (near, far):
        for end in (near, far):
            transport = transport_of(end.link._socket)
            assert transport is not None
            raw_socket = transport.get_extra_info("socket")
            assert raw_socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            lowat = raw_socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
            assert lowat == limits.UNSENT_BYTES


async def test_a_link_runs_once() -> None:
    async with serving() as server, linked(server) as (near, _):
        with pytest.raises(RuntimeError, match="once"):
            await near.link.run(near.take)


async def test_closing_a_link_that_never_ran() -> None:
    async with serving() as server, aiohttp.ClientSession() as http:
        websocket = await dial(http, "127.0.0.1", server.port, timings=QUICK)
        link = Link(websocket, Session(hello(A), QUICK), timings=QUICK, dialled=True)
        await link.close()
        assert websocket.closed


async def test_a_thousand_frames() -> None:
    async with serving(Timings()) as server, linked(server, timings=Timings()) as (near, far):
        pieces = [codes(number, 32_768) for number in range(1_000)]
        began = time.perf_counter()
        for piece in pieces:
            near.link.send(piece)
            await near.link.drain()
        await until(lambda: len(far.got) == 1_000, 20)
        assert time.perf_counter() - began < patient(10)
        assert far.got == pieces
        assert near.link.sent_bytes(R1) == sum(len(encode(piece)) for piece in pieces)
        await until(lambda: near.link.send_bps is not None)


async def test_probes_and_what_the_other_end_learns() -> None:
    async with serving(Timings()) as server, linked(server, timings=Timings()) as (near, far):
        measured = await asyncio.gather(near.link.probe(), far.link.probe())
        assert min(measured) > 1e7  # loopback
        await until(lambda: near.link.receive_bps and far.link.receive_bps)
        assert near.link.receive_bps == measured[1]
        assert far.link.receive_bps == measured[0]


async def test_a_probe_whose_pongs_came_in_a_bunch_is_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first pong is held up, as by a lost packet, and all others come with it."""
    async with serving(Timings()) as server, linked(server, timings=Timings()) as (near, far):
        await until(lambda: near.link.round_trip_s is not None)
        send, train, late, sizes = far.link._socket.send_bytes, near.link._train, [0.5], []

        async def held(data: bytes) -> None:
            await asyncio.sleep(late.pop() if late else 0.0)
            await send(data)

        async def counted(size: int, count: int) -> tuple[float, float]:
            sizes.append(size)
            return await train(size, count)

        monkeypatch.setattr(far.link._socket, "send_bytes", held)
        monkeypatch.setattr(near.link, "_train", counted)
        await near.link.probe()
        assert sizes[:2] == [limits.PROBE_BYTES // 6] * 2
        assert len(sizes) <= 6


async def test_a_slow_consumer_holds_the_sender() -> None:
    async with held() as (near, far):
        for number in range(4, 20):
            near.link.send(codes(number, 60_000))
        await asyncio.sleep(0.05)
        assert len(far.got) == 4  # the window holds no more
        near.link.send(m.Prepare(request=m.RequestId(5), model=m.ModelId("0" * 64)))
        await until(lambda: len(far.got) == 5)  # control passes
        for taken in range(21):
            await until(lambda count=taken: len(far.got) > count)
            message = far.got[taken]
            if isinstance(message, m.Codes):
                far.link.consumed(message)
        arrived = [message for message in far.got if isinstance(message, m.Codes)]
        assert arrived == [codes(number, 60_000) for number in range(20)]


async def test_drain_waits_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SEND_QUEUE_BYTES", 250_000)
    async with held() as (near, far):
        for number in range(4, 11):
            near.link.send(codes(number, 60_000))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await near.link.drain()
        for message in far.got[:4]:
            far.link.consumed(message)
        async with asyncio.timeout(patient(5)):
            await near.link.drain()


async def test_drain_ends_with_the_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SEND_QUEUE_BYTES", 50_000)
    async with held() as (near, far), asyncio.TaskGroup() as group:
        near.link.send(codes(4, 60_000))
        waiting = group.create_task(expect_refused(near.link))
        await asyncio.sleep(0.01)
        far.link.refuse(m.Reason.LEAVING)
        await waiting


@asynccontextmanager
async def held() -> AsyncIterator[tuple[End, End]]:
    """A link whose window is full: four messages arrived, none was consumed."""
    patience = Timings()
    async with (
        serving(patience, window=limits.WINDOW_MIN_BYTES, consume=False) as server,
        linked(server, timings=patience) as (near, far),
    ):
        for number in range(4):
            near.link.send(codes(number, 60_000))
            await until(lambda expected=number + 1: len(far.got) == expected)
        yield near, far


async def expect_refused(link: Link) -> None:
    with pytest.raises(RefusedError, match="about to leave"):
        await link.drain()


# --- refusals -------------------------------------------------------------------------------------


async def test_another_version_is_named_at_both_ends() -> None:
    async with serving() as server, raw(server) as websocket:
        body = {"magic": "astra-mesh", "version": 2}
        await websocket.send_bytes(msgpack.packb([0, body]))
        end = await server.ends.get()
        assert isinstance(decode((await websocket.receive()).data), m.Hello)
        refusal = decode((await websocket.receive()).data)
        assert isinstance(refusal, m.LinkRefused)
        assert refusal.reason is m.Reason.PROTOCOL_VERSION
        assert (await websocket.receive()).type is WSMsgType.CLOSE
        await until(end.over.is_set)
        assert isinstance(end.result, VersionMismatchError)
        for text in (refusal.text, end.result.message):
            assert "1" in text
            assert "2" in text
            assert "update" in text


@pytest.mark.parametrize("greet", [False, True])
@pytest.mark.parametrize("frame", [b"", b"garbage", bytes(100_000), b"\x92\x0e\x90"])
async def test_garbage(frame: bytes, greet: bool) -> None:
    async with serving() as server, raw(server) as websocket:
        if greet:
            await websocket.send_bytes(encode(hello(A)))
        await websocket.send_bytes(frame)
        end = await server.ends.get()
        await until(end.over.is_set)
        assert isinstance(end.result, ProtocolError)
        assert end.link.session.close_reason is m.Reason.BAD_MESSAGE


async def test_text_frames() -> None:
    async with serving() as server, raw(server) as websocket:
        await websocket.send_str("{}")
        end = await server.ends.get()
        await until(end.over.is_set)
        assert end.link.session.close_reason is m.Reason.BAD_MESSAGE


async def test_an_oversize_frame() -> None:
    async with serving() as server, raw(server) as websocket:
        await websocket.send_bytes(encode(hello(A)))
        end = await server.ends.get()
        await until(end.opened.is_set)
        with suppress(ConnectionError):  # it stops reading in the middle
            await websocket.send_bytes(bytes(limits.FRAME_BYTES + 100))
        await until(end.over.is_set)
        assert isinstance(end.result, PeerLostError)
        assert "exceeds limit" in end.result.message


async def test_a_refused_duplicate() -> None:
    async with serving() as server, linked(server) as (near, far):
        far.link.refuse(m.Reason.DUPLICATE)
        await until(lambda: near.over.is_set() and far.over.is_set())
        for end in (near, far):
            assert isinstance(end.result, RefusedError)
            assert end.link.session.close_reason is m.Reason.DUPLICATE


async def run_with(server: Server, on_message: Callable[[AnyMessage], None]) -> Link:
    """Run a link to the server with this handler, until it is over."""
    async with aiohttp.ClientSession() as http:
        websocket = await dial(http, "127.0.0.1", server.port, timings=QUICK)
        link = Link(websocket, Session(hello(A), QUICK), timings=QUICK, dialled=True)
        await link.run(on_message)
    return link


async def test_a_handler_that_refuses() -> None:
    def refuse(_: AnyMessage) -> None:
        raise ProtocolError("no such block")

    async with serving() as server:
        link = await run_with(server, refuse)
        assert str(link.close_error) == "no such block"
        far = await server.ends.get()
        await until(far.over.is_set)
        assert "no such block" in str(far.result)


async def test_a_handler_that_fails() -> None:
    def fail(_: AnyMessage) -> None:
        raise KeyError("a fault of the program")

    async with serving() as server:
        with pytest.raises(KeyError):
            await run_with(server, fail)
        far = await server.ends.get()
        await until(far.over.is_set)
        assert far.link.session.close_reason is m.Reason.INTERNAL


# --- silence --------------------------------------------------------------------------------------


async def test_a_silent_peer_times_out() -> None:
    async with serving() as server, raw(server) as websocket:
        await websocket.send_bytes(encode(hello(A)))
        end = await server.ends.get()
        await until(end.opened.is_set)
        began = time.perf_counter()
        await until(end.over.is_set)
        took = time.perf_counter() - began
        assert isinstance(end.result, PeerLostError)
        assert "nothing heard" in end.result.message
        assert QUICK.silence_s * 0.9 < took < QUICK.silence_s + patient(3)


async def test_no_hello() -> None:
    async with serving() as server, raw(server):
        end = await server.ends.get()
        await until(end.over.is_set)
        assert "no hello" in str(end.result)


async def test_bytes_that_drip_into_one_frame_are_silence() -> None:
    async with serving() as server, raw(server) as websocket:
        await websocket.send_bytes(encode(hello(A)))
        end = await server.ends.get()
        await until(end.opened.is_set)
        transport = websocket._response.connection.transport  # type: ignore[union-attr]
        assert transport is not None
        transport.write(b"\x82\xfe\x40\x00" + bytes(4))  # head of a masked frame of 16 KiB
        while not end.over.is_set():
            transport.write(b"\x00")
            await asyncio.sleep(0.01)
        assert "nothing heard" in str(end.result)


async def test_two_ends_that_answer_stay() -> None:
    async with serving() as server, linked(server) as (near, far):
        await asyncio.sleep(2 * QUICK.silence_s)
        assert near.link.is_open
        assert far.link.is_open


async def test_a_cut_connection() -> None:
    async with serving() as server, linked(server) as (near, far):
        transport = transport_of(near.link._socket)
        assert transport is not None
        transport.abort()
        await until(lambda: near.over.is_set() and far.over.is_set())
        assert isinstance(near.result, PeerLostError)
        assert isinstance(far.result, PeerLostError)


async def test_cancelling_run_closes_the_socket() -> None:
    async with serving() as server, aiohttp.ClientSession() as http:
        websocket = await dial(http, "127.0.0.1", server.port, timings=QUICK)
        link = Link(websocket, Session(hello(A), QUICK), timings=QUICK, dialled=True)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await link.run(lambda _: None)
        far = await server.ends.get()
        await until(far.over.is_set)
        assert isinstance(far.result, PeerLostError)
        assert websocket.closed


# --- opening --------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_nobody_there() -> None:
    async with aiohttp.ClientSession() as http:
        port = free_port()
        with pytest.raises(NoPeerError) as caught:
            await dial(http, "127.0.0.1", port, timings=QUICK)
        assert f"127.0.0.1:{port}" in caught.value.message
        assert "astra-mesh peer" in caught.value.message
        with pytest.raises(NoPeerError):
            await dial(http, "no-such-host.invalid", 1, timings=QUICK)
        with pytest.raises(NoPeerError):
            await dial(http, "", 0, timings=QUICK)


async def test_something_else_there() -> None:
    app = web.Application()
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    async with aiohttp.ClientSession() as http:
        with pytest.raises(NoPeerError, match="no astra_mesh peer"):
            await dial(http, "127.0.0.1", runner.addresses[0][1], timings=QUICK)
    await runner.cleanup()


async def test_somebody_who_never_answers() -> None:
    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(hold, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    async with aiohttp.ClientSession() as http:
        with pytest.raises(NoPeerError, match="no answer within"):
            await dial(http, "127.0.0.1", port, timings=QUICK)
    silent.close()
    await silent.wait_closed()


async def test_the_first_address_that_answers() -> None:
    async with serving() as server, aiohttp.ClientSession() as http:
        bad, good = ("127.0.0.1", free_port()), ("127.0.0.1", server.port)
        websocket, address = await dial_any(http, [bad, good], timings=QUICK)
        assert address == good
        await websocket.close()
        with pytest.raises(NoPeerError):
            await dial_any(http, [bad, bad], timings=QUICK)
        with pytest.raises(NoPeerError):
            await dial_any(http, [], timings=QUICK)


async def test_web_pages_are_refused() -> None:
    async with serving() as server, aiohttp.ClientSession() as http:
        url = f"http://127.0.0.1:{server.port}{PATH}"
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await http.ws_connect(url, origin="http://evil.example")
        assert caught.value.status == 403
        async with http.get(url) as response:
            assert response.status == 426


async def test_too_many_links() -> None:
    async with serving() as server, aiohttp.ClientSession() as http:
        sockets = [await dial(http, "127.0.0.1", server.port, timings=QUICK) for _ in range(3)]
        with pytest.raises(NoPeerError, match="503"):
            await dial(http, "127.0.0.1", server.port, timings=QUICK)
        for websocket in sockets:
            await websocket.close()
        ends = [await server.ends.get() for _ in range(3)]
        await until(lambda: all(end.over.is_set() for end in ends))
        again = await dial(http, "127.0.0.1", server.port, timings=QUICK)
        await again.close()
