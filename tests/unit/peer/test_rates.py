"""Which rate a link gets, from what is on its way and when codes are needed."""

from __future__ import annotations

import math

import pytest

from astra_mesh import limits
from astra_mesh.mesh.probe import Backlog
from astra_mesh.peer.rates import LinkRate, Pacing

SIZES = {1: 10_000, 2: 20_000, 3: 40_000, 4: 80_000}
ALLOWED_S = 0.1
FREE = Backlog(0, math.inf, 100e6)  # 80,000 bytes take 6.4 ms


def busy(size: int, bps: float) -> Backlog:
    return Backlog(size, bps, 100e6)


def test_a_good_link_keeps_the_plan() -> None:
    rate = LinkRate(SIZES)
    assert [rate.choose(block, ALLOWED_S, FREE) for block in range(1, 10)] == [4] * 9
    assert rate.used == []


@pytest.mark.parametrize(
    ("bps", "stages"), [(6.4e6, 4), (6.3e6, 3), (3.2e6, 3), (1.7e6, 2), (0.9e6, 1), (0.1e6, 1)]
)
def test_as_many_stages_as_arrive_in_time(bps: float, stages: int) -> None:
    assert LinkRate(SIZES).choose(1, ALLOWED_S, Backlog(0, math.inf, bps)) == stages


def test_what_is_on_its_way_goes_first() -> None:
    assert LinkRate(SIZES).choose(1, ALLOWED_S, Backlog(0, math.inf, 8e6)) == 4
    assert LinkRate(SIZES).choose(1, ALLOWED_S, Backlog(50_000, math.inf, 8e6)) == 3


def test_a_link_that_falls_is_believed_at_once() -> None:
    """From 100 to 5 Mbit/s: the estimate still says 100, what is on its way says less."""
    rate = LinkRate(SIZES)
    assert rate.choose(1, ALLOWED_S, FREE) == 4
    assert rate.choose(2, ALLOWED_S, busy(60_000, 5e6)) == 1
    assert rate.used == [(2, 1)]


def test_it_comes_back_step_by_step_after_calm_blocks() -> None:
    rate = LinkRate(SIZES)
    rate.choose(1, ALLOWED_S, busy(60_000, 2e6))
    after = [rate.choose(block, ALLOWED_S, FREE) for block in range(2, 40)]
    assert after == sorted(after)
    assert set(after) == {1, 2, 3, 4}
    assert after.index(2) >= 1  # not at once
    assert rate.used[0] == (1, 1)
    assert [stages for _, stages in rate.used] == [1, 2, 3, 4]


def test_a_link_that_is_almost_good_enough_does_not_go_up_and_down() -> None:
    """Enough for 40,000 bytes and not for 80,000, which show in what is on its way."""
    rate, changes = LinkRate(SIZES), 0
    backlog = FREE
    for block in range(1, 101):
        before = rate.stages
        stages = rate.choose(block, ALLOWED_S, backlog)
        changes += stages != before
        late = 8 * SIZES[stages] / 5e6 > ALLOWED_S
        backlog = busy(SIZES[stages] // 4, 5e6) if late else FREE
    assert changes <= 12


def test_the_number_of_changes_is_bounded() -> None:
    rate = LinkRate(SIZES)
    for block in range(1, 2000):
        rate.choose(block, ALLOWED_S, busy(100_000, 1e5) if block % 60 == 0 else FREE)
    assert len(rate.used) <= limits.RATE_CHANGES + len(SIZES)
    assert rate.choose(2000, ALLOWED_S, busy(100_000, 1e5)) == 1


def test_what_the_plan_leaves_time_for() -> None:
    pacing = Pacing(0.5)
    assert pacing.allowed_s(1, 100.0, 0.0) == pytest.approx(0.5)
    assert pacing.allowed_s(2, 100.1, 0.0) == pytest.approx(0.9)  # ahead of the plan
    assert pacing.allowed_s(3, 104.0, 0.0) == pytest.approx(0.5)  # behind it: one block
    assert pacing.allowed_s(4, 104.0, 0.8) == pytest.approx(0.8)  # the work takes longer
    assert Pacing(0.0).allowed_s(1, 0.0, 0.0) == limits.RATE_LEAST_S
