"""The requests of a peer as somebody who looks on sees them: the page, for one.

The last few requests are always kept, without the times of their steps; those are noted for
requests that start while somebody looks on, on every peer that takes part.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count

from astra_mesh import limits
from astra_mesh.engine.timeline import Timeline
from astra_mesh.naming import Names
from astra_mesh.peer.exchange import MeshExchange
from astra_mesh.peer.progress import marks_of
from astra_mesh.wire.codec import sanitise
from astra_mesh.wire.messages import (
    PeerId,
    Planned,
    Refer,
    Report,
    RequestNews,
    Result,
    Task,
    Token,
)

_MARKS_OF_A_BLOCK = 4  # encoded, sent, local, done; and two for each remote part


class Shown:
    """One request that this peer answers.

    Attributes:
        key: Counts the requests of this peer.
        began_s: Seconds since 1970.
        attempt: How often it was planned.
        outcome: "" while it runs; then "answered", "cancelled" or a sentence.
        version: Another number whenever something but the marks changed.
    """

    def __init__(self, key: int, task: Task, model: str) -> None:
        self.key, self.task, self.model = key, task, model
        self.began_s = time.time()
        self.attempt = 0
        self.planned: Planned | None = None
        self.new_tokens = 0
        self.report: Report | None = None
        self.outcome = ""
        self.version = 0
        self._began = time.monotonic()
        self._told = -math.inf  # when its last news were taken
        self._me = PeerId("")
        self._own: Timeline | None = None
        self._others: dict[PeerId, list[int]] = {}
        self._offsets_us: dict[PeerId, int] = {}
        self._most = 0  # marks of one peer that the plan can explain

    def told(self, message: Planned | Refer | Token | Result) -> None:
        """What the client is told."""
        if isinstance(message, Planned):
            self.planned = message
            self._told = -math.inf
        elif isinstance(message, Token):
            self.new_tokens += 1
        elif isinstance(message, Result):
            self.report = message.report
        self.version += 1

    @property
    def noted(self) -> bool:
        """Whether the steps of its last attempt are noted."""
        return self._own is not None

    def is_due(self) -> bool:
        """Whether there are news: at each plan, then now and then."""
        return time.monotonic() - self._told >= limits.REQUEST_NEWS_S

    def news(self) -> RequestNews:
        """How it stands, for those who look on."""
        self._told = time.monotonic()
        planned, report = self.planned, self.report
        names = Names(planned.names if planned is not None else {})
        shards = planned.plan.shards if planned is not None else []
        sent = [size for one in report.peers for size in one.sent_bytes.values()] if report else []
        return RequestNews(
            key=self.key,
            task=self.task,
            model=self.model,
            took_s=self._told - self._began,
            new_tokens=self.new_tokens,
            peers=[names(one.peer) for one in shards if one.stop > one.start],
            sent_bytes=sum(sent),
            notes=[sanitise(note) for note in report.notes] if report else [],
            outcome=sanitise(self.outcome),
        )

    def started(self, me: PeerId, exchange: MeshExchange) -> None:
        """An attempt begins; what an earlier one noted is void."""
        self.attempt += 1
        self._me, self._own = me, exchange.timeline
        self._others, self._offsets_us = {}, {}
        parts = len(exchange.peers)
        self._most = exchange.layout.blocks * (_MARKS_OF_A_BLOCK + 2 * parts)
        self.version += 1

    def accepted(self, peer: PeerId, round_trip_s: float) -> None:
        """A participant started half a round trip ago: its marks count from then on."""
        if self._own is not None:
            since_us = (time.monotonic_ns() - self._own.began_ns) // 1000
            self._offsets_us[peer] = max(0, since_us - int(round_trip_s * 5e5))

    def progressed(self, peer: PeerId, marks: list[int]) -> None:
        """Marks of a participant; more than the plan can explain are dropped."""
        known = self._others.setdefault(peer, [])
        if peer in self._offsets_us and len(known) + len(marks) <= 4 * self._most:
            offset = self._offsets_us[peer]
            known += [v if i % 4 else v + offset for i, v in enumerate(marks)]

    def ended(self, outcome: str) -> None:
        """It is over."""
        self.outcome = outcome
        self.version += 1

    def start_us(self, peer: PeerId) -> int:
        """When a peer started, from the start of this peer's own shard."""
        return self._offsets_us.get(peer, 0)

    def marks(self, known: Mapping[PeerId, int]) -> dict[PeerId, list[int]]:
        """Marks of each peer beyond the first ``known`` numbers, as in :class:`Progress`; times
        count from the start of this peer's own shard.
        """
        found = {peer: marks[known.get(peer, 0) :] for peer, marks in self._others.items()}
        if self._own is not None:
            found[self._me] = marks_of(self._own.moments[known.get(self._me, 0) // 4 :])
        return {peer: marks for peer, marks in found.items() if marks}


class Watch:
    """The last requests of a peer, and whether somebody looks on."""

    def __init__(self) -> None:
        self._keys = count(1)
        self._shown: OrderedDict[int, Shown] = OrderedDict()
        self._lookers = 0

    @property
    def active(self) -> bool:
        """Whether the steps of requests that start now are to be noted."""
        return self._lookers > 0

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Somebody looks on until the end of the ``with``."""
        self._lookers += 1
        try:
            yield
        finally:
            self._lookers -= 1

    def asked(self, task: Task, model: str) -> Shown:
        """A request starts."""
        shown = Shown(next(self._keys), task, model)
        self._shown[shown.key] = shown
        while len(self._shown) > limits.SHOWN_REQUESTS:
            over = next((key for key, one in self._shown.items() if one.outcome), None)
            if over is None:  # as many run at once: their number is bounded elsewhere
                break
            del self._shown[over]
        return shown

    def shown(self) -> list[Shown]:
        """The last requests, the oldest first."""
        return list(self._shown.values())
