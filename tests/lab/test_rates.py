"""Links whose rate changes: in the middle of a request, and while the network is away."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.timings import patient
from tools.lab import rates
from tools.lab.house import House
from tools.lab.scenario import Device, Scenario

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(180)]


def test_the_request_ends_at_a_lower_rate_and_says_so() -> None:
    with rates.two_peers(100.0, lambda text: None) as house:
        steady = rates.told(house.ask(rates.request(house, "adapt")))
        assert not any("degraded" in note for note in steady.notes)
        for attempt in range(3):  # the fall may come too late to matter on a busy machine
            found = rates.disturbed(house, "adapt", 100.0, 5.0)
            assert found.wall_s < patient(20)
            if found.bits or attempt == 2:
                break
        assert min(found.bits) < rates.BITS
        assert any(note.startswith("degraded:") and "bits" in note for note in found.notes)
        # What is not asked to adapt keeps the plan's rate.
        assert not rates.disturbed(house, "wait", 100.0, 5.0).bits


def link(house: House, device: str) -> dict[str, Any]:
    """What a device knows of its link to the only other one; nothing where that is silent."""
    nothing = {"send_bps": 0.0, "round_trip_s": 0.0}
    return next((one for one in house.view(device) if not one["self"]), nothing)


def test_a_network_that_was_away_is_measured_anew() -> None:
    """The cable is out for so long that the other end is silent, not lost: what waited in the
    meantime is no delay, and what the link was says little."""
    assert measured_after_an_outage() < 100e6


def measured_after_an_outage() -> float:
    """Bits per second, of a link that had 5 Mbit/s before and has 50 now."""
    with House(Scenario(devices={"attic": Device(), "cellar": Device()})) as house:
        for device in house.peers:
            house.lan.set_rate(device, 5.0)
        house.meet()
        began = time.monotonic()
        while not (bps := link(house, "attic")["send_bps"]) or bps > 8e6:
            assert time.monotonic() - began < patient(60), "the link was not measured"
            time.sleep(0.5)
        house.lan.unplug("cellar")
        for device in house.peers:
            house.lan.set_rate(device, 50.0)
        time.sleep(5.5)
        house.lan.plug("cellar")
        plugged = time.monotonic()
        slowest = 0.0
        while (now := link(house, "attic"))["send_bps"] < 25e6:
            slowest = max(slowest, now["round_trip_s"])
            assert time.monotonic() - plugged < patient(12), "the link was not measured anew"
            time.sleep(0.2)
        assert slowest < patient(0.2)
        return float(now["send_bps"])
