"""Turns of hosts."""

from __future__ import annotations

import pytest

from astra_mesh import limits
from astra_mesh.mesh.rate import Rate, Turns


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


def begun(turns: Turns, hosts: list[str], now: float) -> int:
    return sum(turns.take(host, now) for host in hosts)


def test_one_strange_host_gets_a_part_of_what_strangers_share() -> None:
    turns = Turns()
    assert begun(turns, ["a"] * 1_000, 0.0) == limits.STRANGER_HANDSHAKES_BURST
    assert begun(turns, ["b"] * 2, 0.0) == 2, "there is room for another one"


def test_many_strange_hosts_get_no_more_than_they_share() -> None:
    turns, hosts = Turns(), [str(number) for number in range(1_000)]
    assert begun(turns, hosts, 0.0) == limits.STRANGERS_HANDSHAKES_BURST
    assert begun(turns, hosts, 1.0) == limits.STRANGERS_HANDSHAKES_PER_S


def test_a_host_of_members_does_not_wait_for_strangers() -> None:
    turns = Turns()
    turns.welcome("member")
    begun(turns, [str(number) for number in range(1_000)], 0.0)
    assert begun(turns, ["member"] * 1_000, 0.0) == limits.HANDSHAKES_BURST
    assert begun(turns, ["member"] * 1_000, 1.0) == limits.HANDSHAKES_PER_S


def test_hosts_of_members_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RATED_HOSTS", 4)
    turns = Turns()
    for host in ("a", "b", "c", "d", "a", "e"):
        turns.welcome(host)
    assert list(turns._known) == ["c", "d", "a", "e"]
