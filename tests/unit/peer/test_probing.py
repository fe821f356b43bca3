"""When a link is probed again."""

import itertools
import random
from collections.abc import Callable
from typing import cast

import pytest

from astra_mesh import limits
from astra_mesh.errors import DeadlineError
from astra_mesh.mesh.link import Link
from astra_mesh.peer.probing import Rhythm, probe

MOMENT = 0.1  # seconds that a probe takes
MINUTES = 120.0  # after which a figure of a busy moment is gone


class Line:
    """A link that is over after so many seconds, with the throughput that a function of time says.

    Its time goes on while it is waited for.
    """

    address = "there"
    is_silent = False

    def __init__(
        self, ends_s: float, bps: Callable[[float], float | None] = lambda now: 10e6
    ) -> None:
        self.now, self.ends_s, self.bps = 0.0, ends_s, bps
        self.probed: list[tuple[float, float]] = []  # when, and what was found
        self.is_measured, self.outages = False, 0
        self.returns: list[float] = []  # when it comes back from silence

    def doubt(self) -> None:
        self.is_measured = False

    async def probe(self) -> float:
        bps = self.bps(self.now)
        if bps is None:
            raise DeadlineError("there did not answer a probe in time")
        self.probed.append((self.now, bps))
        return bps

    async def wait_closed(self, wait_s: float) -> bool:
        until = self.now + wait_s
        if self.returns and self.returns[0] <= until:
            until, self.outages = self.returns.pop(0), self.outages + 1
        self.now = until
        return self.now >= self.ends_s

    @property
    def gaps(self) -> list[float]:
        times = [when for when, _ in self.probed]
        return [after - before for before, after in itertools.pairwise(times)]


@pytest.fixture(autouse=True)
def _in_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, high: (low + high) / 2)


async def run(line: Line, is_busy: Callable[[], bool] = lambda: False) -> None:
    await probe(cast("Link", line), is_busy)


async def test_a_link_is_probed_at_once_and_more_rarely_where_probes_agree() -> None:
    line = Line(ends_s=400.0)
    await run(line)
    assert line.probed[0][0] == 0.0
    again, most = limits.PROBE_AGAIN_S, limits.PROBE_EVERY_S
    assert line.gaps == [again, 2 * again, *[most] * 5]


@pytest.mark.parametrize("load_s", [5.0, 40.0, 200.0, 500.0])
async def test_what_was_measured_under_load_is_gone_after_it(load_s: float) -> None:
    line = Line(ends_s=load_s + 4 * MINUTES, bps=lambda now: 13.7e6 if now < load_s else 430e6)
    await run(line)
    fast = next(when for when, bps in line.probed if bps > 400e6)
    assert fast - load_s <= limits.PROBE_EVERY_S < MINUTES


async def test_requests_are_let_first() -> None:
    line = Line(ends_s=300.0)
    await run(line, lambda: 10.0 < line.now < 250.0)
    assert [when for when, _ in line.probed if 10.0 < when < 250.0] == []
    assert any(250.0 <= when < 250.0 + 2 * limits.PROBE_IDLE_S for when, _ in line.probed)


async def test_a_link_that_ends_during_a_request_is_left() -> None:
    line = Line(ends_s=30.0)
    await run(line, lambda: line.now > 0)
    assert len(line.probed) == 1


async def test_traffic_that_tells_the_rate_spares_the_probe() -> None:
    line = Line(ends_s=300.0)
    line.is_measured = True
    await run(line)
    assert line.probed == []


async def test_a_probe_without_an_answer_is_tried_again() -> None:
    line = Line(ends_s=100.0, bps=lambda now: None if now < 10.0 else 10e6)
    await run(line)
    assert line.probed[0][0] == limits.PROBE_AGAIN_S


@pytest.mark.parametrize("took_s", [0.08, 0.8, 3.0])
def test_probes_take_a_small_share_of_a_thin_link(took_s: float) -> None:
    rhythm = Rhythm()
    rhythm.probed(1e6, took_s)
    assert rhythm.wait_s >= min(took_s / limits.PROBE_SHARE, limits.PROBE_RARELY_S)
    assert rhythm.wait_s <= MINUTES


@pytest.mark.parametrize(("before", "after"), [(10e6, 12e6), (400e6, 9e9)])
def test_probes_that_say_the_same(before: float, after: float) -> None:
    rhythm = Rhythm()
    rhythm.probed(before, MOMENT)
    rhythm.probed(after, MOMENT)
    assert rhythm.wait_s == 2 * limits.PROBE_AGAIN_S
    rhythm.probed(after / 100, MOMENT)
    assert rhythm.wait_s == limits.PROBE_AGAIN_S


async def test_a_link_that_comes_back_is_soon_probed() -> None:
    """The network may be another one: what agreed before makes no long waits either."""
    line = Line(400.0)
    line.returns = [300.0]
    await run(line)
    times = [when for when, _ in line.probed]
    back = times.index(300.0 + limits.PROBE_SETTLE_S)
    assert times[back + 1] - times[back] == pytest.approx(limits.PROBE_AGAIN_S)
    assert times[back - 1] - times[back - 2] == pytest.approx(limits.PROBE_EVERY_S)
