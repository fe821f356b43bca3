"""Turns of hosts."""

from __future__ import annotations

import pytest

from astra_mesh import limits
from astra_mesh.mesh.rate import Rate


def test_a_burst_and_then_so_many_a_second() -> None:
    rate = Rate(per_s=10, burst=3)
    assert [rate.take("a", 5.0) for _ in range(5)] == [True] * 3 + [False] * 2
    assert not rate.take("a", 5.05)
    assert rate.take("a", 5.15)
    assert not rate.take("a", 5.16)
    assert rate.take("b", 5.16), "another host has turns of its own"
    assert [rate.take("a", 99.0) for _ in range(4)] == [True] * 3 + [False]


def test_the_table_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RATED_HOSTS", 8)
    rate = Rate(per_s=10, burst=3)
    for number in range(100):
        rate.take(str(number), 0.0)
    assert len(rate._left) == 8
