"""Progress bars for what takes longer than a moment; on standard error, gone when it is over. Where
that is no terminal: a line now and then of what takes minutes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

from astra_mesh.cli.console import clean, err, hint

_LOOK_S: Final = 0.2
_TELL_S: Final = 30.0  # between lines in a log


@contextmanager
def following(text: str, total: int, done: Callable[[], int]) -> Iterator[None]:
    """A bar that asks how many of ``total`` bytes are there, from a thread of its own."""
    over = threading.Event()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn())
    with Progress(*columns, TransferSpeedColumn(), console=err.moving, transient=True) as bar:
        task = bar.add_task(text, total=total)

        def look() -> None:
            while not over.wait(_LOOK_S):
                bar.update(task, completed=min(total, done()))

        thread = threading.Thread(target=look, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


@contextmanager
def waiting(text: str) -> Iterator[Callable[[], None]]:
    """A line with the time that has passed, for what tells nothing of itself meanwhile; it is gone
    when it is over, or when what is given is called."""
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=err.moving, transient=True) as line:
        line.add_task(text, total=None)
        yield line.stop


@contextmanager
def counting(*, quiet: bool) -> Iterator[Callable[[int, int, str], None]]:
    """A bar on standard error, or lines unless ``quiet``; called with (done, total, what)."""
    if not err.is_terminal and not quiet:
        with _lines() as advance:
            yield advance
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f}%"))
    with Progress(*columns, TimeElapsedColumn(), console=err.moving, transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def advance(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=clean(what))

        yield advance


@contextmanager
def _lines() -> Iterator[Callable[[int, int, str], None]]:
    """Told by a thread of its own: a single step may take longer than people wait."""
    over, began, newest = threading.Event(), time.monotonic(), ["starting"]

    def tell() -> None:
        while not over.wait(_TELL_S):
            hint(f"{newest[0]} ({time.monotonic() - began:.0f} s)")

    def advance(done: int, total: int, what: str) -> None:
        newest[0] = clean(what) + (f", {done}/{total}" if total > 1 else "")

    thread = threading.Thread(target=tell, name="progress", daemon=True)
    thread.start()
    try:
        yield advance
    finally:
        over.set()
        thread.join()
