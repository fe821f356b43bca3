"""When pings are due, and what they tell: no sockets, no clock."""

from __future__ import annotations

import itertools

import pytest

from astra_mesh.mesh.pings import Pings


def beats(pings: Pings, until: float, heard_every: float) -> list[float]:
    """Times of the heartbeats on a link from which a frame comes every so often."""
    now, found = 0.0, []
    pings.start(now)
    while now < until:
        heard = now // heard_every * heard_every
        if pings.due(heard) <= now:
            pings.heartbeat(now)
            found.append(round(now, 3))
        now += 0.05
    return found


def test_the_first_pings_follow_each_other_soon() -> None:
    """Also in traffic, where later ones are rare."""
    assert beats(Pings(1.0), 14.0, heard_every=0.1) == pytest.approx(
        [0.0, 0.2, 0.6, 1.4, 6.4, 11.4], abs=0.12
    )


def test_in_silence_they_go_on() -> None:
    found = beats(Pings(1.0), 6.0, heard_every=100.0)
    assert found[:3] == pytest.approx([0.0, 0.2, 0.6], abs=0.12)
    gaps = [later - sooner for sooner, later in itertools.pairwise(found[3:])]
    assert gaps == pytest.approx([1.0] * len(gaps), abs=0.12)
    assert len(gaps) >= 4


def test_a_first_pong_that_was_held_up_does_not_stand() -> None:
    """A device that shakes hands with others answers late; the next ping is soon answered."""
    pings = Pings(1.0)
    pings.start(0.0)
    late = pings.heartbeat(0.0)
    soon = pings.heartbeat(pings.due(0.0))
    pings.pong(late.number, 0.5)
    assert pings.round_trip_s == pytest.approx(0.5)
    pings.pong(soon.number, 0.203)
    assert pings.round_trip_s == pytest.approx(0.003)
