"""What was learned of a tab is kept for the same tab when it joins again, and for nobody else."""

from __future__ import annotations

from typing import Any

import pytest

from astra_mesh.peer import lessons
from astra_mesh.peer.lessons import Lessons
from astra_mesh.plan.experience import AS_MEASURED, Conditions, Effort, Pace
from astra_mesh.wire.messages import MAGIC, PROTOCOL_VERSION, Device, Hello, ModelId, PeerId, Role

HOST, FIRST, SECOND = (PeerId(letter * 64) for letter in "abc")
HERE = Conditions(ModelId("m"), alone=False)
PHONE = Device("phone", 4, 4, 1)


def hello(peer: PeerId, **more: Any) -> Hello:
    told: dict[str, Any] = {"name": "phone", "role": Role.PEER, "device": PHONE, "via": HOST}
    return Hello(magic=MAGIC, version=PROTOCOL_VERSION, peer=peer, window_bytes=1, **(told | more))


def learned() -> Lessons:
    """Of a tab that is there."""
    found = Lessons()
    found.recognise({FIRST: hello(FIRST)})
    found.experience.learn(FIRST, HERE, Effort(1, 1, 1, 1), Effort(4, 4, 4, 4))
    return found


def test_a_tab_that_joins_again_is_as_fast_as_before() -> None:
    known = learned()
    known.recognise({})
    known.recognise({SECOND: hello(SECOND)})
    assert known.experience.pace(SECOND, HERE) == Pace(2, 2, 2, 2)
    assert known.experience.pace(FIRST, HERE) == AS_MEASURED
    known.recognise({FIRST: hello(FIRST)})  # and once more
    assert known.experience.pace(FIRST, HERE) == Pace(2, 2, 2, 2)


@pytest.mark.parametrize(
    "more",
    [
        {"name": "another"},
        {"via": PeerId("d" * 64)},
        {"via": PeerId("")},
        {"device": Device("phone", 8, 8, 1)},
    ],
)
def test_others_are_not_taken_for_it(more: dict[str, Any]) -> None:
    known = learned()
    known.recognise({SECOND: hello(SECOND, **more)})
    assert known.experience.pace(SECOND, HERE) == AS_MEASURED
    assert known.experience.pace(FIRST, HERE) == Pace(2, 2, 2, 2)


def test_of_two_that_are_there_at_once_each_keeps_its_own() -> None:
    known = learned()
    both = {FIRST: hello(FIRST), SECOND: hello(SECOND)}
    known.recognise(both)
    known.recognise(dict(reversed(both.items())))
    assert known.experience.pace(FIRST, HERE) == Pace(2, 2, 2, 2)
    assert known.experience.pace(SECOND, HERE) == AS_MEASURED


def test_tabs_that_left_are_forgotten_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lessons, "TABS", 2)
    known = learned()
    known.recognise({HOST: hello(HOST, name="one"), SECOND: hello(SECOND, name="two")})
    known.recognise({SECOND: hello(SECOND)})
    assert known.experience.pace(SECOND, HERE) == AS_MEASURED
