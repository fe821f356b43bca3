"""The one interface between the engine and whatever carries codes."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from astra_mesh.plan.layout import Layout
from astra_mesh.quant.codes import CodeArray

Idle = Callable[[], float]


class Exchange(Protocol):
    """One request's view of the network, for one shard."""

    def stages(self, block: int, busy_s: float) -> Mapping[int, int]:
        """How many stages of the own codes of ``block`` each receiver is to get. Called by the
        compute thread, just before it encodes.

        ``busy_s``: seconds of work of this shard for the block before.
        """

    async def send_codes(self, block: int, codes: Mapping[int, Sequence[CodeArray]]) -> None:
        """Hand the own codes of ``block`` to every shard that needs them.

        ``codes`` has one array per stage for each receiver, the same ones for those alike.
        """

    async def receive_codes(
        self, block: int, idle_s: Idle | None = None
    ) -> tuple[int, Sequence[CodeArray]]:
        """The next complete part of ``block``, in order of arrival: (shard, arrays).

        ``idle_s`` tells for how many seconds there has been no other work: only these are patience.

        No arrays: the codes did not come in time, and the plan says to go on without them.
        """

    def ready_codes(self, block: int) -> list[tuple[int, Sequence[CodeArray]]]:
        """Complete parts of ``block`` that :meth:`receive_codes` would give without waiting."""

    async def send_pooled(self, vector: Tensor, weight: float) -> None:
        """Hand the own share of the pooled output to the answering peer."""

    async def receive_pooled(self, count: int) -> list[tuple[Tensor, float]]:
        """The shares of ``count`` other shards, in shard order."""

    def fail(self, error: Exception) -> None:
        """End all waiting for codes, now and later, with this error."""


class LocalExchange:
    """Shards of one process, joined in memory: for tests and simulations."""

    def __init__(self, layout: Layout, shard: int, mailboxes: list[LocalExchange]) -> None:
        self._layout, self._shard, self._mailboxes = layout, shard, mailboxes
        self._codes: defaultdict[int, deque[tuple[int, Sequence[CodeArray]]]] = defaultdict(deque)
        self._pooled: dict[int, tuple[Tensor, float]] = {}
        self._arrived = asyncio.Event()
        self._error: Exception | None = None

    @classmethod
    def connect(cls, layout: Layout) -> list[LocalExchange]:
        """One exchange per shard."""
        found: list[LocalExchange] = []
        for shard in range(len(layout.bounds)):
            found.append(cls(layout, shard, found))
        return found

    def put(self, block: int, shard: int, arrays: Sequence[CodeArray]) -> None:
        """The codes of another shard are here."""
        self._codes[block].append((shard, arrays))
        self._arrived.set()

    def stages(self, block: int, busy_s: float) -> Mapping[int, int]:
        """Those of the layout."""
        receivers = self._layout.receivers(self._shard, block)
        return {receiver: self._layout.stages[self._shard, receiver] for receiver in receivers}

    async def send_codes(self, block: int, codes: Mapping[int, Sequence[CodeArray]]) -> None:
        """See :class:`Exchange`."""
        for receiver in self._layout.receivers(self._shard, block):
            self._mailboxes[receiver].put(block, self._shard, codes[receiver])

    async def receive_codes(
        self, block: int, idle_s: Idle | None = None
    ) -> tuple[int, Sequence[CodeArray]]:
        """See :class:`Exchange`."""
        while self._error is None and not self._codes[block]:
            self._arrived.clear()
            await self._arrived.wait()
        if self._error is not None:
            raise self._error
        return self._codes[block].popleft()

    def ready_codes(self, block: int) -> list[tuple[int, Sequence[CodeArray]]]:
        """See :class:`Exchange`."""
        return list(self._codes.pop(block, ()))

    async def send_pooled(self, vector: Tensor, weight: float) -> None:
        """See :class:`Exchange`."""
        answering = self._mailboxes[self._layout.answering()]
        answering._pooled[self._shard] = (vector, weight)
        answering._arrived.set()

    async def receive_pooled(self, count: int) -> list[tuple[Tensor, float]]:
        """See :class:`Exchange`."""
        while len(self._pooled) < count:
            self._arrived.clear()
            await self._arrived.wait()
        return [self._pooled[shard] for shard in sorted(self._pooled)]

    def fail(self, error: Exception) -> None:
        """See :class:`Exchange`."""
        self._error = error
        self._arrived.set()
