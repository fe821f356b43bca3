"""The client against a peer that follows a script."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import astra_mesh
from astra_mesh import errors
from astra_mesh.client import Mesh, connect
from astra_mesh.client.line import UNREAD_EVENTS
from astra_mesh.limits import WINDOW_BYTES, WINDOW_MIN_BYTES
from astra_mesh.mesh.link import Link
from astra_mesh.mesh.sockets import transport_of
from astra_mesh.mesh.trust import Known
from astra_mesh.wire.codec import AnyMessage
from astra_mesh.wire.messages import (
    Ask,
    Cancel,
    Event,
    Fail,
    Label,
    Result,
    Subscribe,
    Task,
    Token,
)
from tests.integration.fake_peer import TIMINGS, FakePeer, fake_peer, nothing, planned, report
from tests.timings import patient

WORDS = ["Once", " upon", " a", " time"]


def tell(peer: FakePeer, link: Link, message: AnyMessage) -> None:
    """A whole generation at once."""
    if isinstance(message, Ask):
        link.send(planned(message))
        for index, word in enumerate(WORDS):
            link.send(Token(message.request, index, index + 7, word))
        link.send(Result(request=message.request, report=report(len(WORDS))))


def tell_two(peer: FakePeer, link: Link, message: AnyMessage) -> None:
    """Two tokens, and no end."""
    if isinstance(message, Ask):
        link.send(planned(message))
        for index, word in enumerate(WORDS[:2]):
            link.send(Token(message.request, index, index + 7, word))


def open_mesh(peer: FakePeer, window_bytes: int = WINDOW_BYTES) -> Mesh:
    timings = replace(TIMINGS, dial_s=patient(5.0))  # a busy machine takes its time
    return Mesh(peer.address, timings=timings, window_bytes=window_bytes)


# --- streams --------------------------------------------------------------------------------------


async def test_tokens_come_in_order_with_plan_text_and_report() -> None:
    async with fake_peer(tell) as peer, open_mesh(peer) as mesh:
        generation = mesh.generate("toy", "Hello", max_new_tokens=4, seed=-1, use="all", rate=32)
        tokens = [token async for token in generation]
    assert [str(token) for token in tokens] == WORDS
    assert [(token.id, token.index) for token in tokens] == [(7, 0), (8, 1), (9, 2), (10, 3)]
    assert generation.text == "Once upon a time"
    assert generation.planned is not None
    assert generation.planned.reason == "a test"
    assert generation.report is not None
    assert generation.report.new_tokens == 4
    ask = await peer.saw(Ask)
    assert isinstance(ask, Ask)
    assert ask.sampling is not None
    assert (ask.text, ask.options.use.value, ask.options.rate) == ("Hello", "all", 32)
    assert ask.sampling.seed == 2**63 - 1
    assert not any(isinstance(message, Cancel) for message in peer.seen)


async def test_token_ids_are_a_prompt_too() -> None:
    async with fake_peer(tell) as peer, open_mesh(peer) as mesh:
        async for _ in mesh.generate("toy", list(np.array([1, 2, 3]))):
            pass
        ask = await peer.saw(Ask)
    assert isinstance(ask, Ask)
    assert ask.tokens == [1, 2, 3]
    assert ask.text is None


async def test_nothing_is_asked_before_the_first_step() -> None:
    async with fake_peer(tell) as peer, open_mesh(peer) as mesh:
        mesh.generate("toy", "Hello")
        await mesh.peers()
        assert not any(isinstance(message, Ask) for message in peer.seen)


async def test_a_generation_is_iterated_once() -> None:
    async with fake_peer(tell) as peer, open_mesh(peer) as mesh:
        generation = mesh.generate("toy", "Hello")
        assert len([token async for token in generation]) == 4
        with pytest.raises(RuntimeError, match="once"):
            async for _ in generation:
                pass


async def test_single_steps_and_then_a_loop_share_one_stream() -> None:
    async with fake_peer(tell) as peer, open_mesh(peer) as mesh:
        generation = mesh.generate("toy", "Hello")
        first = await anext(generation)
        rest = [token async for token in generation]
    assert [first.text, *(token.text for token in rest)] == WORDS


# --- leaving --------------------------------------------------------------------------------------


async def test_break_cancels_though_the_generation_is_kept() -> None:
    async with fake_peer(tell_two) as peer, open_mesh(peer) as mesh:
        generation = mesh.generate("toy", "Hello")
        async for token in generation:
            assert token.text == "Once"
            break
        cancel = await peer.saw(Cancel)
        ask = await peer.saw(Ask)
        assert isinstance(cancel, Cancel)
        assert isinstance(ask, Ask)
        assert cancel.request == ask.request
        assert generation.text == "Once"


async def test_an_exception_in_the_loop_cancels() -> None:
    async with fake_peer(tell_two) as peer, open_mesh(peer) as mesh:
        with contextlib.suppress(KeyError):
            async for _ in mesh.generate("toy", "Hello"):
                raise KeyError
        await peer.saw(Cancel)


async def test_forgetting_a_started_generation_cancels() -> None:
    async with fake_peer(tell_two) as peer, open_mesh(peer) as mesh:
        await anext(mesh.generate("toy", "Hello"))
        gc.collect()
        await peer.saw(Cancel)


@pytest.mark.parametrize("style", ["async with", "aclosing", "aclose"])
async def test_closing_cancels_before_the_next_line(style: str) -> None:
    async with fake_peer(tell_two) as peer, open_mesh(peer) as mesh:
        generation = mesh.generate("toy", "Hello")
        if style == "async with":
            async with generation:
                async for _ in generation:
                    break
        elif style == "aclosing":
            async with contextlib.aclosing(generation):
                async for _ in generation:
                    break
        else:
            await anext(generation)
            await generation.aclose()
        await mesh.peers()  # the peer answers this after it has read the cancellation
        assert sum(isinstance(message, Cancel) for message in peer.seen) == 1


async def test_cancelling_the_task_cancels_the_request() -> None:
    async with fake_peer(tell_two) as peer, open_mesh(peer) as mesh:

        async def read() -> None:
            async for _ in mesh.generate("toy", "Hello"):
                pass

        task = asyncio.create_task(read())
        await peer.saw(Ask)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await peer.saw(Cancel)


async def test_cancelling_a_classification_cancels_the_request() -> None:
    async with fake_peer(nothing) as peer, open_mesh(peer) as mesh:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await mesh.classify("toy", "a text")
        await peer.saw(Cancel)


async def test_closing_from_elsewhere_ends_a_waiting_reader() -> None:
    async with fake_peer(nothing) as peer, open_mesh(peer) as mesh:
        generation = mesh.generate("toy", "Hello")

        async def read() -> None:
            async for _ in generation:
                pass

        task = asyncio.create_task(read())
        await peer.saw(Ask)
        await generation.aclose()
        with pytest.raises(errors.CancelledRequestError):
            await task


# --- slow readers ---------------------------------------------------------------------------------


async def test_a_slow_reader_holds_the_stream_back_and_gets_all_of_it() -> None:
    text, count = "x" * 1024, 1_000  # a megabyte, four windows

    def flood(peer: FakePeer, link: Link, message: AnyMessage) -> None:
        if isinstance(message, Ask):
            for index in range(count):
                link.send(Token(message.request, index, 1, text))
            link.send(Result(request=message.request, report=report(count)))

    async with (
        fake_peer(flood) as peer,
        open_mesh(peer, window_bytes=WINDOW_MIN_BYTES) as mesh,
    ):
        generation = mesh.generate("toy", "Hello")
        first = await anext(generation)
        await asyncio.sleep(0.2)
        assert peer.links[0].session.queued_bytes > 500_000  # it waits at the peer, not here
        await mesh.peers()  # control is not held back
        rest = [token async for token in generation]
    assert [first.index, *(token.index for token in rest)] == list(range(count))


async def test_what_was_not_read_is_given_back_when_the_loop_is_left() -> None:
    async with (
        fake_peer(tell_two) as peer,
        open_mesh(peer, window_bytes=WINDOW_MIN_BYTES) as mesh,
    ):
        async with mesh.generate("toy", "Hello") as generation:
            await anext(generation)
        assert mesh._open_line() is not None
        assert mesh._open_line()._link.session.unconsumed_bytes == 0
        assert not mesh._open_line()._conversations


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [errors.UnknownModelError, errors.PromptTooLongError, errors.BusyError]
)
async def test_a_failure_is_the_same_error_here(kind: type[errors.AstraMeshError]) -> None:
    def fail(peer: FakePeer, link: Link, message: AnyMessage) -> None:
        if isinstance(message, Ask):
            link.send(Fail(request=message.request, code=kind.code, text="no\x1b[31m good"))

    async with fake_peer(fail) as peer, open_mesh(peer) as mesh:
        with pytest.raises(kind, match=r"no \[31m good"):
            async for _ in mesh.generate("toy", "Hello"):
                pass
        with pytest.raises(kind):
            await mesh.classify("toy", b"image")
        with pytest.raises(kind):
            await mesh.embed("toy", "text")
        assert not any(isinstance(message, Cancel) for message in peer.seen)


async def test_a_peer_that_dies_in_the_middle_is_named_after_what_it_said() -> None:
    async with fake_peer(tell_two) as peer, open_mesh(peer) as mesh:
        generation = mesh.generate("toy", "Hello")

        async def read() -> None:
            async for token in generation:
                if token.index == 1:
                    transport = transport_of(peer.links[0]._socket)
                    assert transport is not None
                    transport.abort()

        with pytest.raises(errors.PeerLostError, match=r"fake at 127\.0\.0\.1:\d+ went away"):
            await read()
        assert generation.text == "".join(WORDS[:2])
        with pytest.raises(errors.PeerLostError):
            await mesh.peers()


async def test_a_peer_that_says_goodbye_in_the_middle_is_named() -> None:
    async with fake_peer(tell_two) as peer, open_mesh(peer) as mesh:

        async def read() -> None:
            async for token in mesh.generate("toy", "Hello"):
                if token.index == 1:
                    await peer.links[0].close()

        with pytest.raises(errors.PeerLostError, match="said goodbye"):
            await read()


async def test_closing_the_mesh_ends_its_readers() -> None:
    async with fake_peer(nothing) as peer:
        mesh = await open_mesh(peer)
        task = asyncio.create_task(mesh.embed("toy", "text"))
        await peer.saw(Ask)
        await mesh.close()
        with pytest.raises(errors.PeerLostError, match="this program closed its connection"):
            await task
        with pytest.raises(RuntimeError, match="not open"):
            await mesh.peers()


async def test_events_end_where_the_mesh_is_closed_here() -> None:
    async with fake_peer(nothing) as peer:
        mesh = await open_mesh(peer)

        async def read() -> list[object]:
            return [event async for event in mesh.events()]

        task = asyncio.create_task(read())
        await peer.saw(Subscribe)
        await mesh.close()
        assert await asyncio.wait_for(task, patient(5.0)) == []


async def test_nobody_at_the_address() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(errors.NoPeerError, match=f"127.0.0.1:{port}"):
        async with connect(f"127.0.0.1:{port}"):
            pass


async def test_another_protocol_version_is_named() -> None:
    async with fake_peer(version=99) as peer:
        with pytest.raises(errors.VersionMismatchError, match="update this device"):
            async with open_mesh(peer):
                pass


async def test_someone_who_never_says_hello_is_given_up() -> None:
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(errors.NoPeerError):
            async with connect(("127.0.0.1", port)):
                pass


async def test_a_peer_that_goes_before_its_hello_is_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async def goes(self: FakePeer, link: Link, known: Known | None) -> None:
        transport = transport_of(link._socket)
        assert transport is not None
        transport.abort()

    monkeypatch.setattr(FakePeer, "run_link", goes)
    async with fake_peer() as peer:
        with pytest.raises(errors.NoPeerError, match="before it said hello"):
            async with open_mesh(peer):
                pass


async def test_a_mesh_must_be_open() -> None:
    with pytest.raises(RuntimeError, match="async with"):
        connect(("127.0.0.1", 1)).generate("toy", "Hello")


# --- classify, embed, list, events ----------------------------------------------------------------


def label(peer: FakePeer, link: Link, message: AnyMessage) -> None:
    if isinstance(message, Ask) and message.task is Task.CLASSIFY:
        link.send(planned(message))
        labels = [Label(label=f"class {i}", probability=0.5 / (i + 1)) for i in range(10)]
        link.send(Result(request=message.request, report=report(), labels=labels))
    elif isinstance(message, Ask):
        vector = np.array([3.0, 4.0], dtype="<f4").tobytes()
        link.send(Result(request=message.request, report=report(), vector=vector))


async def test_images_come_as_path_bytes_or_picture_and_a_str_is_text(tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 4), "red")
    file = io.BytesIO()
    picture.save(file, format="PNG")
    path = tmp_path / "red.png"
    path.write_bytes(file.getvalue())
    async with fake_peer(label) as peer, open_mesh(peer) as mesh:
        answer = await mesh.classify("toy", path, top=3)
        await mesh.classify("toy", file.getvalue())
        await mesh.classify("toy", picture)
        await mesh.classify("toy", str(path))
    assert [one.label for one in answer.labels] == ["class 0", "class 1", "class 2"]
    assert answer.planned is not None
    assert answer.report.bits_per_token == 32.0
    asks = [message for message in peer.seen if isinstance(message, Ask)]
    assert asks[0].image == asks[1].image == file.getvalue()
    assert asks[2].image is not None
    assert asks[2].image.startswith(b"\x89PNG")
    assert asks[3].text == str(path)
    assert asks[3].image is None


async def test_embeddings_are_normalised_unless_asked_otherwise() -> None:
    async with fake_peer(label) as peer, open_mesh(peer) as mesh:
        unit = await mesh.embed("toy", "text")
        raw = await mesh.embed("toy", "text", normalize=False)
    np.testing.assert_allclose(unit.vector, [0.6, 0.8], rtol=1e-6)
    np.testing.assert_array_equal(raw.vector, np.array([3.0, 4.0], dtype=np.float32))
    assert raw.vector.dtype == np.float32


async def test_peers_and_models() -> None:
    async with fake_peer() as peer, open_mesh(peer) as mesh:
        peer.peers = 2
        assert [info.name for info in await mesh.peers()] == ["fake", "other"]
        (model,) = await mesh.models()
        assert mesh.peer.name == "fake"
    assert (model.name, model.peers) == ("toy", ("fake", "other"))


async def test_events_come_until_the_loop_is_left() -> None:
    def announce(peer: FakePeer, link: Link, message: AnyMessage) -> None:
        if isinstance(message, Subscribe):
            for kind in ("peer-joined", "peer-left"):
                link.send(Event(request=message.request, kind=kind, name="other"))

    async with fake_peer(announce) as peer, open_mesh(peer) as mesh:
        kinds = []
        async for event in mesh.events():
            kinds.append(event.kind)
            if event.kind == "peer-left":
                break
        await peer.saw(Cancel)
    assert kinds == ["peer-joined", "peer-left"]


async def test_unread_events_are_bounded() -> None:
    def announce(peer: FakePeer, link: Link, message: AnyMessage) -> None:
        if isinstance(message, Subscribe):
            for number in range(UNREAD_EVENTS + 10):
                link.send(Event(request=message.request, kind="peer-joined", name=str(number)))

    async with fake_peer(announce) as peer, open_mesh(peer) as mesh:
        events = mesh.events()
        first = await anext(events)
        for _ in range(3):
            await mesh.peers()
        second = await anext(events)
        await events.aclose()
    assert first.name == "0"
    assert int(second.name) >= 9


# --- finding a peer -------------------------------------------------------------------------------


async def test_the_environment_names_the_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fake_peer() as peer:
        monkeypatch.setenv("ASTRA_MESH_PEER", f"127.0.0.1:{peer.port}")
        async with astra_mesh.connect() as mesh:
            assert mesh.peer.name == "fake"
            assert not mesh.embedded
