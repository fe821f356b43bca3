"""A device that leaves its mesh tells the others: peers of several devices over real sockets."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from astra_mesh import limits
from astra_mesh.client import Mesh, checks, farewell, reach
from astra_mesh.client.farewell import Farewell
from astra_mesh.errors import NoPeerError, NotPairedError
from astra_mesh.mesh.connect import Address, Secure, dial
from astra_mesh.mesh.roster import RosterBook
from astra_mesh.mesh.trust import Trust
from astra_mesh.peer import Peer
from tests.integration.mesh_fixtures import until
from tests.integration.secure import Caller
from tests.integration.test_trust import config, devices, linked, pair, shut_out, trust_of


@asynccontextmanager
async def mesh_of_three(folder: Path) -> AsyncIterator[list[Peer]]:
    """The second let the third in."""
    async with devices(folder, 3) as peers:
        a, b, c = peers
        await pair(a, b)
        await pair(b, c)
        await until(linked(*peers))
        yield peers


def at(monkeypatch: pytest.MonkeyPatch, *peers: Peer) -> None:
    """Where the commands find members."""
    ports = [peer.port for peer in peers]

    async def places(_: Trust) -> AsyncGenerator[list[Address], None]:
        for port in ports:
            yield [("127.0.0.1", port)]

    monkeypatch.setattr(farewell, "member_places", places)
    monkeypatch.setattr(reach, "member_places", places)


async def leave(peer: Peer) -> Farewell:
    """As the command does it, in another process of the device."""
    return await farewell.leave(await asyncio.to_thread(Trust.open, trust_of(peer).folder))


def listed(peer: Peer) -> set[str]:
    return set(trust_of(peer).members())


def device(peer: Peer) -> str:
    return trust_of(peer).device.id


async def secure_of(peer: Peer) -> Secure:
    """To dial as a peer of its device did before."""
    trust = await asyncio.to_thread(Trust.open, trust_of(peer).folder)
    tls = await asyncio.to_thread(trust.client_tls, trust.device.issue())
    return Secure(tls, trust.whose_connection)


async def test_the_others_list_two_and_refuse_its_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its running peer tells them: the command finds nobody."""
    at(monkeypatch)
    async with mesh_of_three(tmp_path) as (a, b, c):
        before = await secure_of(b)
        gone = await leave(b)
        assert set(gone.told) == {device(a), device(c)}
        assert not gone.untold
        await until(lambda: listed(a) == listed(c) == {device(a), device(c)})
        await until(lambda: not b.others() and linked(a, c)())
        await until(lambda: trust_of(b).book.alone and not trust_of(b).book.is_leaving)
        async with aiohttp.ClientSession() as http:
            for peer in (a, c):
                with pytest.raises(NotPairedError):
                    await (await dial(http, "127.0.0.1", peer.port, secure=before)).receive()
        await asyncio.sleep(1.0)  # nothing brings it back
        assert listed(a) == listed(c) == {device(a), device(c)}
    bad = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert not [text for text in bad if "another mesh" in text or "broke the protocol" in text]


async def test_no_peer_runs_on_the_device_that_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command dials one member; the other hears it from that."""
    async with mesh_of_three(tmp_path) as (a, b, c):
        at(monkeypatch, c)
        await b.stop()
        monkeypatch.setattr(limits, "FAREWELL_S", 2.0)
        gone = await leave(b)
        assert set(gone.told) == {device(c)}
        assert set(gone.untold) == {device(a)}, "it is not known to have heard"
        await until(lambda: listed(a) == listed(c) == {device(a), device(c)})
        await until(linked(a, c))
        trust = await asyncio.to_thread(Trust.open, trust_of(b).folder)
        assert trust.book.alone
        assert len({peer.name for peer in a.others().values()}) == 1, "the command is no peer now"


async def test_who_was_off_hears_it_when_it_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch)
    monkeypatch.setattr(limits, "FAREWELL_S", 3.0)
    async with mesh_of_three(tmp_path) as (a, b, c):
        await c.stop()
        gone = await leave(b)
        assert set(gone.told) == {device(a)}
        async with Peer(config(trust_of(c).folder, a)) as back:
            await until(linked(a, back))
            await until(lambda: listed(back) == {device(a), device(c)})


async def test_nobody_can_be_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch)
    monkeypatch.setattr(limits, "FAREWELL_S", 0.5)
    async with mesh_of_three(tmp_path) as (a, b, c):
        await b.stop()
        gone = await leave(b)
        assert not gone.told
        assert set(gone.untold) == {device(a), device(c)}
        assert len(listed(a)) == 3


async def test_it_is_paired_again_and_leaves_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are told each time, whatever they were told before."""
    at(monkeypatch)
    async with mesh_of_three(tmp_path) as (a, b, c):
        for _ in range(2):
            gone = await leave(b)
            assert set(gone.told) == {device(a), device(c)}
            await until(lambda: trust_of(b).book.alone and device(b) not in listed(a))
            await pair(a, b)
            await until(linked(a, b, c))
        assert len(listed(a)) == len(listed(b)) == len(listed(c)) == 3


