"""What the laboratory needs of the system: commands, processes, and whose things are whose.

Everything that the laboratory makes has a name of the form ``astra-lab-PID-START-RANDOM-WHAT``: the
pid of the process that made it and that process's start time. So a later run can tell what a
killed owner left, and touches nothing else.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final, Self

PREFIX = "astra-lab"
COMMAND_TIMEOUT_S = 20.0  # one `ip` call; seen: 5 ms, 0.3 s on a loaded machine
STOP_GRACE_S = 3.0  # between SIGTERM and SIGKILL: a peer's goodbye takes less
POLL_S = 0.02


class LabError(RuntimeError):
    """The laboratory could not do what was asked."""


class LabUnavailableError(LabError):
    """This machine cannot have a laboratory: not Linux, not root, no `ip`, or not permitted."""


# Of the clock that Linux keeps for a process, whose id is the process's own, inverted: not of one
# thread but of all, in nanoseconds (CPUCLOCK_SCHED of include/linux/posix-timers_types.h).
_ALL_THREADS: Final = 2


@dataclass(frozen=True)
class Owner:
    """The process that made something; the start time tells it from a later one of its pid."""

    pid: int
    started: int  # clock ticks after boot, from /proc/PID/stat

    @classmethod
    def me(cls) -> Self:
        """This process."""
        return cls(os.getpid(), _start_ticks(os.getpid()) or 0)

    def is_alive(self) -> bool:
        """Whether that very process still runs."""
        return _start_ticks(self.pid) == self.started


def new_stem() -> str:
    """The start of the names of all that one laboratory of this process makes."""
    owner = Owner.me()
    return f"{PREFIX}-{owner.pid}-{owner.started}-{secrets.token_hex(3)}"


def owner_of(name: str) -> Owner | None:
    """Who made something, from its name; None if no laboratory did."""
    found = re.fullmatch(rf"{PREFIX}-(\d+)-(\d+)-[0-9a-f]{{6}}-[a-z0-9-]+", name)
    return Owner(int(found[1]), int(found[2])) if found else None


def orphans(folder: Path) -> list[Path]:
    """What is in a folder whose owner is dead, by name; nothing if there is no such folder."""
    try:
        paths = sorted(folder.iterdir())
    except OSError:
        return []
    owners = {path: owner_of(path.name) for path in paths}
    return [path for path, owner in owners.items() if owner is not None and not owner.is_alive()]


def _start_ticks(pid: int) -> int | None:
    """When a process started; None if there is no such process (a zombie counts as none)."""
    fields = _stat(pid)
    return None if not fields or fields[0] in "ZX" else int(fields[19])


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process; 0 if there is none."""
    try:
        return time.clock_gettime(~pid << 3 | _ALL_THREADS)
    except OSError:
        return 0.0


def _stat(pid: int) -> list[str]:
    """Fields 3 and following of /proc/PID/stat; none if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return text.rpartition(")")[2].split()  # the command before it may hold spaces


def kill_all(pids: Iterable[int]) -> None:
    """SIGKILL to each, and wait until they are gone, at most ``STOP_GRACE_S``."""
    owners = [Owner(pid, ticks) for pid in pids if (ticks := _start_ticks(pid)) is not None]
    for owner in owners:
        with contextlib.suppress(ProcessLookupError):
            os.kill(owner.pid, signal.SIGKILL)
    deadline = time.monotonic() + STOP_GRACE_S
    while any(owner.is_alive() for owner in owners) and time.monotonic() < deadline:
        time.sleep(POLL_S)


def end_in_order() -> None:
    """Let SIGTERM, and the end of its terminal unless that is ignored (nohup), end this program as
    Ctrl-C does, so that what it made is cleared away; SIGINT too, where whoever started it in the
    background left that ignored."""
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _interrupt)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Signals that end this program wait until the block is done, so that what is removed there
    does not stay behind in part. Nothing outside of the main thread, which alone hears of them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    handlers = {
        one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    handlers = {one: known for one, known in handlers.items() if callable(known)}
    for one in handlers:
        signal.signal(one, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for one, known in handlers.items():
            signal.signal(one, known)
        if came:
            signal.raise_signal(came[0])


def stop(processes: list[subprocess.Popen[Any]]) -> None:
    """SIGTERM to all, a common grace, SIGKILL; every pipe is closed and every child reaped."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
            process.send_signal(signal.SIGCONT)  # one that was stopped must hear of its end
    deadline = time.monotonic() + STOP_GRACE_S
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
    processes.clear()


def batch(namespace: str, lines: Sequence[str]) -> None:
    """Several `ip` commands in a namespace; LabError at the first that fails."""
    command(["ip", "-n", namespace, "-batch", "-"], stdin="\n".join(lines) + "\n")


def command(argv: Sequence[str], *, stdin: str = "", check: bool = True) -> str:
    """What a command prints.

    Raises:
        LabError: it failed (unless ``check`` is off), or ran longer than ``COMMAND_TIMEOUT_S``.
    """
    environment: Mapping[str, str] = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            argv,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{' '.join(argv)}: no end within {COMMAND_TIMEOUT_S:.0f} s") from error
    if check and done.returncode != 0:
        raise LabError(f"{' '.join(argv)}: {done.stderr.strip() or done.returncode}")
    return done.stdout
