"""How a house waits for its peers to meet; none runs here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tools.lab import house
from tools.lab.house import House
from tools.lab.scenario import Device, Scenario
from tools.lab.system import LabError


def waiting(
    monkeypatch: pytest.MonkeyPatch, names: list[str], looks: list[set[str]], meet_s: float = 60.0
) -> list[str]:
    """What is said while each device sees so much, look by look."""
    said: list[str] = []
    devices = {name: Device() for name in names}
    built = House(Scenario(devices=devices, meet_s=meet_s), said.append)
    turns: dict[str, Iterator[set[str]]] = {name: iter(looks) for name in names}
    monkeypatch.setattr(house, "LOOK_S", 0.0)
    monkeypatch.setattr(built, "_seen", lambda device: next(turns[device], looks[-1]))
    built.meet(names)
    return said


def test_one_device_looks_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    assert waiting(monkeypatch, ["left"], [set(), {"left"}]) == []
    with pytest.raises(LabError, match=r"did not meet within .*: left is not ready"):
        waiting(monkeypatch, ["left"], [set()], meet_s=1e-9)


def test_several_say_whom_they_see(monkeypatch: pytest.MonkeyPatch) -> None:
    both = {"left", "right"}
    assert waiting(monkeypatch, sorted(both), [set(), set(), both]) == [
        "looking for each other: left sees 0 of 1, right sees 0 of 1"
    ]
