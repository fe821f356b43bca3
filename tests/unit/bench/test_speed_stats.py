from __future__ import annotations

from typing import Any

import pytest

from tools.bench.speed_stats import (
    Key,
    Predicted,
    foreseen,
    latencies,
    planning,
    predictions,
    sent_bytes,
    shares,
    speedups,
    spread,
    within,
)


def row(variant: str, turn: int, seconds: float, **more: Any) -> dict[str, Any]:
    peers = [{"compute_s": 0.5 * seconds, "encode_s": 0.0, "decode_s": 0.1 * seconds,
              "wait_s": 0.2 * seconds, "sent_bytes": 10}] * 2  # fmt: skip
    cell = {"model": "m", "tokens": 8, "mbps": 10.0, "members": 2}
    return cell | {"variant": variant, "round": turn, "seconds": seconds, "peers": peers} | more


def key(variant: str) -> Key:
    return Key("m", 8, 10.0, 2, variant)


def test_the_spread_of_three_rounds() -> None:
    found = spread([3.0, 1.0, 2.0])
    assert (found.low, found.median, found.high, found.count) == (1.5, 2.0, 2.5, 3)
    assert spread([4.0]).median == 4.0


def test_latencies_are_medians_over_rounds() -> None:
    rows = [row("a", turn, seconds) for turn, seconds in enumerate([5.0, 1.0, 2.0])]
    assert latencies(rows)[key("a")].median == 2.0


def test_speedups_are_medians_of_ratios_within_a_round() -> None:
    """The machine was three times slower in the second round: the ratio does not see it."""
    rows = [
        *(row("single", turn, seconds) for turn, seconds in enumerate([2.0, 6.0, 2.2])),
        *(row("a", turn, seconds) for turn, seconds in enumerate([1.0, 3.0, 1.1])),
        row("slow", 0, 4.0),  # measured in one round only
    ]
    found = speedups(rows)
    assert found[key("a")].median == pytest.approx(2.0)
    assert found[key("a")].low == pytest.approx(2.0)
    assert found[key("slow")].median == pytest.approx(0.5)


def test_ratios_are_of_the_same_processes() -> None:
    """Peers and baselines that did not fit into the memory together ran one after the other."""
    rows = [
        row("single", 0, 1.0, shift="baselines"),
        row("tensor", 0, 2.0, shift="baselines"),
        row("single", 0, 3.0, shift="mesh"),
        row("a", 0, 1.0, shift="mesh"),
    ]
    found = speedups(rows)
    assert found[key("tensor")].median == pytest.approx(0.5)
    assert found[key("a")].median == pytest.approx(3.0)


def test_without_the_base_in_a_round_there_is_no_ratio() -> None:
    assert speedups([row("a", 0, 1.0)]) == {}


def test_predictions_of_those_that_have_one() -> None:
    rows = [row("single", 0, 1.0), row("mesh-16", 0, 1.0, predicted_s=1.1)]
    (found,) = predictions(rows)
    assert found.error == pytest.approx(0.1)
    far = Predicted(key("x"), 1.0, 2.0)
    assert within([found, far]) == 0.5
    assert within([]) == 0.0


def test_what_answers_foretold_of_one_device() -> None:
    rows = [row("single", 0, 1.0), row("mesh-16", 0, 0.5, solo_predicted_s=1.3)]
    (found,) = foreseen(rows)
    assert found.error == pytest.approx(0.3)
    assert foreseen(rows[1:]) == []  # nobody measured one device


def test_what_is_waited_for_besides_the_answer() -> None:
    rows = [row("mesh-16", i, 0.5, asked_s=0.5 + late) for i, late in enumerate((0.1, 0.2, 0.9))]
    (found,) = planning([row("single", 0, 1.0), *rows, row("mesh-128", 0, 0.5)]).values()
    assert found == pytest.approx(0.2)


def test_shares_and_bytes() -> None:
    found = shares([row("a", 0, 2.0)])
    assert found["compute_s"] == pytest.approx(0.5)
    assert found["other"] == pytest.approx(0.2)
    assert sent_bytes([row("a", 0, 2.0)]) == 20
