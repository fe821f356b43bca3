"""Pairings that end in the middle: neither side keeps half of one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from astra_mesh import limits
from astra_mesh.errors import PairingError
from astra_mesh.mesh import pairing_guest, pairing_host
from astra_mesh.mesh.codes import new_code, read_secret
from astra_mesh.mesh.invitations import Invitation, Invitations
from astra_mesh.mesh.pairing import Welcome, pack_roster, send
from astra_mesh.peer import Peer
from tests.integration.between import Relay
from tests.integration.mesh_fixtures import until
from tests.integration.test_trust import devices, linked, pair, pair_with, trust_of
from tests.timings import patient

WAIT_S = 20.0


async def gone(*_: Any) -> None:
    """One side vanishes."""
    raise EOFError


async def gone_with_the_roster(trust: Any, new: Any, _: Any, writer: Any) -> None:
    """A guest takes the host into its mesh, and vanishes without keeping that."""
    roster = await asyncio.to_thread(pairing_host.sign_in, trust, new)
    await send(writer, Welcome(pack_roster(roster)))
    await asyncio.sleep(0.3)  # the host adopts it
    raise EOFError


async def open_window(peer: Peer) -> str:
    code = read_secret(new_code())
    await asyncio.to_thread(Invitations(trust_of(peer).folder).open_window, code)
    return code.text


async def free_again(peer: Peer) -> Invitation:
    """The window, once its pairing is over and took nobody in."""
    invitations = Invitations(trust_of(peer).folder)
    async with asyncio.timeout(patient(WAIT_S)):
        while True:
            window = await asyncio.to_thread(invitations.window)
            assert window is not None
            assert not window.came
            if window.uses:
                return window
            await asyncio.sleep(0.05)


async def alone(peer: Peer) -> bool:
    trust = trust_of(peer)
    await asyncio.to_thread(trust.refresh)
    return trust.book.alone


async def test_a_guest_that_vanishes_before_it_has_its_roster_is_no_member(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with devices(tmp_path, 2) as (a, b):
        code = await open_window(a)
        monkeypatch.setattr(pairing_guest, "join", gone)
        with pytest.raises(PairingError, match="ended"):
            await pair_with(b, code, a)
        monkeypatch.undo()
        assert (await free_again(a)).tries == limits.PAIR_TRIES
        assert await alone(a)
        await pair_with(b, code, a)  # the code still holds
        await until(linked(a, b))


async def test_a_host_that_cannot_keep_its_guest_says_so_and_neither_is_paired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise PairingError("the disk is full")

    async with devices(tmp_path, 2) as (a, b):
        code = await open_window(a)
        before = trust_of(b).book.message()
        monkeypatch.setattr(pairing_host, "keep", full)
        with pytest.raises(PairingError, match="disk is full"):
            await pair_with(b, code, a)
        await free_again(a)
        assert await alone(a)
        assert await alone(b)
        assert trust_of(b).book.message() == before


async def test_a_connection_that_is_ended_at_once_is_tried_again(tmp_path: Path) -> None:
    """As by a peer at whose port many knock."""
    async with devices(tmp_path, 2) as (host, guest), Relay(host.port) as between:
        code, place = read_secret(await open_window(host)), ("127.0.0.1", between.port)
        between.ends = 99
        with pytest.raises(PairingError, match=r": (Connection reset|it ended)"):
            await pairing_guest.pair_at(trust_of(guest), code, place)
        between.ends = 2
        await pairing_guest.pair_at(trust_of(guest), code, place)
        await until(linked(host, guest))


async def test_a_code_whose_time_ends_during_the_pairing_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with devices(tmp_path, 2) as (a, b):
        code = await open_window(a)
        monkeypatch.setattr(Invitations, "is_over", lambda self, one: one.judging > 0)
        with pytest.raises(PairingError, match="time of the code was over"):
            await pair_with(b, code, a)
        assert await alone(a)
        assert await alone(b)


async def test_a_limit_that_would_limit_nobody_is_refused_at_both_ends(tmp_path: Path) -> None:
    async with devices(tmp_path, 3) as (a, b, c):
        await pair(b, c)
        with pytest.raises(PairingError, match="Show the code here instead"):
            await pair(a, b, member_s=60)
        window = await asyncio.to_thread(Invitations(trust_of(a).folder).window)
        assert window is not None
        assert "Show the code on the other device" in window.refused
        assert await alone(a)
        assert len(trust_of(b).members()) == 2
        await pair(b, a, member_s=60)  # as it says
        assert trust_of(b).members()[trust_of(a).device.id].until


@pytest.mark.parametrize(
    ("module", "name", "vanishing"),
    [(pairing_host, "join", gone), (pairing_guest, "_take_in", gone_with_the_roster)],
    ids=["host", "guest"],
)
async def test_a_host_that_was_to_join_is_a_member_on_both_sides_or_on_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, vanishing: Any
) -> None:
    async with devices(tmp_path, 3) as (a, b, c):
        await pair(b, c)
        code = await open_window(a)
        monkeypatch.setattr(module, name, vanishing)
        with pytest.raises(PairingError, match="ended"):
            await pair_with(b, code, a)
        monkeypatch.undo()
        await free_again(a)
        assert await alone(a)
        assert trust_of(a).device.id not in trust_of(b).members()
        assert not (await pair_with(b, code, a)).joined
        await until(linked(a, b, c))
