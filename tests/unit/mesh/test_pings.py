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


def test_the_shortest_of_a_few_pongs_is_not_yet_the_links_own() -> None:
    """Devices that shake hands with others answer the first ones late: what is subtracted from a
    run's time must not be longer than the link's own delay."""
    pings = Pings(1.0)
    now = 0.0
    pings.start(now)
    found = []
    for delay in (0.06, 0.04, 0.003, 0.005):
        now = pings.due(now)
        pings.pong(pings.heartbeat(now).number, now + delay)
        found.append(pings.least_trip_s)
    assert found[:2] == [None, None]
    assert found[2:] == pytest.approx([0.003, 0.003])


def steady(pings: Pings, trips: int = 6) -> float:
    """So many quick pongs; when the last came."""
    now = 0.0
    pings.start(now)
    for _ in range(trips):
        now = pings.due(now)
        pings.pong(pings.heartbeat(now).number, now + 0.002)
    return now + 0.002


def test_a_network_that_was_away_has_no_longer_delay() -> None:
    """A ping that waited for it tells nothing; the next one is due at once."""
    pings = Pings(1.0)
    now = steady(pings)
    pings.pong(pings.heartbeat(now).number, now + 7.0)
    assert pings.round_trip_s == pytest.approx(0.002)
    assert pings.least_trip_s == pytest.approx(0.002)
    assert pings.due(now + 7.0) <= now + 7.0


def test_a_late_pong_is_soon_asked_for_again() -> None:
    """It counts until the next one, which tells whether the link is as slow now."""
    pings = Pings(1.0)
    now = steady(pings)
    pings.pong(pings.heartbeat(now).number, now + 0.4)
    assert pings.round_trip_s == pytest.approx(0.002 + 0.398 / 8)
    again = pings.due(now + 0.4)
    assert again == pytest.approx(now + 0.2)  # before that pong: now
    pings.pong(pings.heartbeat(now + 0.4).number, now + 0.402)
    assert pings.round_trip_s == pytest.approx(0.002)
    assert pings.due(now + 0.402) == pytest.approx(now + 0.8)  # twice more, then rarely


def test_a_link_that_became_slow_is_believed() -> None:
    """What is sent once the network is back and takes as long is the link's own delay."""
    pings = Pings(1.0)
    now, sent = steady(pings), 0
    while now < 60.0:
        now = max(now, pings.due(now))
        pings.pong(pings.heartbeat(now).number, now + 1.2)
        now, sent = now + 1.2, sent + 1
    assert pings.round_trip_s is not None
    assert 0.25 < pings.round_trip_s <= 1.2
    assert sent < 40  # no more often than the link answers
