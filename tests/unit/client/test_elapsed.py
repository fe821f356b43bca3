"""The times of a whole request, as its client has them."""

from __future__ import annotations

import pytest

from astra_mesh.client.elapsed import Elapsed
from tests.unit.cli.stub import ME, report


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr("time.perf_counter", found)
    return found


def test_one_peer_tells_all_but_the_whole_time(clock: Clock) -> None:
    elapsed = Elapsed()
    for _ in range(3):
        clock.now += 1.0
        elapsed.token()
    told = elapsed.told(report([ME], 3))
    assert (told.took_s, told.lost_s, told.tokens_s) == (3.0, 0.0, 0.0)


def test_a_loss_counts_from_the_last_news(clock: Clock) -> None:
    elapsed = Elapsed()
    clock.now += 1.0
    elapsed.token()
    clock.now += 2.0
    elapsed.token()
    clock.now += 30.0  # the caller looks at it
    elapsed.heard()
    clock.now += 8.0
    elapsed.lost()
    clock.now += 0.5
    elapsed.token()
    told = elapsed.told(report([ME], 3))
    assert (told.took_s, told.lost_s, told.tokens_s) == (41.5, 8.0, 40.5)


def test_a_loss_before_any_token_leaves_their_time_to_the_last_peer(clock: Clock) -> None:
    elapsed = Elapsed()
    clock.now += 8.0
    elapsed.lost()
    clock.now += 1.0
    elapsed.token()
    told = elapsed.told(report([ME], 1))
    assert (told.took_s, told.lost_s, told.tokens_s) == (9.0, 8.0, 0.0)
