"""A peer's life: start, stop, errors, its links, and what is left of it. (Hygiene: conftest.)"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from astra_mesh import limits
from astra_mesh.engine.pipeline import Pipeline
from astra_mesh.errors import (
    MeshError,
    NoPeerError,
    PeerLostError,
    PortInUseError,
    UnknownModelError,
)
from astra_mesh.mesh import connect, listening
from astra_mesh.mesh.connect import Secure
from astra_mesh.mesh.discovery import Discovery
from astra_mesh.mesh.link import Link
from astra_mesh.mesh.membership import Membership
from astra_mesh.mesh.sockets import transport_of
from astra_mesh.mesh.trust import Known
from astra_mesh.peer import Peer, PeerConfig, links
from astra_mesh.peer import port as port_module
from astra_mesh.peer.links import LinkKeeper
from astra_mesh.peer.local import _folder, local_peers
from astra_mesh.wire.messages import PROTOCOL_VERSION, Event, Options, PeerId, Task, Use
from tests.integration.between import Relay
from tests.integration.fake_peer import fake_peer
from tests.integration.mesh_fixtures import client_of, mesh_of, until
from tests.integration.secure import Caller
from tests.timings import patient

ALL = Options(use=Use.ALL)


def config(**more: Any) -> PeerConfig:
    given: dict[str, Any] = {"port": 0, "listen": "127.0.0.1", "models": ()}
    given |= {"discovery": False, "ephemeral": True}
    return PeerConfig(**given | more)


def ended(peer: Peer) -> bool:
    """Whether it holds nothing that needs closing."""
    return peer._main is None and peer._links is None and peer._compute.closed


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def links_of(peer: Peer) -> set[Link]:
    assert peer._links is not None
    return set(peer._links._links)


async def test_a_link_that_stays_is_open_at_both_ends_before_the_other_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two peers dial each other, and the hello of the one whose link stays comes late."""
    closed, original = list[str](), Membership.closed

    def counted(self: Membership[Link], *args: Any, **more: Any) -> bool:
        if last := original(self, *args, **more):
            closed.append(self.own)
        return last

    monkeypatch.setattr(Membership, "closed", counted)
    async with Peer(config()) as one, Peer(config()) as other:
        lower, higher = sorted((one, other), key=lambda peer: peer.id)
        async with Relay(higher.port) as slow:
            slow.delay_s = 0.3
            dial(lower, slow.port)
            dial(higher, lower.port)
            await until(lambda: lower.others() and higher.others())
            await until(lambda: len(links_of(lower)) == len(links_of(higher)) == 2)
            await until(lambda: len(links_of(lower)) == len(links_of(higher)) == 1)
            assert closed == []
            assert all(link.dialled for link in links_of(lower))


def dial(peer: Peer, port: int) -> None:
    """As if the address had been typed."""
    assert peer._links is not None
    peer._links._membership.typed("127.0.0.1", port, 0.0)
    peer._links._wake.set()


async def broken(*args: object) -> None:
    raise RuntimeError("a bug")


# --- start and stop -------------------------------------------------------------------------------


async def test_stop_before_after_and_twice() -> None:
    peer = Peer(config())
    await peer.stop()
    with pytest.raises(RuntimeError, match="once"):
        await peer.start()
    other = Peer(config())
    await other.start()
    with pytest.raises(RuntimeError, match="once"):
        await other.start()
    assert other.port > 0  # it runs on
    await other.stop()
    await other.stop()
    assert ended(peer)
    assert ended(other)


async def test_stop_right_after_start_closes_the_port() -> None:
    peer = Peer(config())
    await peer.start()
    port = peer.port
    await peer.stop()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


@pytest.mark.parametrize("steps", [0, 1, 2, 5, 20])
async def test_stop_while_it_starts(steps: int) -> None:
    peer = Peer(config(ephemeral=False))
    starting = asyncio.ensure_future(peer.start())
    for _ in range(steps):
        await asyncio.sleep(0)
    await peer.stop()
    await asyncio.gather(starting, return_exceptions=True)
    assert ended(peer)
    assert await asyncio.to_thread(local_peers) == []


@pytest.mark.parametrize("delay_s", [0.0, 0.001, 0.005, 0.02])
async def test_a_start_that_is_cancelled_leaves_nothing(delay_s: float) -> None:
    peer = Peer(config(ephemeral=False))
    starting = asyncio.ensure_future(peer.start())
    await asyncio.sleep(delay_s)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    if starting.cancelled():
        assert peer._main is None
    await peer.stop()
    assert ended(peer)
    assert await asyncio.to_thread(local_peers) == []


