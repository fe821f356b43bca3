"""Throughput from times and sizes."""

import math
import random

import pytest

from astra_mesh import limits
from astra_mesh.mesh.pings import Pings
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


# --- from real traffic ----------------------------------------------------------------------------


class Wire:
    """A link of some rate with a meter at its sending end."""

    def __init__(
        self, bps: float, round_trip_s: float = 0.004, least_trip_s: float | None = None
    ) -> None:
        self.bps, self.round_trip_s = bps, round_trip_s
        self.least_trip_s = round_trip_s if least_trip_s is None else least_trip_s
        self.meter, self.now = Meter(), 0.0

    def run(self, size: int, late_s: float = 0.0) -> None:
        """Write ``size`` bytes at once; the pong of the mark comes ``late_s`` too late."""
        meter = self.meter
        meter.wrote(size, self.now)
        if meter.idle(self.now):
            meter.mark(self.now)
            self.now += 8 * size / self.bps + self.round_trip_s + late_s
            meter.pong(self.now, self.round_trip_s, self.least_trip_s)
        self.now += 0.1


def test_codes_alone_tell_the_rate() -> None:
    wire = Wire(10e6)
    for _ in range(3):
        wire.run(8 * 1024)
    assert wire.meter.bps == pytest.approx(10e6, rel=0.01)


@pytest.mark.parametrize("size", [16 * 1024, 32 * 1024, 250 * 1024])
def test_a_rate_that_falls_and_rises_is_followed(size: int) -> None:
    wire = Wire(100e6)
    for _ in range(5):
        wire.run(size)
    wire.bps = 5e6
    for _ in range(8):
        wire.run(size)
    assert wire.meter.bps is not None
    assert 5e6 * 0.99 <= wire.meter.bps < 10e6
    wire.bps = 50e6
    for _ in range(12):
        wire.run(size)
    assert wire.meter.bps > 40e6


def test_one_late_pong_is_no_slow_link() -> None:
    wire = Wire(20e6)
    for late_s in (0.0, 0.0, 0.0, 0.5, 0.0, 0.3, 0.4, 0.0, 0.2):
        wire.run(16 * 1024, late_s)
    assert wire.meter.bps == pytest.approx(20e6, rel=0.01)


def test_a_pong_that_is_back_before_the_usual_time_is_no_fast_link() -> None:
    """Round trips of a busy phone vary by more than a few codes take at 4 Mbit/s."""
    source, wire = random.Random(5), Wire(4e6, round_trip_s=0.026, least_trip_s=0.013)
    wire.meter.probed(4e6, 0.0)
    for _ in range(200):
        wire.run(4096, source.uniform(-0.013, 0.013))
    assert wire.meter.bps is not None
    assert wire.meter.bps < 8e6


def test_an_estimate_that_is_far_too_high_falls_again() -> None:
    """Short runs, which a buffer takes at once, say nothing about long ones."""
    wire = Wire(4e6)
    wire.meter.probed(10e9, 0.0)
    for _ in range(10):
        wire.run(200_000)
        wire.bps = 1e9
        wire.run(3000)
        wire.bps = 4e6
    assert wire.meter.bps == pytest.approx(4e6, rel=0.1)


def test_a_few_that_are_late_are_no_slow_link_where_others_are_fast() -> None:
    wire = Wire(1e9)
    wire.meter.probed(1e9, 0.0)
    for number in range(60):
        wire.run(64 * 1024, 0.05 if number % 3 == 0 else 0.0)
    assert wire.meter.bps is not None
    assert wire.meter.bps > 200e6


def test_short_runs_do_not_confirm_what_was_measured_under_load() -> None:
    """News of a few KiB are there within 2 ms, on a link of 13.7 Mbit/s as on one of 430."""
    wire = Wire(430e6)
    wire.meter.probed(13.7e6, 0.0)
    for _ in range(20):
        wire.run(3 * 1024)
    assert wire.meter.measured == 0.0
    wire.run(3 * 1024, late_s=0.013)  # nor does one that a busy device answers late
    assert wire.meter.measured == 0.0


@pytest.mark.parametrize("bps", [2e6, 20e6])
def test_long_runs_of_codes_confirm_the_rate(bps: float) -> None:
    wire = Wire(bps)
    wire.meter.probed(bps, 0.0)
    wire.run(128 * 1024)
    assert wire.meter.measured > 0.0


def test_a_run_that_is_faster_than_any_plan_needs_confirms_such_a_rate_only() -> None:
    wire = Wire(5e9)
    wire.meter.probed(5e9, 0.0)
    wire.run(250 * 1024)
    assert wire.meter.measured > 0.0
    slow = Wire(5e9)
    slow.meter.probed(1e6, 0.0)
    slow.run(250 * 1024)
    assert slow.meter.bps is not None
    assert (slow.meter.measured > 0.0) == (slow.meter.bps >= limits.PLENTY_BPS)


