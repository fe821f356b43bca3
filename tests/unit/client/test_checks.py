"""What ``doctor`` says of speeds."""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import time

import pytest

from astra_mesh.client import checks
from astra_mesh.client.checks import (
    Finding,
    Level,
    _clock,
    about,
    clocks,
    heard_of,
    networks,
    reached,
    searching,
    speed_beside,
    why_silent,
)
from astra_mesh.client.clocks import _ahead_s
from astra_mesh.client.reach import Answered, Reach
from astra_mesh.mesh import discovery
from astra_mesh.mesh.identity import DeviceKey
from astra_mesh.mesh.interfaces import Outside
from astra_mesh.mesh.roster import RosterBook
from astra_mesh.mesh.trust import Trust
from astra_mesh.peer.local import LocalPeer
from astra_mesh.wire.messages import DeviceId, PeerId


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (0.05, "much slower"),
        (0.54, "no faster"),
        (0.88, "no faster"),
        (1.0, "no faster"),
        (1.75, "faster"),
        (2.1, "faster"),
    ],
)
def test_digits_that_are_noise_are_not_shown(ratio: float, text: str) -> None:
    assert about(ratio) == text


def test_a_busy_moment_and_the_first_product_do_not_count() -> None:
    """Every fifth product takes a hundred times as long, the first one too."""
    places = itertools.count()

    def timed(seconds: float) -> float:
        return seconds * (100 if next(places) % 5 == 0 else 1)

    assert speed_beside(4.0, 1.0, timed) == 4.0


def test_what_a_machine_hears_of_itself_proves_nothing_of_the_network() -> None:
    assert "no other device's" in heard_of(0)
    assert heard_of(1) == "this machine hears itself and 1 peer of other devices"
    assert heard_of(2).endswith("2 peers of other devices")


def test_a_peer_that_finds_nobody_says_why() -> None:
    peer = LocalPeer(1, 7475, PeerId("a" * 64), "board", problem="")
    assert searching(peer).level is Level.FINE
    told = searching(LocalPeer(1, 7475, peer.id, "board", problem="no multicast here"))
    assert told.level is Level.NOTE
    assert told.text == "the peer board finds no others by itself: no multicast here"


def test_a_peer_that_has_just_started_does_not_know_yet() -> None:
    told = searching(LocalPeer(1, 7475, PeerId("a" * 64), "board"))
    assert told.level is Level.NOTE
    assert "does not know yet whether it finds others: ask again" in told.text


NEAR, FAR = (ipaddress.ip_address(text) for text in ("192.0.2.1", "198.51.100.1"))


@pytest.mark.parametrize(
    ("found", "level", "text"),
    [
        ({}, Level.BAD, "this machine is in no network; join the Wi-Fi of the others"),
        ({"eth0": Outside((NEAR,))}, Level.FINE, "192.0.2.1"),
        (
            {"eth0": Outside((NEAR,)), "docker0": Outside((FAR,), connected=False)},
            Level.FINE,
            "192.0.2.1; not connected: docker0",
        ),
        (
            {"eth0": Outside((NEAR, FAR), connected=False)},
            Level.BAD,
            (
                "this machine is in no network: eth0 has the address 192.0.2.1 but is not "
                "connected: plug in its cable, or join the Wi-Fi of the others"
            ),
        ),
        (
            {"eth0": Outside((NEAR,), is_up=False, connected=False)},
            Level.BAD,
            (
                "this machine is in no network: eth0 has the address 192.0.2.1 but is switched off "
                "(`ip link set eth0 up` as root switches it on)"
            ),
        ),
    ],
)
def test_an_address_without_a_connection_is_no_network(
    found: dict[str, Outside], level: Level, text: str
) -> None:
    said = networks(found)
    assert said.level is level
    assert said.text == text


def test_a_silent_device_is_not_blamed_where_the_cable_is_out() -> None:
    for found in ({}, {"eth0": Outside((NEAR,), connected=False)}):
        assert why_silent(found) == "this machine is in no network"
    assert "running there" in why_silent({"eth0": Outside((NEAR,))})