async def test_a_start_that_fails_leaves_nothing() -> None:
    async with Peer(config()) as first:
        taken = Peer(config(port=first.port, ephemeral=False))
        with pytest.raises(PortInUseError, match="--port"):
            await taken.start()
        nowhere = Peer(config(listen="203.0.113.1", ephemeral=False))
        with pytest.raises(MeshError, match=r"203\.0\.113\.1"):
            await nowhere.start()
        unknown = Peer(config(models=("no-such-model",), ephemeral=False))
        with pytest.raises(UnknownModelError):
            async with unknown:
                pass
        assert await asyncio.to_thread(local_peers) == []
    for peer in (taken, nowhere, unknown):
        assert ended(peer)


async def test_run_ends_when_it_is_stopped() -> None:
    peer = Peer(config())
    running = asyncio.ensure_future(peer.run())
    await until(lambda: peer.port)
    await peer.stop()
    await asyncio.wait_for(running, 5)
    assert ended(peer)


async def test_an_error_that_ends_a_peer_is_logged_and_raised_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(LinkKeeper, "_dial_forever", broken)
    peer = Peer(config(ephemeral=False))
    with pytest.raises(ExceptionGroup):
        await asyncio.wait_for(peer.run(), 5)
    assert ended(peer)
    other = Peer(config())
    await other.start()
    await asyncio.sleep(0.05)
    await other.stop()
    assert ended(other)
    assert sum("ended by an error" in record.getMessage() for record in caplog.records) == 2
    assert await asyncio.to_thread(local_peers) == []


