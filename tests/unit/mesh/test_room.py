"""Who has to go where there is no room."""

from __future__ import annotations

from astra_mesh.mesh.room import Room


def room(most: int, most_of_host: int, at_work: str = "") -> tuple[Room[str], list[str]]:
    gone: list[str] = []
    return Room(most, lambda _: most_of_host, gone.append, at_work.__contains__), gone


def test_a_host_loses_its_own_oldest() -> None:
    one, gone = room(9, 2)
    for name, host in (("a", "x"), ("b", "y"), ("c", "y"), ("d", "y"), ("e", "y")):
        one.enter(name, host)
    assert gone == ["b", "c"]
    assert len(one) == 3


def test_in_all_the_busiest_host_loses() -> None:
    one, gone = room(3, 3)
    for name, host in (("a", "x"), ("b", "y"), ("c", "y"), ("d", "z")):
        one.enter(name, host)
    assert gone == ["b"]


def test_what_is_at_work_stays_and_the_next_goes() -> None:
    one, gone = room(3, 2, at_work="abc")
    for name, host in (("a", "x"), ("b", "x"), ("d", "x"), ("c", "y"), ("e", "z")):
        one.enter(name, host)
    assert gone == ["d", "e"]
    one.leave("a")
    one.leave("absent")
    one.enter("f", "x")
    assert gone == ["d", "e"]


def test_the_busiest_host_may_be_all_at_work() -> None:
    one, gone = room(3, 3, at_work="ab")
    for name, host in (("c", "y"), ("a", "x"), ("b", "x"), ("d", "z")):
        one.enter(name, host)
    assert gone == ["c"]