async def test_a_peer_that_starts_after_a_leave_that_was_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mesh_of_three(tmp_path) as (a, b, c):
        await b.stop()
        trust = await asyncio.to_thread(Trust.open, trust_of(b).folder)
        await asyncio.to_thread(trust.change, RosterBook.say_farewell)
        async with Peer(config(trust_of(b).folder, a, c)) as back:
            await until(lambda: listed(a) == listed(c) == {device(a), device(c)})
            await until(lambda: trust_of(back).book.alone)
            assert not back.others()


async def test_many_who_announce_themselves_and_say_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than twice as many as are dialled at once; they are found before the member."""
    async with AsyncExitStack() as stack:
        a, b = await stack.enter_async_context(devices(tmp_path, 2))
        await pair(a, b)
        await until(linked(a, b))
        await b.stop()
        count = 2 * limits.SEARCH_DIALS + 10
        mute = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]

        async def places(_: Trust) -> AsyncGenerator[list[Address], None]:
            for one in mute:
                yield [one.getsockname()]
            yield [("127.0.0.1", a.port)]

        monkeypatch.setattr(farewell, "member_places", places)
        gone = await leave(b)
        assert set(gone.told) == {device(a)}


# --- shut out while it was off --------------------------------------------------------------------


@asynccontextmanager
async def shut_out_unheard(folder: Path) -> AsyncIterator[list[Peer]]:
    """B was off when A shut it out; C heard of it."""
    async with mesh_of_three(folder) as peers:
        a, b, c = peers
        await b.stop()
        await shut_out(a, b)
        await until(lambda: device(b) not in listed(c))
        await until(lambda: device(b) not in listed(a))
        yield peers


async def test_who_was_shut_out_is_told_so_by_each_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with shut_out_unheard(tmp_path) as (a, b, c):
        at(monkeypatch, a, c)
        folder = trust_of(b).folder
        with pytest.raises(NotPairedError, match="probably does not know this device any more"):
            await Mesh(("127.0.0.1", a.port), trust_dir=folder).open()
        trust = await asyncio.to_thread(Trust.open, folder)
        there = await reach.who_answers(trust)
        assert there.ended == {device(a), device(c)}
        assert not there.answered
        monkeypatch.setenv("ASTRA_MESH_TRUST", str(folder))
        told = [one for one in await checks._members() if one.name == "devices"]
        assert [one.level for one in told] == [checks.Level.BAD] * 2
        assert all("pair again: `astra-mesh pair` there" in one.text for one in told)
        began = time.monotonic()
        gone = await farewell.leave(trust)
        assert time.monotonic() - began < limits.FAREWELL_S - 1.0, "nobody is waited for"
        assert set(gone.ended) == {device(a), device(c)}
        assert not gone.told
        assert not gone.untold


async def test_a_peer_of_who_was_shut_out_says_so_once_and_is_paired_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "STRANGE_S", 1.0)
    async with (
        shut_out_unheard(tmp_path) as (a, b, c),
        Peer(config(trust_of(b).folder, a)) as back,
    ):
        await until(lambda: bool(_forgotten_said(caplog)))
        await asyncio.sleep(2.0)
        assert len(_forgotten_said(caplog)) == 1
        await pair(a, back)
        await until(linked(a, c, back))


async def test_who_was_let_in_just_now_is_not_said_to_be_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The host's peer looks at the roster once in a while, and does not know the guest until then.
    Whoever leaves in that moment is heard all the same.
    """
    async with devices(tmp_path, 2) as (a, b):
        at(monkeypatch, a)
        await pair(a, b)
        gone = await leave(b)
        assert set(gone.told) == {device(a)}
        assert not gone.ended
    assert _forgotten_said(caplog) == []


def _forgotten_said(caplog: pytest.LogCaptureFixture) -> list[str]:
    said = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    return [text for text in said if "does not know this device any more" in text]


async def test_a_member_that_merely_dies_is_not_said_to_have_forgotten_us(tmp_path: Path) -> None:
    """It ends the connection too, by a reset or cleanly, and then nobody is there, or one that
    waits for a request.
    """
    async with devices(tmp_path, 2) as (a, b), aiohttp.ClientSession() as http:
        await pair(a, b)
        await until(linked(a, b))
        secure, member = await secure_of(b), await Caller.new(trust_of(a).folder)
        for stays in (False, True):
            async with dying(member, stays=stays) as port:
                with pytest.raises(NoPeerError):
                    await dial(http, "127.0.0.1", port, secure=secure)


@asynccontextmanager
async def dying(member: Caller, *, stays: bool) -> AsyncIterator[int]:
    """A port of a member that ends the first connection when it was asked something, and then takes
    none, or keeps them.
    """
    count = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        await reader.read(1)
        writer.transport.abort()
        if not stays:
            server.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=member.tls.server)
    async with server:
        yield server.sockets[0].getsockname()[1]
        assert (count > 1) is stays
