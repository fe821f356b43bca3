"""Peers that others tell of."""

from __future__ import annotations

from typing import Any

from astra_mesh.mesh.membership import Membership
from astra_mesh.peer.hearsay import Hearsay
from tests.unit.peer.fakes import A, B, C

AT, NEW = ("192.0.2.7", 7000), ("192.0.2.8", 7000)


def table() -> tuple[Membership[Any], Hearsay]:
    made = Membership[Any](A)
    return made, Hearsay(made)


def keys(made: Membership[Any], now: float) -> list[str]:
    return [one.key for one in made.due(now)]


def test_they_are_dialled_as_long_as_somebody_tells_of_them() -> None:
    made, hearsay = table()
    hearsay.follow({A: AT, B: AT}, 1.0)
    assert keys(made, 1.0) == [B]  # not this peer itself
    made.failed(B, 1.0)
    hearsay.follow({B: AT}, 2.0)
    assert made.addresses(B) == (AT,)
    hearsay.follow({}, 3.0)
    assert made.addresses(B) == ()
    assert keys(made, 1000.0) == []


def test_what_a_peer_announces_counts_more() -> None:
    made, hearsay = table()
    made.found(B, [NEW], 1.0)
    hearsay.follow({B: AT, C: AT}, 1.0)
    assert made.addresses(B) == (NEW,)
    made.found(C, [NEW], 2.0)
    hearsay.announced(C)
    hearsay.follow({}, 3.0)
    assert made.addresses(B) == made.addresses(C) == (NEW,)


def test_failures_are_not_forgotten_each_time_that_it_is_told() -> None:
    made, hearsay = table()
    hearsay.follow({B: AT}, 0.0)
    assert keys(made, 0.0) == [B]
    made.failed(B, 0.0)
    due = made.next_due()
    hearsay.follow({B: AT}, 0.0)
    assert made.next_due() == due
