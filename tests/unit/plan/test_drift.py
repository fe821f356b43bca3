"""Plans that take longer than predicted, again and again, are not chosen again and again."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from astra_mesh.plan.drift import BOUND, LASTS_S, LEAST, SEEN, UNUSED, Codes, Drifts, drift_of
from astra_mesh.plan.planner import choose
from astra_mesh.wire.messages import CodebookId, ModelId, PeerId
from tests.unit.plan.making import device, job, links

CODES = Codes(ModelId("m"), "vq", CodebookId("b"), 64)
PAIR = frozenset({PeerId("a"), PeerId("b")})
ALONE = frozenset({PeerId("a")})


def taught(drifts: Drifts, ratios: list[float], codes: Codes = CODES, now: float = 0.0) -> None:
    for ratio in ratios:
        drifts.learn(codes, PAIR, ratio, now)


def test_the_first_answers_count_for_nothing() -> None:
    drifts = Drifts()
    taught(drifts, [9.0] * UNUSED + [2.0] * (LEAST - 1))
    assert drifts.known(CODES, 0.0) == {}
    taught(drifts, [2.0])
    assert drifts.known(CODES, 0.0) == {PAIR: 2.0}


def test_one_answer_that_was_held_up_decides_nothing() -> None:
    drifts = Drifts()
    taught(drifts, [1.0] * (UNUSED + LEAST) + [7.0, 7.0])
    assert drifts.known(CODES, 0.0) == {PAIR: 1.0}
    taught(drifts, [7.0] * SEEN)
    assert drifts.known(CODES, 0.0) == {PAIR: 7.0}


def test_what_is_old_is_forgotten_and_learned_anew() -> None:
    drifts = Drifts()
    taught(drifts, [3.0] * (UNUSED + LEAST))
    assert drifts.known(CODES, LASTS_S) == {PAIR: 3.0}
    assert drifts.known(CODES, LASTS_S + 1) == {}
    taught(drifts, [1.0] * (UNUSED + LEAST), now=LASTS_S + 1)
    assert drifts.known(CODES, LASTS_S + 1) == {PAIR: 1.0}


def test_codes_do_not_mix_but_one_device_sends_none() -> None:
    drifts, others = Drifts(), CODES._replace(bits=16)
    taught(drifts, [3.0] * (UNUSED + LEAST))
    for _ in range(UNUSED + LEAST):
        drifts.learn(others, ALONE, 1.5, 0.0)
    assert drifts.known(others, 0.0) == {ALONE: 1.5}
    assert drifts.known(CODES, 0.0) == {PAIR: 3.0, ALONE: 1.5}
    assert drifts.known(CODES._replace(model=ModelId("n")), 0.0) == {}


@pytest.mark.parametrize("ratio", [0.0, -1.0, math.nan, math.inf])
def test_what_cannot_be_is_not_learned(ratio: float) -> None:
    drifts = Drifts()
    taught(drifts, [ratio] * 9)
    assert drifts.known(CODES, 0.0) == {}


def test_it_is_bounded() -> None:
    drifts = Drifts(limit=2)
    taught(drifts, [1e9] * (UNUSED + LEAST))
    assert drifts.known(CODES, 0.0) == {PAIR: BOUND}
    for name in "xy":
        drifts.learn(CODES, frozenset({PeerId(name)}), 1.0, 0.0)
    assert drifts.known(CODES, 0.0) == {}


def test_a_group_that_is_slower_than_predicted_gives_way_to_one_device() -> None:
    """Whatever the reason is; and the predicted time of a plan is what such plans took."""
    peers = [device(name) for name in "abc"]
    before = choose(job(), peers[0], peers[1:], links(peers))
    group = frozenset(shard.peer for shard in before.plan.shards)
    assert len(group) == 3
    slower = choose(replace(job(), drifts={group: 1.2}), peers[0], peers[1:], links(peers))
    assert slower.plan.predicted_s == pytest.approx(1.2 * before.plan.predicted_s)
    assert slower.prediction.drift == 1.2
    known = {group: 9.0}
    found = choose(replace(job(), drifts=known), peers[0], peers[1:], links(peers))
    assert len(found.plan.shards) == 1
    assert "one device is faster" in found.reason
    # One device that is slow itself is no reason to stay alone.
    both = choose(replace(job(), drifts=known | {ALONE: 9.0}), peers[0], peers[1:], links(peers))
    assert len(both.plan.shards) > 1


def test_a_group_that_did_not_answer_yet_is_trusted_half_as_much() -> None:
    known = {PAIR: 4.0, frozenset(map(PeerId, "abc")): 9.0, ALONE: 0.5}
    assert drift_of(PAIR, known) == 4.0
    assert drift_of(frozenset(map(PeerId, "ac")), known) == 2.0
    assert drift_of(ALONE, known) == 0.5
    assert drift_of(frozenset({PeerId("b")}), known) == 1.0
    assert drift_of(PAIR, {ALONE: 0.5}) == 1.0
