"""What a test may not leave behind: threads, sockets and other descriptors, child processes, tasks.

A :class:`Snapshot` is taken before a test; :func:`leftovers` names what is there afterwards and
was not before. Things end a little after the call that ends them, so the check has a grace period,
which only a leaking test pays in full.
"""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

GRACE_S = 3.0  # a thread pool's last worker, a process's exit; seen: below 0.1 s on a busy core
POLL_S = 0.01

FD_FOLDER = Path("/proc/self/fd")
TASK_FOLDER = Path("/proc/self/task")

# Threads of a library's process-wide machinery: started once, on first use, never ended.
THREAD_PREFIXES = (
    "Dummy-",  # a native thread (torch's autograd) that called into Python
    "pytest_timeout",  # the timer of the test itself
    "tqdm_monitor",  # under transformers' progress bars
)
THREAD_CLASSES = ("TMonitor",)  # tqdm's, whose name is a plain number

# Descriptors that libraries open once and keep, and that hold no resource of ours.
FD_PREFIXES = ("/dev/", "/proc/", "/sys/")

# multiprocessing keeps one such helper for the life of the process, and so does tests.forks.
CHILD_MARKS = (
    "multiprocessing.resource_tracker",
    "multiprocessing.forkserver",
    "tests.fork_server",
)


@dataclass(frozen=True)
class Snapshot:
    """What the process holds at one moment."""

    threads: frozenset[threading.Thread]
    descriptors: frozenset[str]
    children: frozenset[str]


def snapshot() -> Snapshot:
    """Looks at this process now."""
    return Snapshot(frozenset(_threads()), frozenset(_descriptors()), frozenset(_children()))


def leftovers(before: Snapshot, grace_s: float = GRACE_S) -> list[str]:
    """Names what has come since ``before`` and does not go within ``grace_s``."""
    return _settled(lambda: _new_since(before), grace_s)


async def leftover_tasks(before: set[asyncio.Task[object]], grace_s: float = GRACE_S) -> list[str]:
    """Names the running loop's tasks that came after ``before`` and do not end in ``grace_s``."""
    own = asyncio.current_task()
    deadline = time.monotonic() + grace_s
    while True:
        left = [task for task in asyncio.all_tasks() if task is not own and task not in before]
        if not left or time.monotonic() > deadline:
            return [f"task {task.get_name()}: {task.get_coro()!r}" for task in left]
        await asyncio.sleep(POLL_S)


def _settled(look: Callable[[], list[str]], grace_s: float) -> list[str]:
    left = look()
    if left:
        gc.collect()  # what only a reference cycle keeps alive is reported by its ResourceWarning
    deadline = time.monotonic() + grace_s
    while left and time.monotonic() < deadline:
        time.sleep(POLL_S)
        left = look()
    return left


def _new_since(before: Snapshot) -> list[str]:
    now = snapshot()
    return [
        *(f"thread {thread.name}" for thread in now.threads - before.threads),
        *(f"descriptor {target}" for target in sorted(now.descriptors - before.descriptors)),
        *(f"process {child}" for child in sorted(now.children - before.children)),
    ]


def _threads() -> list[threading.Thread]:
    return [
        thread
        for thread in threading.enumerate()
        if not thread.name.startswith(THREAD_PREFIXES)
        and type(thread).__name__ not in THREAD_CLASSES
    ]


def _descriptors() -> list[str]:
    """Targets of open descriptors, such as ``socket:[4711]``; empty where there is no /proc."""
    found = []
    for name in _names(FD_FOLDER):
        try:
            target = os.readlink(f"{FD_FOLDER}/{name}")  # noqa: PTH115 - often called, and twice as fast
        except OSError:  # the descriptor of the listing itself, or one closed meanwhile
            continue
        if not target.startswith(FD_PREFIXES):
            found.append(f"{name} -> {target}")
    return found


def _children() -> list[str]:
    """Direct child processes as ``pid command``; empty where the kernel does not list them."""
    found = []
    for task in _names(TASK_FOLDER):
        try:
            pids = (TASK_FOLDER / task / "children").read_text().split()
        except OSError:
            continue
        for pid in pids:
            command = _command(pid)
            if not any(mark in command for mark in CHILD_MARKS):
                found.append(f"{pid} {command}")
    return found


def _command(pid: str) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    return b" ".join(words).decode(errors="replace").strip()


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - the names are wanted, and fast
    except OSError:
        return []