def test_a_run_of_a_few_bytes_says_nothing() -> None:
    wire = Wire(10e6)
    wire.run(500)
    assert wire.meter.bps is None


def test_a_first_run_of_a_link_whose_first_pongs_came_late() -> None:
    """Devices that meet others at the same time: what the run took in all bounds the rate."""
    meter, pings, size, took_s = Meter(), Pings(1.0), 98_352, 0.02
    pings.start(0.0)
    pings.pong(pings.heartbeat(0.0).number, 0.05)
    meter.wrote(size, 0.1)
    assert meter.idle(0.1)
    meter.mark(0.1)
    assert meter.pong(0.1 + took_s, pings.round_trip_s, pings.least_trip_s)
    assert meter.bps == pytest.approx(8 * size / took_s)


def test_a_long_run_is_measured_while_it_goes_on() -> None:
    """Each mark's pong comes when all before it is there; the next run queues behind the last."""
    meter, rate, trip_s, chunk = Meter(), 10e6, 0.01, 64 * 1024
    pongs: list[float] = []
    for number in range(40):
        sent_s = 8 * chunk * (number + 1) / rate  # the socket takes as much as the link carries
        if meter.wrote(chunk, sent_s):
            meter.mark(sent_s)
            pongs.append(sent_s + 0.08 + trip_s)  # 100 KB are queued below
        if pongs and sent_s >= pongs[0]:
            meter.pong(pongs.pop(0), trip_s, trip_s)
    assert meter.bps == pytest.approx(rate, rel=0.15)


def test_a_pong_that_the_network_held_up_makes_no_fast_link() -> None:
    """A lost packet holds up the first mark's pong, while what was written behind it gets through:
    that the next mark's pong comes right after it does not mean that this took no time."""
    meter, trip_s = Meter(), 0.001
    meter.probed(5e6, 0.0)
    meter.wrote(3_000, 1.0)
    assert meter.idle(1.0)
    meter.mark(1.0)
    meter.wrote(98_352, 2.0)  # and on: the writer waits for the socket
    meter.pong(2.1, trip_s, trip_s)
    meter.wrote(16_384, 2.1)
    assert meter.idle(2.1)
    meter.mark(2.1)
    meter.pong(2.102, trip_s, trip_s)
    assert meter.bps is not None
    assert 5e6 < meter.bps <= 8 * (98_352 + 16_384) / (0.102 - trip_s)


def test_a_mark_whose_pong_is_lost_does_not_stop_measuring() -> None:
    wire = Wire(10e6)
    wire.meter.wrote(8192, 0.0)
    assert wire.meter.idle(0.0)
    wire.meter.mark(0.0)
    wire.meter.wrote(8192, 1.0)
    assert not wire.meter.idle(1.0)  # one at a time
    wire.now = 10.0
    wire.run(8192)
    assert wire.meter.bps == pytest.approx(10e6, rel=0.01)


def test_a_probe_replaces_what_was_thought() -> None:
    wire = Wire(10e6)
    wire.run(8192)
    wire.meter.probed(80e6, wire.now)
    assert wire.meter.bps == 80e6
    assert wire.meter.measured == wire.now


# --- what is under way ----------------------------------------------------------------------------


def test_what_is_under_way_bounds_the_rate() -> None:
    meter = Meter()
    assert meter.backlog(0.0, 0, None) == (0, math.inf, None)
    meter.probed(100e6, 0.0)
    meter.wrote(50_000, 1.0)
    assert meter.idle(1.0)
    meter.mark(1.0)
    assert meter.backlog(1.005, 0, 0.004) == (50_000, math.inf, 100e6)  # it may well be there
    size, bps, measured = meter.backlog(1.114, 7_000, 0.004)
    assert (size, measured) == (57_000, 100e6)
    assert bps == pytest.approx(8 * 50_000 / 0.1)  # 10 ms are left to busy devices
    meter.pong(1.12, 0.004, 0.004)
    assert meter.backlog(1.2, 0, 0.004)[:2] == (0, math.inf)


def test_a_run_that_goes_on_is_under_way_too() -> None:
    """More is queued than the system takes: so much was taken in so long."""
    meter = Meter()
    meter.wrote(64_000, 1.0)
    meter.wrote(16_000, 1.1)
    size, bps, _ = meter.backlog(1.21, 500_000, 0.0)
    assert size == 580_000
    assert bps == pytest.approx(8 * 80_000 / 0.2)


def test_a_link_that_is_known_is_marked_less_often_until_somebody_watches() -> None:
    wire = Wire(10e6)
    marked: list[float] = []

    def runs(count: int, ask: bool) -> int:
        marked.clear()
        for _ in range(count):
            if ask:
                wire.meter.backlog(wire.now, 0, wire.round_trip_s)
            before = wire.now
            wire.run(8 * 1024)
            if wire.now - before > 0.105:  # a pong came
                marked.append(before)
        return len(marked)

    runs(4, ask=False)
    assert runs(20, ask=False) <= 12
    assert runs(20, ask=True) == 20
