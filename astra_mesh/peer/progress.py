"""A participant tells the coordinator how far it is, while somebody looks on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from astra_mesh import limits
from astra_mesh.engine.timeline import Mark, Moment, Timeline
from astra_mesh.mesh.link import Link
from astra_mesh.peer.sending import send_if_open
from astra_mesh.wire.messages import Progress, RequestId

_PLACE: Final = {mark: place for place, mark in enumerate(Mark)}


@contextmanager
def telling(link: Link, request: RequestId, timeline: Timeline | None) -> Iterator[None]:
    """Send new marks of a timeline every PROGRESS_S, the last at the end; None: send nothing."""
    if timeline is None:
        yield
        return
    teller = _Teller(link, request, timeline)
    teller.tell()
    try:
        yield
    finally:
        teller.end()


def marks_of(moments: Iterable[Moment]) -> list[int]:
    """Moments as :class:`Progress` has them."""
    found: list[int] = []
    for at_ns, mark, block, part in moments:
        found += (max(0, at_ns) // 1000, _PLACE[mark], block, part + 1)
    return found


class _Teller:
    def __init__(self, link: Link, request: RequestId, timeline: Timeline) -> None:
        self._link, self._request, self._timeline = link, request, timeline
        self._told = 0
        self._timer: asyncio.TimerHandle | None = None

    def tell(self) -> None:
        self._send()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(limits.PROGRESS_S, self.tell)

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._send()

    def _send(self) -> None:
        moments = self._timeline.moments
        while (end := min(len(moments), self._told + limits.PROGRESS_MARKS)) > self._told:
            marks = marks_of(moments[self._told : end])
            self._told = end
            send_if_open(self._link, Progress(self._request, marks))
