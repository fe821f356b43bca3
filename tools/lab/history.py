"""What happened while the nemesis was at work: requests, faults, and what each peer told."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from tools.lab.faults import Fault
from tools.lab.house import House

LOOK_S = 0.05  # between two looks at what the peers printed


@dataclass
class Asked:
    """One request and how it ended. Times are seconds after the schedule began."""

    device: str
    question: dict[str, Any]
    began_s: float
    ended_s: float = 0.0
    cancelled: bool = False  # by its caller, soon
    error: str = ""  # code of the error; empty: answered
    message: str = ""
    answer: dict[str, Any] = field(default_factory=dict)


@dataclass
class Seen:
    """A peer told that another one came or went, or that it is ready itself."""

    at_s: float
    observer: str
    kind: str  # "started", "peer-joined", "peer-left"
    about: str = ""  # the other's name


@dataclass
class Held:
    """What a peer's process holds of the system."""

    descriptors: int
    threads: int
    memory_bytes: int


@dataclass
class History:
    """All of one schedule."""

    seed: int
    devices: list[str]
    faults: list[Fault]
    asked: list[Asked] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    before: dict[str, Held] = field(default_factory=dict)
    after: dict[str, Held] = field(default_factory=dict)  # of peers that ran all the time
    finally_seen: dict[str, list[str]] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    lasted_s: float = 0.0

    def as_document(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self)


class Watcher:
    """Follows what the peers print, in a thread, until :meth:`close`."""

    def __init__(self, house: House, history: History, zero: float) -> None:
        self._house, self._history, self._zero = house, history, zero
        self._places: dict[str, tuple[Any, int]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lab-watcher", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look once more, and stop."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(LOOK_S):
            self._look()
        self._look()

    def _look(self) -> None:
        for device, peer in list(self._house.peers.items()):
            path = self._house.folder / device / "output"
            known, place = self._places.get(device, (None, 0))
            if known is not peer.process:  # started again: its output is a new file
                place = 0
            try:
                data = path.read_bytes()[place:]
            except OSError:
                continue
            whole = data[: data.rfind(b"\n") + 1]
            self._places[device] = peer.process, place + len(whole)
            for line in whole.splitlines():
                self._note(device, json.loads(line))

    def _note(self, device: str, told: dict[str, Any]) -> None:
        at_s = time.monotonic() - self._zero
        if told["type"] == "started":
            self._history.seen.append(Seen(at_s, device, "started"))
            return
        event = told.get("event", {})
        if event.get("kind") in ("peer-joined", "peer-left"):
            self._history.seen.append(Seen(at_s, device, event["kind"], event["name"]))


def held(pid: int) -> Held:
    """What a process holds now."""
    from pathlib import Path

    folder = Path(f"/proc/{pid}")
    status = dict(
        line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line
    )
    memory_kib = int(status["VmRSS"].split()[0])
    descriptors = len(list((folder / "fd").iterdir()))
    return Held(descriptors, int(status["Threads"]), 1024 * memory_kib)
