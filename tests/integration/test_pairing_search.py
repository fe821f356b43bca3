"""Whom a code is tried with: every address of every peer, side by side, and no device twice."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from astra_mesh import limits
from astra_mesh.client import nearby, pairing_search
from astra_mesh.client.pairing_search import pair_nearby
from astra_mesh.client.reach import who_answers
from astra_mesh.errors import PairingError
from astra_mesh.mesh.codes import Secret, new_code, read_secret
from astra_mesh.mesh.connect import Address
from astra_mesh.mesh.invitations import Invitation, Invitations
from astra_mesh.mesh.pairing_guest import Paired
from astra_mesh.mesh.trust import Trust
from astra_mesh.peer import Peer
from tests.integration.between import silent
from tests.integration.test_pairing_faults import open_window
from tests.integration.test_trust import config, devices, pair, pair_with, trust_of
from tests.timings import patient

NOBODY: Address = ("127.0.0.1", 9)
SILENCE_S = 20.0  # longer than any deadline of a pairing


def at(peer: Peer) -> Address:
    return "127.0.0.1", peer.port


@pytest.fixture
def announced(monkeypatch: pytest.MonkeyPatch) -> list[list[Address]]:
    """The addresses of each peer that is found on this network."""
    found: list[list[Address]] = []

    async def search() -> AsyncGenerator[list[Address], None]:
        for addresses in found:
            yield addresses

    monkeypatch.setattr(pairing_search, "search", search)
    monkeypatch.setattr(nearby, "search", search)
    return found


async def pair_within(guest: Peer, code: str, seconds: float) -> Paired:
    async with asyncio.timeout(patient(seconds)):
        return await pair_nearby(trust_of(guest), read_secret(code))


async def window_of(peer: Peer) -> Invitation:
    found = await asyncio.to_thread(Invitations(trust_of(peer).folder).window)
    assert found is not None
    return found


async def test_the_first_address_may_lead_nowhere(
    tmp_path: Path, announced: list[list[Address]]
) -> None:
    async with devices(tmp_path, 2) as (a, b), silent() as nowhere:
        announced.append([NOBODY, nowhere, at(a)])
        paired = await pair_within(b, await open_window(a), limits.HANDSHAKE_S - 1)
        assert paired.address == at(a)
        assert trust_of(a).device.id in (await who_answers(trust_of(b))).answered  # `doctor` too


async def test_an_address_may_lead_back_to_this_device(
    tmp_path: Path, announced: list[list[Address]]
) -> None:
    async with devices(tmp_path, 2) as (a, b):
        announced.append([at(b), at(a)])
        paired = await pair_within(b, await open_window(a), SILENCE_S)
        assert paired.address == at(a)


async def test_silent_neighbours_keep_nobody_waiting(
    tmp_path: Path, announced: list[list[Address]]
) -> None:
    async with devices(tmp_path, 2) as (a, b), AsyncExitStack() as stack:
        for _ in range(limits.PAIR_DIALS - 1):
            announced.append([await stack.enter_async_context(silent())])
        announced.append([at(a)])
        await pair_within(b, await open_window(a), limits.HANDSHAKE_S - 1)


async def test_no_more_peers_are_tried_at_once_than_the_limit(
    tmp_path: Path, announced: list[list[Address]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PAIR_DIALS", 2)
    monkeypatch.setattr(limits, "HANDSHAKE_S", 0.3)
    async with devices(tmp_path, 2) as (a, b), silent() as nowhere:
        announced += [[nowhere] for _ in range(6)] + [[at(a)]]
        began = time.monotonic()
        await pair_within(b, await open_window(a), SILENCE_S)
        assert time.monotonic() - began > 3 * limits.HANDSHAKE_S


async def test_a_wrong_code_costs_a_device_one_try_however_many_peers_it_has(
    tmp_path: Path, announced: list[list[Address]]
) -> None:
    async with devices(tmp_path, 2) as (a, b), AsyncExitStack() as stack:
        more = [
            await stack.enter_async_context(Peer(config(trust_of(a).folder, name=f"more{number}")))
            for number in range(limits.PAIR_TRIES)
        ]
        code = await open_window(a)
        announced += [[at(a)], *([at(peer)] for peer in more), [at(a), at(a)]]
        with pytest.raises(PairingError, match="wrong"):
            await pair_within(b, new_code(), SILENCE_S)
        assert (await window_of(a)).tries == limits.PAIR_TRIES - 1
        said = [f"{host}:{port}" for host, port in (at(a), *map(at, more))]
        wrong = Secret(*_parts(new_code()), tuple(said))
        with pytest.raises(PairingError, match="wrong"):
            await pair_nearby(trust_of(b), wrong)
        assert (await window_of(a)).tries == limits.PAIR_TRIES - 2
        await pair_within(b, code, SILENCE_S)


def _parts(code: str) -> tuple[str, bytes, bytes]:
    secret = read_secret(code)
    return secret.text, secret.id, secret.password


async def test_a_peer_of_this_device_is_no_other_device(
    tmp_path: Path, announced: list[list[Address]]
) -> None:
    async with devices(tmp_path, 1) as (alone,):
        announced.append([at(alone)])
        with pytest.raises(PairingError, match="no other device was found on this network"):
            await pair_within(alone, new_code(), SILENCE_S)


async def test_a_code_that_this_device_shows_itself_says_so(
    tmp_path: Path,
) -> None:
    async with Peer(config(tmp_path)) as peer:
        code = await open_window(peer)
        with pytest.raises(PairingError, match="this device itself shows that code"):
            await pair_nearby(trust_of(peer), read_secret(code))


async def test_the_other_window_of_two_is_found(
    tmp_path: Path, announced: list[list[Address]]
) -> None:
    async with devices(tmp_path, 3) as (a, b, c):
        await open_window(a)
        code = await open_window(b)
        announced += [[at(a)], [at(b)]]
        paired = await pair_within(c, code, SILENCE_S)
        assert paired.address == at(b)
        assert (await window_of(a)).tries >= limits.PAIR_TRIES - 1
        with pytest.raises(PairingError, match="no pairing window"):
            await pair_with(c, code, b)


async def test_a_right_code_is_not_called_wrong_because_another_window_is_open(
    tmp_path: Path, announced: list[list[Address]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PAIR_DIALS", 1)
    async with devices(tmp_path, 4) as (a, b, c, d):
        await open_window(a)
        code = read_secret(new_code())
        announced += [[at(a)], [at(b)]]
        await pair(c, d)
        invitations = Invitations(trust_of(b).folder)
        await asyncio.to_thread(invitations.open_window, code, 600)
        with pytest.raises(PairingError, match="lets in for a limited time only"):
            await pair_within(c, code.text, SILENCE_S)


async def test_nobody_says_wrong_in_the_name_of_another_device(
    tmp_path: Path, announced: list[list[Address]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mallory answers first with the certificate of the device that is meant, and says no."""
    monkeypatch.setattr(limits, "PAIR_DIALS", 1)
    async with devices(tmp_path, 3) as (a, b, mallory):
        code = await open_window(a)
        await open_window(mallory)
        host = trust_of(mallory)
        host.device.certificate = trust_of(a).device.certificate
        announced += [[at(mallory)], [at(a)]]
        paired = await pair_within(b, code, SILENCE_S)
        assert paired.address == at(a)


def test_a_name_server_that_answers_late_leaves_no_lost_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The lookup goes on once the pairing has given up; what becomes of it is nobody's business."""
    uvloop = pytest.importorskip("uvloop")
    monkeypatch.setattr(limits, "HANDSHAKE_S", 1e-4)
    trust, code = Trust.open(tmp_path), read_secret(new_code())

    async def pair() -> None:
        with pytest.raises(PairingError):
            await pair_nearby(trust, code, ["nowhere.invalid:7475"])
        await asyncio.sleep(0.5)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(pair())
    gc.collect()
    assert not [record for record in caplog.records if record.name == "asyncio"]
