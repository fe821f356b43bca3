"""Progress bars for what takes longer than a moment; on standard error, gone when it is over."""

from __future__ import annotations

import threading
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

from astra_mesh.cli.console import clean, err

_LOOK_S: Final = 0.2


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
def counting() -> Iterator[Callable[[int, int, str], None]]:
    """A bar on standard error; called with (done, total, what)."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f}%"))
    with Progress(*columns, TimeElapsedColumn(), console=err.moving, transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def advance(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=clean(what))

        yield advance