async def test_stop_that_is_cancelled_still_closes_the_port(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def slow(self: LinkKeeper) -> None:
        await asyncio.sleep(0.2)

    monkeypatch.setattr(LinkKeeper, "_say_goodbye", slow)
    peer = Peer(config(ephemeral=False))
    await peer.start()
    main = peer._main
    assert main is not None
    stopping = asyncio.ensure_future(peer.stop())
    await asyncio.sleep(0.05)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert ended(peer)
    assert await asyncio.to_thread(local_peers) == []
    await asyncio.wait([main])


async def test_a_record_is_there_while_it_runs() -> None:
    async with Peer(config(ephemeral=False, name="board")) as peer:
        (record,) = await asyncio.to_thread(local_peers)
        assert (record.name, record.port, record.id) == ("board", peer.port, peer.id)
    assert await asyncio.to_thread(local_peers) == []


async def test_without_a_place_for_the_record_it_runs_anyway(
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = _folder()
    await asyncio.to_thread(folder.parent.mkdir, parents=True)
    await asyncio.to_thread(folder.write_text, "in the way")
    async with Peer(config(ephemeral=False)) as peer:
        assert peer.port
    assert any("will not find" in record.getMessage() for record in caplog.records)


async def test_an_owner_that_fails_on_events_does_no_harm(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def on_event(event: Event) -> None:
        raise RuntimeError("a bug")

    async with Peer(config(), on_event) as peer:
        typed = (("127.0.0.1", peer.port),)
        async with Peer(config(peers=typed)) as other:
            await until(lambda: peer.others() and other.others())
        await until(lambda: not peer.others())
        assert sum("take an event" in record.getMessage() for record in caplog.records) == 2


def test_a_name_of_control_characters_is_none() -> None:
    assert Peer(config(name="\x00\x1b")).name == "peer"
    assert len(Peer(config(name="x" * 100)).name) == 64


async def test_stop_while_requests_run(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = asyncio.Event()

    async def prefill(self: Pipeline) -> None:
        started.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(Pipeline, "prefill", prefill)
    async with mesh_of(["a", "b"], models) as peers, client_of(peers[1]) as client:
        client.send(Task.GENERATE, "words", tokens=[1] * 20, options=ALL)
        await asyncio.wait_for(started.wait(), 10)
        await peers[1].stop()
        await until(lambda: not client.link.is_open)
        assert client.link.close_error is None  # a goodbye
        requests = peers[0]._requests
        assert requests is not None
        await until(lambda: not requests._parts and not requests._exchanges)
        assert ended(peers[1])


# --- errors in tasks around links -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["dial_any", "probe"])
async def test_an_error_around_a_link_ends_only_that(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    async with Peer(config()) as peer:
        typed = (("127.0.0.1", peer.port),)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(links, name, broken)
            other = Peer(config(peers=typed))
            await other.start()
            await until(lambda: any(record.exc_info for record in caplog.records))
        await until(lambda: peer.others() and other.others())  # it dialled again
        await other.stop()


async def test_discovery_that_fails_leaves_typed_addresses(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Discovery, "run", broken)
    async with Peer(config()) as peer:
        typed = (("127.0.0.1", peer.port),)
        async with Peer(config(peers=typed, discovery=True)) as other:
            await until(lambda: peer.others() and other.others())
    assert any("discovery ended" in record.getMessage() for record in caplog.records)


async def test_the_record_says_why_nobody_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """That is what ``doctor`` reads."""
    monkeypatch.setattr(limits, "INTERFACE_POLL_S", 0.05)

    def told() -> list[str | None]:
        return [one.problem for one in local_peers()]

    async def follows(expected: str) -> None:
        while await asyncio.to_thread(told) != [expected]:
            await asyncio.sleep(0.02)

    kept = {"ephemeral": False, "state_dir": tmp_path}
    async with asyncio.timeout(patient(20)):
        async with Peer(config(**kept)):
            await follows("it was started with --no-discovery")
        async with Peer(config(**kept, discovery=True)) as peer:
            await follows("")
            assert peer._links is not None
            assert peer._links.discovery is not None
            monkeypatch.setattr(peer._links.discovery, "_note_reach", lambda: None)
            peer._links.discovery.problem = "a bug"
            await follows("a bug")
        assert await asyncio.to_thread(told) == []


# --- ports ----------------------------------------------------------------------------------------


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
async def test_any_free_port_is_one_for_all_families() -> None:
    async with Peer(config(listen=None)) as peer:
        for host in ("127.0.0.1", "::1"):
            _, writer = await asyncio.open_connection(host, peer.port)
            writer.close()
            await writer.wait_closed()


async def test_a_port_that_is_taken_meanwhile_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, wanted = listening.open_sockets, []

    async def open_sockets(host: str | None, port: int) -> Any:
        wanted.append(port)
        if len(wanted) == 2:
            raise PortInUseError("taken meanwhile")
        sockets = await original(host, port)
        return [*sockets, *await original(host, 0)] if len(wanted) == 1 else sockets

    monkeypatch.setattr(listening, "open_sockets", open_sockets)
    async with Peer(config()) as peer:
        assert len(wanted) == 3
        _, writer = await asyncio.open_connection("127.0.0.1", peer.port)
        writer.close()
        await writer.wait_closed()


async def test_the_usual_port_or_any_free_one(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setattr(port_module, "DEFAULT_PORT", port)
    async with Peer(config(port=None)) as first, Peer(config(port=None)) as second:
        assert first.port == port
        assert second.port not in (0, port)


# --- who finds whom -------------------------------------------------------------------------------


async def test_two_that_dial_each_other_keep_one_link() -> None:
    ports = [free_port(), free_port()]
    configs = [config(port=ports[i], peers=(("127.0.0.1", ports[1 - i]),)) for i in (0, 1)]
    async with Peer(configs[0]) as one, Peer(configs[1]) as two:
        await until(lambda: one.others() and two.others())
        await until(lambda: len(links_of(one)) == len(links_of(two)) == 1)
        await asyncio.sleep(1.5)
        assert len(links_of(one)) == len(links_of(two)) == 1
        (link,) = links_of(one)
        assert link.dialled is (one.id < two.id)
        assert [link.peer.name for link in links_of(two) if link.peer] == [one.name]


@pytest.fixture
def dials(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When somebody was dialled."""
    found: list[float] = []
    original = connect.dial_any

    async def dial_any(*args: Any, **kwargs: Any) -> Any:
        found.append(time.monotonic())
        return await original(*args, **kwargs)

    monkeypatch.setattr(links, "dial_any", dial_any)
    return found


async def test_the_own_address_is_dialled_once(
    dials: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    async with Peer(config(port=port, peers=(("127.0.0.1", port),))) as peer:
        await asyncio.sleep(2.0)
        assert len(dials) == 1
        assert peer.others() == {}
        assert links_of(peer) == set()
    assert any("itself" in record.getMessage() for record in caplog.records)


async def test_another_version_is_named_once_and_not_dialled_all_the_time(
    dials: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        fake_peer(version=PROTOCOL_VERSION + 1) as fake,
        Peer(config(peers=(fake.address,))) as peer,
    ):
        await asyncio.sleep(2.5)
        assert 2 <= len(dials) <= 4
        assert peer.others() == {}
    named = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(named) == 1
    assert f"version {PROTOCOL_VERSION + 1}" in named[0]
    assert "update" in named[0]


async def test_a_caller_of_another_version_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    import aiohttp

    from astra_mesh.mesh.session import Session
    from astra_mesh.wire.messages import MAGIC, Hello, Role

    odd = Hello(
        magic=MAGIC,
        version=PROTOCOL_VERSION + 1,
        peer=PeerId("b" * 64),
        name="newer",
        role=Role.PEER,
        window_bytes=1 << 20,
    )
    caller = await Caller.new()
    async with Peer(config()) as peer, aiohttp.ClientSession() as http:
        for _ in range(3):
            socket_ = await caller.dial(http, peer.port)
            error = await Link(socket_, Session(odd), dialled=True).run(lambda message: None)
            assert error is not None
            assert error.code == "version-mismatch"
        await until(lambda: not links_of(peer))
    named = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(named) == 1
    assert f"version {PROTOCOL_VERSION + 1}" in named[0]


async def test_nobody_at_a_typed_address_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    async with Peer(config(peers=(("127.0.0.1", free_port()),))):
        await asyncio.sleep(2.0)
    named = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(named) == 1
    assert NoPeerError.code not in named[0]
    assert "no peer at 127.0.0.1" in named[0]


# --- leaving --------------------------------------------------------------------------------------


@asynccontextmanager
async def pair(events: list[Event]) -> AsyncIterator[tuple[Peer, Peer]]:
    """A peer that takes down events, and another that dialled it."""
    async with Peer(config(name="stays"), events.append) as stays:
        typed = (("127.0.0.1", stays.port),)
        async with Peer(config(name="leaves", peers=typed)) as leaves:
            await until(lambda: stays.others() and leaves.others())
            yield stays, leaves


async def left(stays: Peer, events: list[Event], began: float) -> tuple[float, str]:
    await until(lambda: any(event.kind == "peer-left" for event in events))
    return time.monotonic() - began, next(e.text for e in events if e.kind == "peer-left")


@pytest.mark.parametrize("way", ["stop", "cancel"])
async def test_a_goodbye_is_seen_at_once(way: str) -> None:
    events: list[Event] = []
    async with Peer(config(name="stays"), events.append) as stays:
        leaves = Peer(config(name="leaves", peers=(("127.0.0.1", stays.port),)))
        running = asyncio.ensure_future(leaves.run())
        await until(lambda: stays.others())
        began = time.monotonic()
        if way == "cancel":
            running.cancel()
        else:
            await leaves.stop()
        seconds, why = await left(stays, events, began)
        await asyncio.gather(running, return_exceptions=True)
        assert running.cancelled() is (way == "cancel")
        assert seconds < patient(0.5)
        assert "goodbye" in why
        assert stays.others() == {}
        assert ended(leaves)


@pytest.mark.parametrize("end", [0, 1])
async def test_a_broken_connection_is_seen_and_made_again(end: int) -> None:
    events: list[Event] = []
    async with pair(events) as (stays, leaves):
        began = time.monotonic()
        (link,) = links_of((stays, leaves)[end])
        transport = transport_of(link._socket)
        assert transport is not None
        transport.abort()
        seconds, why = await left(stays, events, began)
        assert seconds < patient(5.0)
        assert "lost" in why
        await until(lambda: stays.others() and leaves.others())


async def test_a_silent_peer_is_gone_within_five_seconds() -> None:
    events: list[Event] = []
    async with pair(events) as (stays, leaves):
        (link,) = links_of(leaves)
        link.session.receive = lambda frame, now: []  # type: ignore[method-assign]
        link.session.frames = lambda limit=0: []  # type: ignore[method-assign]
        seconds, why = await left(stays, events, time.monotonic())
        assert seconds < patient(5.0)
        assert "lost" in why  # the silent one may notice, and hang up, a moment earlier


async def test_a_peer_whose_link_is_just_replaced_may_be_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with pair([]) as (stays, leaves):
        assert not stays.may_be_back(leaves.id)
        monkeypatch.setattr(Link, "is_open", property(lambda self: False))
        assert stays.link(leaves.id) is None
        assert stays.may_be_back(leaves.id)


async def test_a_link_error_that_is_not_ours_is_no_goodbye() -> None:
    events: list[Event] = []
    async with pair(events) as (stays, _):
        (link,) = links_of(stays)
        assert link.close_error is None
        link.session.lost("a test")
        link._changed()
        _, why = await left(stays, events, time.monotonic())
        assert isinstance(link.close_error, PeerLostError)
        assert "a test" in why


async def test_a_dial_to_somebody_unpaired_meanwhile_is_tried_again(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shut out between the handshake and now, and let in again."""
    usual, asked = Secure.known, list[None]()

    def known(self: Secure, socket: aiohttp.ClientWebSocketResponse) -> Known | None:
        asked.append(None)
        return None if len(asked) == 2 else usual(self, socket)

    monkeypatch.setattr(Secure, "known", known)
    async with mesh_of(["a", "b"], models):
        assert len(asked) >= 4
