"""Throughput from times and sizes."""

import pytest

from astra_mesh import limits
from astra_mesh.mesh.probe import Meter, train_bps


@pytest.mark.parametrize("rate", [1e5, 1e7, 1e9])
def test_a_train_at_the_rate_of_the_link(rate: float) -> None:
    size = 16_384
    pongs = [0.05 + 8 * size * i / rate for i in range(7)]
    assert train_bps(pongs, size) == pytest.approx(rate)


def test_a_burst_at_the_head_is_left_out() -> None:
    size, rate = 16_384, 1e7
    pongs = [0.01, 0.01, 0.01, *(0.01 + 8 * size * i / rate for i in (0, 1, 2, 3))]
    assert train_bps(pongs, size) == pytest.approx(rate)


def test_pongs_in_a_bunch_are_not_believed() -> None:
    size, rate = 16_384, 1e7
    pongs = [0.01, *[0.01 + 8 * size * 6 / rate] * 6]
    assert train_bps(pongs, size) == pytest.approx(rate)


def test_a_train_that_came_back_at_once() -> None:
    assert train_bps([1.0, 1.0, 1.0, 1.0, 1.0], 1_000) == pytest.approx(8 * 2_000 / 1e-6)


def test_real_traffic() -> None:
    meter = Meter()
    size, rate = 8 * limits.UNSENT_BYTES, 1e7
    for piece in range(8):
        meter.wrote(size // 8, 100.0 + piece)
    meter.idle(100.0 + 8 * (size - limits.UNSENT_BYTES) / rate)
    assert meter.bps == pytest.approx(rate)
    meter.wrote(size, 200.0)
    meter.idle(200.0 + 8 * (size - limits.UNSENT_BYTES) / (2 * rate))
    assert meter.bps == pytest.approx(1.25 * rate)


def test_short_runs_say_nothing() -> None:
    meter = Meter()
    meter.idle(0.0)
    meter.wrote(limits.UNSENT_BYTES, 0.0)
    meter.idle(1.0)
    assert meter.bps is None
