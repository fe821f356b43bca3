"""What a search makes of announcements."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest

from astra_mesh import limits
from astra_mesh.client import nearby
from astra_mesh.errors import NoPeerError
from astra_mesh.mesh.connect import Address
from astra_mesh.wire.messages import PeerId
from tests.timings import patient

ONE, OTHER = PeerId("1" * 64), PeerId("2" * 64)
NEAR, FAR, FORGED = ("192.0.2.1", 7475), ("198.51.100.1", 7475), ("203.0.113.6", 9)
HEARD: list[tuple[PeerId, list[Address]]] = [
    (ONE, [FORGED]),  # somebody announces it before it does so itself
    (ONE, [NEAR, FAR]),
    (OTHER, [NEAR]),
    (ONE, [NEAR, FORGED, FAR]),
]


class Announced:
    """Hears all at once, and nothing more."""

    def __init__(self, *_: Any, on_found: Any, **__: Any) -> None:
        self._on_found = on_found

    async def run(self) -> None:
        for peer, addresses in HEARD:
            self._on_found(peer, "", addresses)
        await asyncio.Event().wait()


async def test_a_forged_announcement_hides_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearby, "Discovery", Announced)
    monkeypatch.setattr(nearby, "SEARCH_S", 0.05)
    async with aclosing(nearby.search()) as found:
        assert [addresses async for addresses in found] == [[FORGED], [NEAR, FAR], [NEAR]]


def place(number: int) -> list[Address]:
    return [("192.0.2.1", number)]


class Dialled:
    """Who is dialled, when; all say nothing but some, which answer after a while."""

    def __init__(self, **answer_after_s: float) -> None:
        self.began: list[int] = []
        self.answered: list[int] = []
        self.now = self.most = 0
        self._answers = {int(key[1:]): after_s for key, after_s in answer_after_s.items()}

    async def __call__(self, addresses: list[Address]) -> None:
        ((_, number),) = addresses
        self.began.append(number)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(self._answers.get(number, 0.2))
            if number not in self._answers:
                raise NoPeerError("no answer")
            self.answered.append(number)
        finally:
            self.now -= 1


async def all_of(count: int) -> AsyncGenerator[list[Address], None]:
    for number in range(count):
        yield place(number)
        await asyncio.sleep(0)


@pytest.fixture
def _two_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SEARCH_DIALS", 2)
    monkeypatch.setattr(limits, "SEARCH_TURN_S", 0.01)


@pytest.mark.usefixtures("_two_at_once")
async def test_the_mute_make_room_for_those_behind_them() -> None:
    dial = Dialled(_9=0.0)
    task = asyncio.create_task(nearby.dial_all(all_of(10), dial))
    async with asyncio.timeout(patient(0.5)):  # the mute alone take 0.9 s
        while not dial.answered:
            await asyncio.sleep(0.001)
    assert dial.began[:10] == list(range(10)), "each has a turn before any has two"
    await task
    assert dial.most <= 3, "one that ends, beside two"
    assert set(dial.began[10:]) <= set(range(9))
    assert dial.now == 0


@pytest.mark.usefixtures("_two_at_once")
async def test_who_is_slower_than_a_turn_has_another_one() -> None:
    dial = Dialled(_0=0.05)
    await nearby.dial_all(all_of(6), dial)
    assert dial.answered == [0]
    assert dial.began.count(0) == 2


async def test_where_there_is_room_nobody_is_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SEARCH_TURN_S", 0.0)
    dial = Dialled(_3=0.1)
    await nearby.dial_all(all_of(10), dial)
    assert dial.answered == [3]
    assert dial.began == list(range(10))


@pytest.mark.usefixtures("_two_at_once")
async def test_a_search_that_is_given_up_leaves_no_dial() -> None:
    dial = Dialled()
    task = asyncio.create_task(nearby.dial_all(all_of(10), dial))
    while len(dial.began) < 6:
        await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert dial.now == 0
