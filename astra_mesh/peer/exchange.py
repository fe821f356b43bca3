"""One request's view of the links: codes out to those who need them, codes in put together.

What arrives is checked against the plan before it is kept, so that a peer can make this one hold no
more than the plan says.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from astra_mesh import limits
from astra_mesh.engine.exchange import Idle
from astra_mesh.engine.timeline import Mark, Timeline
from astra_mesh.errors import DeadlineError, MeshError, PeerLostError, ProtocolError
from astra_mesh.mesh.link import Link
from astra_mesh.peer.incoming import Part, split, stages_in
from astra_mesh.peer.kept import Kept
from astra_mesh.peer.loaded import AnyCodec
from astra_mesh.peer.rates import LinkRate, Pacing
from astra_mesh.plan.layout import Layout
from astra_mesh.quant.codes import CodeArray
from astra_mesh.wire.codec import encode
from astra_mesh.wire.messages import Codes, PeerId, Pooled, RequestId

_TICK_S: Final = 0.001  # of a loop's clock


@dataclass(frozen=True)
class Patience:
    """How long codes are waited for, from what the plan was predicted to take.

    Attributes:
        predicted_s: The whole plan.
        blocks: Of the model.
        degrade: Whether the plan goes on without what is late.
        adapt: Whether senders may take lower rates than the plan's.
    """

    predicted_s: float = 0.0
    blocks: int = 1
    degrade: bool = False
    adapt: bool = False

    @property
    def whole_s(self) -> float:
        """For what nothing can stand in for."""
        usual_s = max(limits.CODES_LEAST_S, limits.CODES_PATIENCE * self.predicted_s)
        return min(usual_s, limits.CODES_TIMEOUT_S)

    def wait_s(self, *, first: bool) -> float:
        """For a part of one block; ``first``: of the first one that is sent."""
        if not self.degrade:
            return self.whole_s
        start_s = limits.LATE_START_S if first else 0.0
        block_s = limits.LATE_PATIENCE * self.predicted_s / self.blocks
        return min(start_s + max(limits.LATE_LEAST_S, block_s), self.whole_s)


class MeshExchange:
    """Implements :class:`astra_mesh.engine.exchange.Exchange` over links.

    Args:
        request: Its id between peers.
        layout: Of the plan, checked.
        peers: Owner of each shard.
        shard: The own one.
        codec: Of the plan.
        width: Values of a pooled vector.
        links: To the peers that codes go to and come from; used until the request ends, so that a
            second link to the same peer changes nothing.
        patience: How long codes are waited for.
    """

    def __init__(
        self,
        request: RequestId,
        layout: Layout,
        peers: Sequence[PeerId],
        shard: int,
        codec: AnyCodec,
        width: int,
        links: Mapping[PeerId, Link],
        patience: Patience | None = None,
    ) -> None:
        self.request, self.layout, self.peers, self.shard = request, layout, list(peers), shard
        self.links = dict(links)
        self._codec, self._width = codec, width
        self._patience = patience or Patience()
        self._given_up: set[tuple[int, int]] = set()  # parts for which a prediction stood in
        self._late: set[int] = set()  # shards whose last part came too late
        self._adapts = self._patience.adapt and len(codec.able) > 1
        self._rates: dict[int, LinkRate] = {}  # by receiver, where they may fall
        self._pacing = Pacing(self._patience.predicted_s / self._patience.blocks)
        self._parts: dict[tuple[int, int], Part] = {}
        self._done: set[tuple[int, int]] = set()
        self._ready: defaultdict[int, deque[tuple[int, list[CodeArray]]]] = defaultdict(deque)
        self._waiting: tuple[int, asyncio.Future[None]] | None = None  # a block, and for its codes
        self._pooled: dict[int, tuple[Tensor, float]] = {}
        self._pooled_came = asyncio.Event()
        self._error: Exception | None = None
        self.sent_bytes: dict[str, int] = {}
        self.timeline: Timeline | None = None  # None: nothing is noted
        self.kept: Kept | None = None  # None: nothing is kept

    # --- what comes in ----------------------------------------------------------------------------

    def take(self, sender: PeerId, message: Codes | Pooled) -> None:
        """Keep what a peer sent; ProtocolError if the plan does not allow it."""
        if sender not in self.peers:
            raise ProtocolError("codes from a peer that has no shard of this request")
        source = self.peers.index(sender)
        if isinstance(message, Pooled):
            self._take_pooled(source, message)
        else:
            self._take_codes(source, message)

    def _take_codes(self, source: int, message: Codes) -> None:
        layout, block = self.layout, message.block
        if not layout.first_block <= block < layout.blocks or (
            source not in layout.sources(self.shard, block)
        ):
            raise ProtocolError(f"codes of block {block} that this peer does not need")
        sent, stages = layout.sent(source), layout.stages[source, self.shard]
        first = message.first - sent.start
        if message.stage >= stages or first < 0 or first + message.count > len(sent):
            raise ProtocolError(f"codes of block {block} outside the sender's shard and rate")
        key = (block, source)
        if key in self._given_up:
            return
        if key in self._done:
            raise ProtocolError("codes that were sent before")
        if self._adapts:
            stages = stages_in(self._codec, message, stages)
        rows = [
            self._codec.unpack(stage, data, message.count)
            for stage, data in split(self._codec, message, stages)
        ]
        if key not in self._parts:
            self._parts[key] = Part(stages, len(sent))
        elif self._adapts and len(self._parts[key].arrays) != stages:
            raise ProtocolError(f"codes of block {block} at two rates")
        for stage, some in enumerate(rows, message.stage):
            if self._parts[key].put(stage, first, some):
                self._done.add(key)
                self._late.discard(source)
                if self.timeline is not None:
                    self.timeline.note(Mark.ARRIVED, block, source)
                arrays = self._parts.pop(key).complete()
                if self.kept is not None:
                    self.kept.put(block, source, arrays)
                self._ready[block].append((source, arrays))
                if self._waiting is not None and self._waiting[0] == block:
                    _wake(self._waiting[1])

    def _take_pooled(self, source: int, message: Pooled) -> None:
        if source not in self._sharing():
            raise ProtocolError("a pooled vector that this peer does not need")
        vector = np.frombuffer(message.vector, "<f4")
        if len(vector) != self._width:
            raise ProtocolError(f"a pooled vector of {len(vector)} values, not {self._width}")
        if source in self._pooled or not np.isfinite(vector).all() or message.weight <= 0:
            raise ProtocolError("a pooled vector that is not valid")
        self._pooled[source] = (torch.from_numpy(vector.astype(np.float32)), message.weight)
        self._pooled_came.set()

    def _sharing(self) -> list[int]:
        """Other shards whose pooled vector comes here."""
        layout = self.layout
        if self.shard != layout.answering():
            return []
        return [i for i in range(len(self.peers)) if i != self.shard and layout.wanted(i)]

    def pooled_of(self, shard: int) -> tuple[Tensor, float] | None:
        """The pooled vector (D,) and weight that a shard sent."""
        return self._pooled.get(shard)

    @property
    def late_parts(self) -> int:
        """Parts for which a prediction stood in."""
        return len(self._given_up)

    def misses(self, peer: PeerId) -> bool:
        """Whether something of this request still has to come from ``peer``."""
        source, layout = self.peers.index(peer), self.layout
        if source in self._sharing() and source not in self._pooled:
            return True
        blocks = range(layout.first_block, layout.blocks)
        return any(source in self._missing(block) for block in blocks)

    def _missing(self, block: int) -> list[int]:
        sources = self.layout.sources(self.shard, block)
        return [source for source in sources if (block, source) not in self._done]

    def link_gone(self, link: Link, error: MeshError) -> None:
        """A link is over: what still had to come over it will not."""
        for peer, bound in self.links.items():
            if bound is link and self.misses(peer):
                self.fail(error)

    def fail(self, error: Exception) -> None:
        """End all waiting, now and later, with this error."""
        self._error = self._error or error
        self._pooled_came.set()
        if self._waiting is not None:
            _wake(self._waiting[1])

    # --- the engine's side ------------------------------------------------------------------------

    def stages(self, block: int, busy_s: float) -> Mapping[int, int]:
        """See :class:`Exchange`: the plan's, or fewer where that is allowed and needed."""
        receivers = self.layout.receivers(self.shard, block)
        if not self._adapts:
            return {i: self.layout.stages[self.shard, i] for i in receivers}
        allowed_s = self._pacing.allowed_s(block, time.monotonic(), busy_s)
        return {i: self._adapted(block, i, allowed_s) for i in receivers}

    def _adapted(self, block: int, receiver: int, allowed_s: float) -> int:
        if receiver not in self._rates:
            most, tokens = self.layout.stages[self.shard, receiver], self.layout.sent(self.shard)
            able = [stages for stages in self._codec.able if stages <= most]
            sizes = {one: self._packed_bytes(range(one), len(tokens)) for one in able}
            self._rates[receiver] = LinkRate(sizes)
        backlog = self.links[self.peers[receiver]].backlog()
        return self._rates[receiver].choose(block, allowed_s, backlog)

    @property
    def rates(self) -> dict[str, list[int]]:
        """By receiving peer, where it was not the plan's: a block, the bits per token from it on,
        the next block, and so on.
        """
        rate = self._codec.rate
        return {
            self.peers[receiver]: [x for block, n in one.used for x in (block, int(rate(n)))]
            for receiver, one in self._rates.items()
            if one.used
        }

    async def send_codes(self, block: int, codes: Mapping[int, Sequence[CodeArray]]) -> None:
        """See :class:`Exchange`; waits while too much is queued on a link.

        Raises:
            MeshError: a link is over.
        """
        receivers = self.layout.receivers(self.shard, block)
        if self.kept is not None and self.kept.shard in receivers:
            self.kept.put(block, self.shard, codes[self.kept.shard])
        links = {i: self._link(i) for i in receivers}
        alike: dict[int, list[int]] = {}  # receivers of the same codes
        for receiver in receivers:
            alike.setdefault(id(codes[receiver]), []).append(receiver)
        for group in sorted(alike.values(), key=lambda one: len(codes[one[0]])):
            for message in self._messages(block, codes[group[0]]):
                frame = encode(message)
                for receiver in group:
                    self._send(links[receiver], message, frame)
        for link in links.values():
            await link.drain()

    def _messages(self, block: int, codes: Sequence[CodeArray]) -> Iterator[Codes]:
        """All stages in one message where that is small, else each in as many as it takes; where
        rates may fall all stages of some tokens, so that each message tells how many they are.
        """
        tokens, every = len(codes[0]), range(len(codes))
        small = min(limits.JOINED_CODES_BYTES, limits.CODES_DATA_BYTES)
        joined = self._adapts or self._packed_bytes(every, tokens) <= small
        start = self.layout.sent(self.shard).start
        for stages in [every] if joined else [range(stage, stage + 1) for stage in every]:
            # Cut so that each message stays within CODES_DATA_BYTES.
            size = max(1, limits.CODES_DATA_BYTES * 64 // self._packed_bytes(stages, 64))
            for at in range(0, tokens, size):
                rows = [(stage, codes[stage][at : at + size]) for stage in stages]
                data = b"".join(self._codec.pack(stage, some) for stage, some in rows)
                yield Codes(self.request, block, stages.start, start + at, len(rows[0][1]), data)

    def _packed_bytes(self, stages: range, tokens: int) -> int:
        return sum(self._codec.packed_bytes(stage, tokens) for stage in stages)

    async def receive_codes(
        self, block: int, idle_s: Idle | None = None
    ) -> tuple[int, Sequence[CodeArray]]:
        """See :class:`Exchange`; one wait at a time.

        Raises:
            DeadlineError: nothing came in time, and the plan says to wait.
            PeerLostError: and others, as given to :meth:`fail`.
        """
        ready = self._ready[block]
        if not ready and self._error is None:
            await self._arrival(block, idle_s or _endlessly)
        if self._error is not None:
            raise self._error
        return ready.popleft() if ready else (self._without(block), [])

    async def _arrival(self, block: int, idle_s: Idle) -> None:
        """Until a part of a block is there or overdue, or nothing comes any more."""
        loop = asyncio.get_running_loop()
        came, began = loop.create_future(), time.monotonic()
        timer: asyncio.TimerHandle

        def look() -> None:
            nonlocal timer
            waited_s = min(idle_s(), time.monotonic() - began)
            left_s = self._wait_s(block) - waited_s
            if left_s <= 0:
                _wake(came)
            else:
                timer = loop.call_later(max(left_s, _TICK_S), look)

        timer = loop.call_later(self._wait_s(block), look)
        self._waiting = block, came
        try:
            await came
        finally:
            timer.cancel()
            self._waiting = None

    def _without(self, block: int) -> int:
        """The shard whose part is given up; DeadlineError where the plan says to wait."""
        missing = self._missing(block)
        if not self._goes_on(block):
            raise self._overdue(f"codes of block {block}", missing, self._wait_s(block))
        return self._give_up(block, missing[0])

    def _goes_on(self, block: int) -> bool:
        """Whether a prediction may stand in; of the very first block's input there is none."""
        return self._patience.degrade and block > 0

    def _wait_s(self, block: int) -> float:
        """How long this block may wait: not again for shards that were late before."""
        first = block == self.layout.first_block
        if self._goes_on(block) and self._late.issuperset(self._missing(block)):
            return limits.LATE_LEAST_S / 10
        return self._patience.wait_s(first=first)

    def _give_up(self, block: int, source: int) -> int:
        """Go on without a part; what still comes of it is dropped."""
        self._given_up.add((block, source))
        self._done.add((block, source))
        self._late.add(source)
        self._parts.pop((block, source), None)
        return source

    def ready_codes(self, block: int) -> list[tuple[int, Sequence[CodeArray]]]:
        """See :class:`Exchange`; nothing once it failed, so that :meth:`receive_codes` says why."""
        if self._error is not None:
            return []
        return list(self._ready.pop(block, ()))

    async def send_pooled(self, vector: Tensor, weight: float) -> None:
        """See :class:`Exchange`; raises as :meth:`send_codes`."""
        data = vector.numpy().astype("<f4").tobytes()
        link = self._link(self.layout.answering())
        self._send(link, Pooled(self.request, weight, data))

    async def receive_pooled(self, count: int) -> list[tuple[Tensor, float]]:
        """See :class:`Exchange`; raises as :meth:`receive_codes`."""
        wait_s = self._patience.whole_s
        try:
            async with asyncio.timeout(wait_s):
                while len(self._pooled) < count:
                    if self._error is not None:
                        raise self._error
                    self._pooled_came.clear()
                    await self._pooled_came.wait()
        except TimeoutError:
            missing = [i for i in self._sharing() if i not in self._pooled]
            raise self._overdue("pooled vectors", missing, wait_s) from None
        return [self._pooled[source] for source in sorted(self._pooled)]

    def _overdue(self, what: str, missing: Sequence[int], wait_s: float) -> DeadlineError:
        peers = ", ".join(self.peers[source][:8] for source in missing)
        return DeadlineError(
            f"no {what} came from {peers} within {wait_s:.3g} s; that peer hangs or "
            "its link is stuck: ask again, or with fewer peers (--max-peers)"
        )

    def _link(self, shard: int) -> Link:
        link = self.links[self.peers[shard]]
        if not link.is_open:
            raise PeerLostError(f"the link to peer {self.peers[shard][:8]} is gone")
        return link

    def _send(self, link: Link, message: Codes | Pooled, frame: bytes | None = None) -> None:
        before = link.session.queued_bytes
        link.send(message, frame)
        if link.is_open and link.peer is not None:
            peer, queued = link.peer.peer, link.session.queued_bytes - before
            self.sent_bytes[peer] = self.sent_bytes.get(peer, 0) + queued

    def close(self) -> None:
        """The request is over: hold nothing of it, nor of an error that holds what it computed."""
        self._parts.clear()
        self._ready.clear()
        self._error = None

    def abandon(self) -> None:
        """The request ends early: drop what is queued for it, and what still comes."""
        for link in self.links.values():
            link.end(self.request)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _endlessly() -> float:
    """There is no other work."""
    return math.inf


def partners(layout: Layout, shard: int) -> list[int]:
    """The other shards that codes or pooled vectors go to or come from; for the answering shard
    all that hold tokens.
    """
    answering = layout.answering()
    found = {*layout.sources(shard, 0), *layout.receivers(shard, layout.first_block)}
    if shard == answering:
        found |= {i for i in range(len(layout.bounds)) if layout.holds(i)}
    elif layout.wanted(shard):
        found.add(answering)
    return sorted(found - {shard})
