"""The arithmetic of the benchmark of floods, and what its stranger sends."""

from __future__ import annotations

import pytest

from tools.bench.attacker import KINDS, client_hello
from tools.bench.flood import AHEAD_S, TARGET, Pair, figure


def pair(quiet_s: float, attacked_s: float, opened: int = 100) -> Pair:
    return Pair(quiet_s, attacked_s, opened, 0, 0.0, 0.0)


def test_ratios_are_of_pairs() -> None:
    """What slows a whole pair down cancels out; one odd pair shows in the interval only."""
    pairs = [pair(load, 1.1 * load) for load in (1.0, 4.0, 2.0, 8.0)] + [pair(1.0, 9.0)]
    found = figure(pairs)
    assert found.ratio == pytest.approx(1.1)
    assert (found.low, found.high) == pytest.approx((1.1, 9.0))
    assert (found.quiet_s, found.attacked_s) == pytest.approx((2.0, 4.4))


@pytest.mark.parametrize(
    ("ratios", "told"),
    [
        ([TARGET - 0.01] * 9, "within the target"),
        ([1.0] * 5 + [TARGET + 0.5] * 4, "within it by the median only"),
        ([TARGET + 0.01] * 9, "more than the target"),
    ],
)
def test_what_is_told_of_the_target(ratios: list[float], told: str) -> None:
    assert figure([pair(1.0, one) for one in ratios]).told == told


def test_connections_are_counted_while_the_attack_ran() -> None:
    assert figure([pair(1.0, 1.5), pair(1.0, 1.5)]).per_s == pytest.approx(100 / (1.5 + AHEAD_S))


def test_the_first_message_is_one_of_tls() -> None:
    hello = client_hello()
    assert hello[:1] == b"\x16", "a handshake record"
    assert int.from_bytes(hello[3:5], "big") == len(hello) - 5
    assert hello[5:6] == b"\x01", "a ClientHello"


def test_kinds_are_as_large_as_the_target_says() -> None:
    assert KINDS["silent"].connections == KINDS["handshake"].connections == 1_000
    assert KINDS["slow"].connections == 200
