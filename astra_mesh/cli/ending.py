"""Commands that end soon after Ctrl-C, whatever they do."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from astra_mesh.cli.console import INTERRUPTED_STATUS, hint

_ORDERLY_S: Final = 0.5  # for goodbyes; an import in a thread, as of torch, ends when it is over


@contextmanager
def telling(text: Callable[[], str]) -> Iterator[None]:
    """If it ends inside by Ctrl-C: this text, if there is one."""
    try:
        yield
    except (asyncio.CancelledError, KeyboardInterrupt):
        if said := text():
            hint(said)
        raise


@contextmanager
def ending_soon(leave: Callable[[int], object] = os._exit) -> Iterator[None]:
    """After Ctrl-C, what is inside has a moment for an orderly end; then the program just ends.

    Only for what loses nothing by that: all it writes is whole at any time.
    """
    timers: list[threading.Timer] = []

    def interrupted(number: int, frame: FrameType | None) -> None:
        if not timers:
            timers.append(threading.Timer(_ORDERLY_S, leave, (INTERRUPTED_STATUS,)))
            timers[0].daemon = True
            timers[0].start()
        if callable(before):
            before(number, frame)

    before = signal.getsignal(signal.SIGINT)
    taken = threading.current_thread() is threading.main_thread() and callable(before)
    try:
        if taken:
            signal.signal(signal.SIGINT, interrupted)
        yield
    finally:
        if taken:
            signal.signal(signal.SIGINT, before)
        for timer in timers:
            timer.cancel()
