"""Turns of requests that want to run: so many at once, and the askers one after the other."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

_GAIN = 0.2  # of one more duration in the smoothed one


class Turns:
    """Admits ``at_once`` holders; askers that wait have one turn each before anyone's second.

    Who counts how many may wait is the caller: :attr:`waiting`.
    """

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._free = at_once
        self._lines: OrderedDict[Hashable, deque[asyncio.Future[None]]] = OrderedDict()
        self._usual_s = 0.0  # that a turn takes, smoothed

    @property
    def waiting(self) -> int:
        """Those without a turn."""
        return sum(map(len, self._lines.values()))

    def wait_s(self, admitted: int) -> float:
        """How long one more would wait, from how long turns took so far.

        ``admitted`` have a turn, wait for one, or are on their way here.
        """
        waiting = max(self.waiting, admitted - self._at_once)
        return self._usual_s * (waiting + 1) / self._at_once

    @asynccontextmanager
    async def turn(self, asker: Hashable) -> AsyncIterator[None]:
        """Wait for a turn and hold it. Cancelling it leaves the line, or gives the turn on."""
        await self._enter(asker)
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            yield
        finally:
            took_s = loop.time() - began
            old_s = self._usual_s
            self._usual_s = took_s if not old_s else old_s + _GAIN * (took_s - old_s)
            self._next()

    async def _enter(self, asker: Hashable) -> None:
        if self._free:
            self._free -= 1
            return
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lines.setdefault(asker, deque()).append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():
                self._next()
            else:
                self._leave(asker, mine)
            raise

    def _leave(self, asker: Hashable, mine: asyncio.Future[None]) -> None:
        line = self._lines.get(asker)
        if line is None or mine not in line:
            return
        line.remove(mine)
        if not line:
            del self._lines[asker]

    def _next(self) -> None:
        """A turn is free: to the asker who has waited longest since the last one."""
        while self._lines:
            asker, line = next(iter(self._lines.items()))
            first = line.popleft()
            if line:
                self._lines.move_to_end(asker)
            else:
                del self._lines[asker]
            if not first.done():
                first.set_result(None)
                return
        self._free += 1
