"""A link that falls from 100 to 5 Mbit/s in the middle of a request."""

from __future__ import annotations

import pytest

from tests.timings import patient
from tools.lab import rates

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
