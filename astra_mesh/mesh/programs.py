"""Which program did something, so that others can see later whether it still runs."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import msgspec

_PROCESSES = Path("/proc")


class Program(msgspec.Struct, frozen=True):
    """A process: numbers are given anew, and containers number for themselves."""

    pid: int
    started: int  # ticks after boot
    space: str  # in which the number counts

    @classmethod
    def own(cls) -> Program | None:
        """This one; None where the system tells too little (others than Linux)."""
        started, space = _started("self"), _space()
        return cls(os.getpid(), started, space) if started and space else None

    @property
    def is_gone(self) -> bool:
        """Whether it surely runs no more. In another container that cannot be seen."""
        if self.space != _space():
            return False
        started = _started(str(self.pid))
        return _is_free(self.pid) if started is None else started != self.started


def _is_free(pid: int) -> bool:
    """Whether no process has a number; those of other users may be hidden in /proc."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _started(pid: str) -> int | None:
    """When a process started; 0 if it is dead and nobody asked for it; None if it is not seen."""
    with suppress(OSError, ValueError, IndexError):
        text = (_PROCESSES / pid / "stat").read_text(errors="replace")
        state, *fields = text.rpartition(")")[2].split()  # its name may hold spaces
        return 0 if state in "ZX" else int(fields[18])
    return None


def _space() -> str:
    with suppress(OSError):
        return str((_PROCESSES / "self/ns/pid").readlink())
    return ""
