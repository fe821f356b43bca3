"""Which requests are checked, what is kept for it, and what follows."""

from __future__ import annotations

import random
from functools import cache

import numpy as np
import pytest

from astra_mesh import limits
from astra_mesh.engine.recheck import Deviation
from astra_mesh.families import Model
from astra_mesh.peer.exchange import MeshExchange
from astra_mesh.peer.kept import Kept
from astra_mesh.peer.spot_check import SpotChecks, checkable, is_false
from astra_mesh.wire.messages import CodebookId, Late, ModelId, Plan
from tests.unit.peer.fakes import A, B, C, exchange_of, layout_for, small_model

THREE = [(0, 10), (10, 25), (25, 40)]
FINE = [Deviation(1, 0.01, 0.1), Deviation(2, 0.02, 0.2)]


@cache
def words() -> Model:
    return small_model("gpt2")


def exchange() -> MeshExchange:
    model = words()
    return exchange_of(model, layout_for(model, THREE, "generate"), 2)


def plan(late: Late = Late.WAIT) -> Plan:
    return Plan(
        model=ModelId("a" * 64),
        codec="fp32",
        codebook=CodebookId(""),
        shards=[],
        rates=[],
        answering=C,
        class_token="none",
        late=late,
    )


def test_so_many_requests_are_checked_as_was_asked_for() -> None:
    for share in (0.0, 0.25, 1.0):
        checks, count = SpotChecks(share, random.Random(1)), 0
        for _ in range(100):
            one = exchange()
            checks.begin(one, plan())
            count += one.kept is not None
            checks.end(one)
        assert count == pytest.approx(100 * share, abs=12)


def test_every_sender_has_its_turn() -> None:
    checks, seen = SpotChecks(1.0, random.Random(1)), set[int]()
    assert checkable(exchange().layout, 2) == [0, 1]
    for _ in range(20):
        one = exchange()
        checks.begin(one, plan())
        assert one.kept is not None
        seen.add(one.kept.shard)
        checks.end(one)
    assert seen == {0, 1}


def test_one_request_at_a_time_is_kept() -> None:
    checks, first, second = SpotChecks(1.0), exchange(), exchange()
    checks.begin(first, plan())
    checks.begin(second, plan())
    assert (first.kept is None, second.kept is None) == (False, True)
    checks.end(second)
    checks.begin(second, plan())
    assert second.kept is None
    checks.end(first)
    checks.begin(second, plan())
    assert second.kept is not None


def test_plans_that_go_on_without_codes_are_not_checked() -> None:
    checks, one = SpotChecks(1.0), exchange()
    checks.begin(one, plan(Late.DEGRADE))
    assert one.kept is None


def test_more_than_the_limit_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SPOT_CHECK_BYTES", 1_000)
    kept, rows = Kept(0), np.zeros((100, 5), dtype=np.uint8)
    kept.put(1, 0, [rows])
    assert list(kept.codes) == [(1, 0)]
    kept.put(1, 1, [rows, rows])
    assert kept.is_full
    kept.put(2, 0, [rows[:1]])
    assert not kept.codes


@pytest.mark.parametrize(
    ("mean", "worst", "wrong"),
    [
        (0.0, 0.0, False),
        (-0.01, 0.1, False),
        (0.1, 0.5, False),
        (0.6, 0.7, True),
        (0.05, 1.5, True),
        (float("nan"), 0.0, True),
        (0.0, float("inf"), True),
    ],
)
def test_what_is_false(mean: float, worst: float, wrong: bool) -> None:
    assert is_false(Deviation(1, mean, worst)) is wrong


def test_a_liar_is_named_and_left_out_for_a_while(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    checks = SpotChecks(1.0, clock=lambda: now)
    assert checks.judge(A, "kitchen", FINE) is None
    assert not checks.shuns(A)
    said = checks.judge(A, "kitchen", [*FINE, Deviation(3, 0.9, 2.0), Deviation(4, 0.8, 1.0)])
    assert said is not None
    assert f"the codes of block 3 that kitchen ({A[:8]}) sent" in said
    result = checks.judge(A, "kitchen", [Deviation(3, 0.9, 0.9, pooled=True)])
    assert result is not None
    assert result.startswith(f"the result that kitchen ({A[:8]}) sent")
    assert said in caplog.text
    assert checks.shuns(A)
    assert not checks.shuns(B)
    now += limits.SHUN_S + 1
    assert not checks.shuns(A)


def test_those_left_out_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CANDIDATES", 2)
    checks = SpotChecks(1.0)
    for peer in (A, B, C):
        checks.judge(peer, "x", [Deviation(1, 1.0, 1.0)])
    assert [checks.shuns(peer) for peer in (A, B, C)] == [False, True, True]
