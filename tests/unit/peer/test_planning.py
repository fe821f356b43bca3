"""Planning one request: who is planned with no more."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest

from astra_mesh.peer.planning import Planning
from astra_mesh.wire.messages import Ask, PeerId, Task
from tests.unit.peer.fakes import REQUEST
from tests.unit.plan.making import device


def planning(*gone: str) -> Planning:
    around: Any = SimpleNamespace(find_link=lambda peer: None if peer in gone else object())
    ask = Ask(request=REQUEST, task=Task.GENERATE, model="words", text="w1")
    nothing: Any = None
    found = Planning(ask, nothing, around, nothing, [])
    found.others = [device(name) for name in "abcd"]
    return found


@pytest.mark.parametrize(
    ("found", "shuns", "told", "reason"),
    [
        ([], False, [], ""),
        ([], False, ["planned without pad: this tab has not loaded the model yet"], "ready for"),
        (["b"], True, [], "false codes"),
        (["b"], False, [], ""),
    ],
)
async def test_why_nobody_else_is_planned_with_is_told_as_it_is(
    found: list[str], shuns: bool, told: list[str], reason: str
) -> None:
    """A tab that loads the model holds it: that nobody does would contradict the note on it."""
    ours = planning()
    around: Any = ours._around
    around.candidates = AsyncMock(return_value=[device(name) for name in found])
    around.left_out = around.loading = lambda *_: told
    around.checks = SimpleNamespace(shuns=lambda _: shuns)
    ours._loaded = SimpleNamespace(problems=[])  # type: ignore[assignment]
    ours._compute = AsyncMock(return_value=([], []))
    await ours.look_around(SimpleNamespace(inputs=None, for_others=None))  # type: ignore[arg-type]
    assert reason in ours._alone
    assert bool(reason) == bool(ours._alone)
    assert set(told) <= set(ours._notes)


def test_all_who_went_with_a_lost_peer_are_named() -> None:
    """As when this peer's own cable is out."""
    ours = planning("a", "c")
    assert ours.lose(PeerId("b")) == ["b", "a", "c"]
    assert [one.name for one in ours.others] == ["d"]


def test_who_refused_is_left_out_though_it_is_here() -> None:
    ours = planning()
    assert ours.lose(PeerId("b")) == ["b"]
    assert [one.name for one in ours.others] == ["a", "c", "d"]
    assert ours.lose(PeerId("e")) == ["e"]  # no candidate: by its id
