"""A soak ends where a peer ended by itself: nobody is killed or started in its place."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

from tools.lab.soak import Soaked, _kill_on


class HouseWithout:
    """A laboratory in which one peer is gone."""

    def __init__(self, names: list[str], gone: str) -> None:
        self._names, self._gone = names, gone
        self.peers = {gone: SimpleNamespace(log=lambda: "Traceback")}

    def running(self) -> set[str]:
        return {*self._names} - {self._gone}


def test_a_peer_that_ended_by_itself_ends_it() -> None:
    house: Any = HouseWithout(["kept", "killed"], gone="killed")
    found, silent = Soaked(), threading.Event()
    _kill_on(house, ["kept"], ["killed"], 60.0, silent, found, lambda text: None)
    assert found.wrong == ["killed ended by itself: Traceback"]
    assert found.kills == 0
