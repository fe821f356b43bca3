"""The arithmetic of the benchmark of TLS, and which programs do without it."""

from __future__ import annotations

import random

import pytest

from tools.bench.tls import PLAIN, SECURE, Round, _for, figure


def test_ratios_are_of_the_same_round() -> None:
    """What slows a whole round down cancels out."""
    chance = random.Random(1)
    houses: list[list[Round]] = [[] for _ in range(10)]
    for house in houses:
        for _ in range(20):
            load = chance.uniform(1.0, 5.0)
            house.append(Round(0.0303 * load * chance.gauss(1.0, 0.02), 0.03 * load))
    found = figure(houses)
    assert found.rounds == 200
    assert found.ratio == pytest.approx(1.01, abs=0.005)
    assert found.low < found.ratio < found.high
    assert found.high - found.low < 0.02


def test_a_few_rounds_say_little() -> None:
    found = figure([[Round(1.0, 1.0, 3.0, 2.0)], [Round(1.1, 1.0)], [Round(0.9, 1.0, 0.5, 0.0)]])
    assert (found.ratio, found.low, found.high) == (1.0, 0.9, 1.1)
    assert found.more_cpu_s == pytest.approx(0.5)


def test_rounds_of_one_laboratory_say_little_of_others() -> None:
    """A pair that is slow for a reason of its own is so in all of its rounds."""
    houses = [[Round(1.0 + slow, 1.0)] * 100 for slow in (0.0, 0.1, 0.02, 0.05)]
    found = figure(houses)
    assert (found.low, found.high) == (1.0, 1.1)
    assert figure(houses[:1]).high == 1.0


def test_programs_of_one_pair_do_without() -> None:
    argv = ["python", "-m", "astra_mesh", "peer"]
    assert _for(SECURE[0], argv) == ["python", "-m", "tools.bench.even", "astra_mesh", "peer"]
    assert _for(PLAIN[0], argv) == ["python", "-m", "tools.bench.plain", "astra_mesh", "peer"]