def test_a_device_that_is_off_is_a_fault_only_where_none_answers() -> None:
    on, off, lost = (DeviceId(digit * 64) for digit in "abc")
    others = {on: "desk", off: "kitchen", lost: "attic"}
    some = reached(others, Reach({on: Answered(0.01, 0.0)}, {lost}))
    assert [one.level for one in some] == [Level.FINE, Level.NOTE, Level.BAD]
    none = reached({off: "kitchen"}, Reach({}, set()))
    assert [one.level for one in none] == [Level.BAD]


async def test_a_device_is_called_as_its_peer_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    other = DeviceKey.new()

    def let_in(book: RosterBook) -> bool:
        book.let_in(other.certificate, "host")
        return True

    trust = await asyncio.to_thread(Trust.open)
    await asyncio.to_thread(trust.change, let_in)
    reach = Reach({other.id: Answered(0.01, 0.0)}, set())

    async def who_answers(_: Trust) -> Reach:
        return reach

    monkeypatch.setattr(checks, "who_answers", who_answers)
    assert (await checks._members())[0].text.startswith(f"host ({other.id[:8]}) answers")
    reach.names[other.id] = {"kitchen"}
    assert (await checks._members())[0].text.startswith(f"kitchen ({other.id[:8]}) answers")
    reach.names[other.id] = {"kitchen", "attic"}
    assert (await checks._members())[0].text.startswith(f"host ({other.id[:8]}) answers")


async def test_what_the_findings_say_is_not_in_the_log_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def multicast() -> list[Finding]:
        discovery.log.warning("this machine is in no network")
        return []

    async def nothing(*_: object) -> list[Finding]:
        return []

    others = "versions clock interfaces port firewall keys numbers memory members"
    for name in others.split():
        monkeypatch.setattr(checks, f"_{name}", nothing)
    monkeypatch.setattr(checks, "_multicast", multicast)
    await checks.examine(lambda _: None)
    assert caplog.text == ""
    await multicast()
    assert "no network" in caplog.text


async def test_a_clock_is_only_told_from_one_that_was_never_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (now,) = await _clock()
    assert now.level is Level.FINE
    assert now.text.endswith(": set")
    monkeypatch.setattr(time, "time", lambda: 1e9)
    (never,) = await _clock()
    assert never.level is Level.NOTE


@pytest.mark.parametrize(
    ("ahead", "level", "text"),
    [
        ({}, Level.FINE, "no paired device answers"),
        ({"kitchen": None}, Level.FINE, "no paired device answers"),
        ({"kitchen": 0.4, "attic": None}, Level.FINE, "within 2 s of kitchen"),
        ({"kitchen": -20.0, "attic": 3.0}, Level.FINE, "within 20 s of kitchen, attic"),
        ({"kitchen": 31.0}, Level.NOTE, "that of kitchen is 31 s ahead of this device's"),
        ({"kitchen": -7_300.0}, Level.NOTE, "that of kitchen is 2 h behind this device's"),
        (
            {"kitchen": 1.0, "attic": 180.0},
            Level.NOTE,
            "that of attic is 3 min ahead of this device's: set the one that is wrong",
        ),
        (
            {"kitchen": 172_801.0, "attic": 172_800.0},
            Level.NOTE,
            "this device's is 2 days behind those of kitchen, attic, which agree: set it",
        ),
        (
            {"kitchen": -86_400.0, "attic": 86_400.0},
            Level.NOTE,
            "kitchen is 1 day behind, that of attic is 1 day ahead of",
        ),
    ],
)
def test_clocks_of_others(ahead: dict[str, float | None], level: Level, text: str) -> None:
    found = clocks(ahead)
    assert found.name == "clocks"
    assert found.level is level
    assert text in found.text


@pytest.mark.parametrize("date", ["", "soon", "Sun, 99 Foo 2026 00:00:00 GMT", "\x00" * 99])
def test_a_time_that_is_none(date: str) -> None:
    assert _ahead_s(date, 0.0) is None


def test_a_time_in_whole_seconds() -> None:
    assert _ahead_s("Thu, 01 Jan 1970 00:01:40 GMT", 100.5) == 0.0
