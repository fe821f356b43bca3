"""Signals that end a command in its own way."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Of a service manager, and of a terminal that is closed.
ENDING = (signal.SIGTERM,) if sys.platform == "win32" else (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def on_signals(call: Callable[[], object], *numbers: signal.Signals) -> Iterator[None]:
    """Call it where one of these comes, instead of ending the program. What was started to outlive
    its terminal (``nohup``) does. Loops of Windows know no signals: there it is ended.
    """
    loop = asyncio.get_running_loop()
    taken = [one for one in numbers if signal.getsignal(one) is not signal.SIG_IGN]
    if sys.platform == "win32":
        taken = []
    for one in taken:
        loop.add_signal_handler(one, call)
    try:
        yield
    finally:
        for one in taken:
            loop.remove_signal_handler(one)
