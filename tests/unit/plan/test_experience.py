"""What finished requests teach: bounded, smoothed, and only where there is something to learn."""

from __future__ import annotations

import math

import pytest

from astra_mesh.plan.experience import (
    AS_MEASURED,
    BOUND,
    KEPT,
    Conditions,
    Effort,
    Experience,
    Pace,
)
from astra_mesh.wire.messages import ModelId, PeerId

PEER = PeerId("a" * 64)
HERE = Conditions(ModelId("m"), alone=False)


def test_a_peer_is_as_fast_as_it_measured_until_it_was_seen() -> None:
    assert Experience().pace(PEER, HERE) == AS_MEASURED


def test_what_is_seen_again_and_again_is_believed() -> None:
    """Each time the prediction carries what is known, so the rest is learned."""
    known = Experience()
    for _ in range(12):
        pace = known.pace(PEER, HERE)
        predicted = Effort(pace.compute, 0.1 * pace.encode, 0.2 * pace.decode, 0.1 * pace.other)
        known.learn(PEER, HERE, predicted, Effort(2.0, 0.05, 0.2, 0.3))
    assert known.pace(PEER, HERE) == pytest.approx(Pace(2.0, 0.5, 1.0, 3.0), rel=0.01)


def test_conditions_do_not_mix() -> None:
    known = Experience()
    known.learn(PEER, HERE, Effort(1.0, 1.0, 1.0, 1.0), Effort(2.0, 2.0, 2.0, 2.0))
    assert known.pace(PEER, HERE._replace(alone=True)) == AS_MEASURED
    assert known.pace(PeerId("b" * 64), HERE) == AS_MEASURED


@pytest.mark.parametrize("took", [0.0, 1e-6, math.nan, math.inf])
def test_what_tells_nothing_is_not_learned(took: float) -> None:
    known = Experience()
    known.learn(PEER, HERE, Effort(1.0, 1.0, 1.0, 1.0), Effort(took, took, took, took))
    assert known.pace(PEER, HERE) == AS_MEASURED


def test_claims_are_bounded() -> None:
    known = Experience()
    for _ in range(20):
        known.learn(PEER, HERE, Effort(0.01, 0.01, 0.01, 0.01), Effort(1e9, 1e9, 0.002, 1e9))
    assert known.pace(PEER, HERE) == pytest.approx((BOUND, BOUND, 1 / BOUND, BOUND))


def test_what_was_slow_is_tried_again_after_a_while() -> None:
    known = Experience()
    for at in range(6):
        pace = known.pace(PEER, HERE, float(at))
        predicted = Effort(pace.compute, pace.encode, 1.0, 1.0)
        known.learn(PEER, HERE, predicted, Effort(6.0, 1.2, 1.0, 1.0), at)
    seen = known.pace(PEER, HERE, 5.0)
    assert seen.compute > 5.0
    later = [known.pace(PEER, HERE, 5.0 + age).compute for age in (60.0, 120.0, 600.0)]
    assert later[0] == pytest.approx(KEPT * math.sqrt(seen.compute / KEPT))
    assert seen.compute > later[0] > later[1] > later[2] == pytest.approx(KEPT, rel=0.01)
    assert known.pace(PEER, HERE, 605.0).encode == pytest.approx(seen.encode)


def test_peers_that_came_and_went_are_forgotten() -> None:
    known = Experience(limit=2)
    for name in "abc":
        known.learn(PeerId(name * 64), HERE, Effort(1.0), Effort(4.0))
    assert known.pace(PEER, HERE) == AS_MEASURED
    assert known.pace(PeerId("c" * 64), HERE).compute == 2.0
