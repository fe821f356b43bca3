"""Turns: so many at once, fair among askers, and nothing lost by cancelling."""

from __future__ import annotations

import asyncio

import pytest

from astra_mesh.peer.turns import Turns


class Holder:
    def __init__(self, turns: Turns, asker: str, order: list[str]) -> None:
        self.leave = asyncio.Event()
        self.task = asyncio.create_task(self._hold(turns, asker, order))

    async def _hold(self, turns: Turns, asker: str, order: list[str]) -> None:
        async with turns.turn(asker):
            order.append(asker)
            await self.leave.wait()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_askers_take_turns() -> None:
    turns, order = Turns(1), list[str]()
    holders = [Holder(turns, asker, order) for asker in ("a", "a", "a", "b", "c", "b")]
    await settle()
    assert order == ["a"]
    assert turns.waiting == 5
    for holder in (holders[i] for i in (0, 1, 3, 4, 2, 5)):
        holder.leave.set()
        await settle()
    assert order == ["a", "a", "b", "c", "a", "b"]
    assert turns.waiting == 0
    await asyncio.gather(*(holder.task for holder in holders))


async def test_cancelling_those_who_wait_and_those_who_hold() -> None:
    turns, order = Turns(2), list[str]()
    holders = [Holder(turns, name, order) for name in "abcdef"]
    await settle()
    for index in (2, 0, 3):  # one who waits, one who holds, one who has just got the turn
        holders[index].task.cancel()
    await settle()
    assert order == ["a", "b", "e"]
    for holder in holders:
        holder.leave.set()
    await asyncio.gather(*(holder.task for holder in holders), return_exceptions=True)
    assert order == ["a", "b", "e", "f"]
    assert turns._free == 2
    assert not turns._lines


async def test_it_says_how_long_one_more_would_wait() -> None:
    turns, order = Turns(1), list[str]()
    assert turns.wait_s(0) == 0.0
    first = Holder(turns, "a", order)
    await asyncio.sleep(0.05)
    first.leave.set()
    await first.task
    second, third = Holder(turns, "a", order), Holder(turns, "b", order)
    await settle()
    assert turns.wait_s(0) >= 2 * 0.05
    assert turns.wait_s(64) == pytest.approx(64 * turns.wait_s(0) / 2)  # some are on their way here
    for holder in (second, third):
        holder.leave.set()
        await holder.task
