"""Devices that were paired by address meet by it from then on. There is no multicast here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from astra_mesh import limits
from astra_mesh.client import checks, nearby
from astra_mesh.client.pairing_search import pair_nearby
from astra_mesh.mesh.codes import new_code, read_secret
from astra_mesh.mesh.connect import Address
from astra_mesh.mesh.invitations import Invitations
from astra_mesh.mesh.meeting import FILE_NAME, MeetingPlaces
from astra_mesh.mesh.roster import RosterBook
from astra_mesh.mesh.trust import ENVIRONMENT
from astra_mesh.peer import Peer, PeerConfig
from tests.integration.mesh_fixtures import until


def device(folder: Path, name: str, port: int = 0, *, peers: tuple[Address, ...] = ()) -> Peer:
    config = PeerConfig(
        name=name,
        port=port,
        listen="127.0.0.1",
        discovery=False,
        peers=peers,
        models=(),
        state_dir=folder / name / "state",
        trust_dir=folder / name,
    )
    return Peer(config)


async def pair(host: Peer, guest: Peer) -> None:
    secret = read_secret(new_code())
    assert host.trust is not None
    assert guest.trust is not None
    await asyncio.to_thread(Invitations(host.trust.folder).open_window, secret)
    await pair_nearby(guest.trust, secret, [f"127.0.0.1:{host.port}"])


def linked(*peers: Peer) -> bool:
    return all(len(peer.others()) == len(peers) - 1 for peer in peers)


async def nobody() -> AsyncIterator[Address]:
    for address in list[Address]():
        yield address


async def test_they_link_at_once_and_after_each_restart(tmp_path: Path) -> None:
    async with device(tmp_path, "host") as host:
        async with device(tmp_path, "guest") as guest:
            assert not host.others()
            await pair(host, guest)
            await until(lambda: linked(host, guest))
        await until(lambda: not host.others())
        async with device(tmp_path, "guest") as guest:
            await until(lambda: linked(host, guest))
            port = host.port
            await host.stop()
            await until(lambda: not guest.others())
            async with device(tmp_path, "host", port) as again:
                await until(lambda: linked(again, guest))


async def test_those_that_paired_with_one_device_link_with_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LINKS_TELL_S", 0.1)
    async with device(tmp_path, "host") as host, device(tmp_path, "one") as one:
        async with device(tmp_path, "other") as other:
            await pair(host, one)
            await pair(host, other)
            await until(lambda: linked(host, one, other))
        await until(lambda: linked(host, one))
        assert one._links is not None
        assert host._links is not None
        entries = one._links._membership._entries
        await until(lambda: list(entries) == [f"127.0.0.1:{host.port}"])  # it left


async def test_whoever_is_shut_out_is_dialled_no_more(tmp_path: Path) -> None:
    async with device(tmp_path, "host") as host, device(tmp_path, "guest") as guest:
        await pair(host, guest)
        await until(lambda: linked(host, guest))
        assert guest.trust is not None
        assert host.trust is not None
        other = host.trust.device.id
        places = MeetingPlaces(guest.trust.folder)
        kept = await asyncio.to_thread(places.of, [other])
        assert kept == [("127.0.0.1", host.port)]

        def decide(book: RosterBook) -> bool:
            book.shut_out(other)
            return True

        await asyncio.to_thread(guest.trust.change, decide)
        assert guest._links is not None
        entries = guest._links._membership._entries
        await until(lambda: not entries)


async def test_a_typed_address_stays_when_the_kept_one_goes(tmp_path: Path) -> None:
    async with device(tmp_path, "host") as host:
        typed = (("127.0.0.1", host.port),)
        async with device(tmp_path, "guest", peers=typed) as guest:
            await pair(host, guest)
            await until(lambda: linked(host, guest))
            assert guest.trust is not None
            assert guest._links is not None
            entries = guest._links._membership._entries
            host_id = next(key for key in guest.trust.members() if key != guest.trust.device.id)
            places = MeetingPlaces(guest.trust.folder)
            await asyncio.to_thread(places.keep, host_id, ("127.0.0.1", 1))
            await until(lambda: set(entries) == {f"127.0.0.1:{host.port}", "127.0.0.1:1"})
            (guest.trust.folder / FILE_NAME).unlink()
            await until(lambda: set(entries) == {f"127.0.0.1:{host.port}"})
            assert linked(host, guest)


async def test_the_doctor_finds_both_ends_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nearby, "search", nobody)
    async with device(tmp_path, "host") as host, device(tmp_path, "guest") as guest:
        await pair(host, guest)
        await until(lambda: linked(host, guest))
        for name in ("host", "guest"):
            monkeypatch.setenv(ENVIRONMENT, str(tmp_path / name))
            found, clocks = await checks._members()
            assert (found.level, found.name) == (checks.Level.FINE, "devices"), found
            assert clocks.level is checks.Level.FINE, clocks
    found, clocks = await checks._members()
    assert "compared with none" in clocks.text
    assert found.level is checks.Level.BAD
    assert "pair by address once" in found.text
