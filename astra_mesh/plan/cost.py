"""Predicting how long a plan takes: the block pipeline, played with numbers instead of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import msgspec

from astra_mesh.plan.experience import AS_MEASURED, Conditions, Effort, Experience, Pace
from astra_mesh.plan.layout import Layout
from astra_mesh.wire.messages import CodebookId, Device, ModelId, PeerId, Timing

MESSAGE_S = 0.0006  # handling the codes of one block for or from one peer; two EPYC cores
LOOP_CORES = 0.5  # that a peer's event loop keeps busy beside its threads; the same machine
DEFAULT_ROUND_TRIP_S = 0.004  # a link that is not measured yet: an ordinary Wi-Fi
DEFAULT_BPS = 20e6
_PIECE = 512  # keys


@dataclass(frozen=True)
class Link:
    """One direction between two peers."""

    round_trip_s: float = DEFAULT_ROUND_TRIP_S
    bps: float = DEFAULT_BPS

    @property
    def delay_s(self) -> float:
        """One way."""
        return self.round_trip_s / 2


UNMEASURED = Link()


def causal_keys(tokens: int) -> float:
    """Keys that each of so many tokens of a causal model is multiplied with on average.

    torch's attention for CPUs takes keys in pieces of 512, and leaves out those pieces only that
    come after all of its queries: up to 512 tokens it computes all pairs.
    """
    return min(tokens, tokens / 2 + _PIECE / 2)


class CodeCost(NamedTuple):
    """Seconds for one token and block on one device."""

    encode_s: float
    decode_s: float
    project_s: float  # decoding without tables


Books = Mapping[CodebookId, Mapping[int, CodeCost]]  # costs by bits per token and block


@dataclass(frozen=True)
class Candidate:
    """A peer that could take part.

    ``timing`` has the costs of the codec that is planned for; ``books`` those of each codebook that
    the peer holds, where it measured them. None: it holds whatever is planned. ``pace`` corrects
    both by what was seen since when it worked beside others, ``pace_alone`` when it worked alone.
    """

    peer: PeerId
    name: str
    device: Device
    timing: Timing
    books: Books | None = None
    pace: Pace = AS_MEASURED
    pace_alone: Pace = AS_MEASURED

    def holds(self, codebook: CodebookId) -> bool:
        """Whether it can run plans with this codebook; "" is none."""
        return not codebook or self.books is None or codebook in self.books

    def coding(self, codebook: CodebookId, bits: int, tables: bool) -> Candidate:
        """The same with the costs of one codebook and rate, where they are known, with or without
        ``tables``."""
        cost = (self.books or {}).get(codebook, {}).get(bits)
        if cost is None:
            return self
        decode_s = cost.decode_s if tables else cost.project_s
        timing = msgspec.structs.replace(
            self.timing, encode_token_s=cost.encode_s, decode_token_s=decode_s
        )
        return replace(self, timing=timing)

    def seen(self, known: Experience, model: ModelId, now: float = 0.0) -> Candidate:
        """The same with what was learned of it until ``now``."""
        return replace(
            self,
            pace=known.pace(self.peer, Conditions(model, alone=False), now),
            pace_alone=known.pace(self.peer, Conditions(model, alone=True), now),
        )


@dataclass(frozen=True)
class Work:
    """What a plan is made for."""

    token_bytes: Mapping[int, float]  # of one token and block on the wire, by number of stages
    coordinator: PeerId
    input_bytes: int = 0  # that every other peer gets before it begins


@dataclass(frozen=True)
class Prediction:
    """When each shard is done, seconds after the request arrived at the coordinator."""

    total_s: float
    finished_s: tuple[float, ...]
    waited_s: tuple[float, ...]
    efforts: tuple[Effort, ...] = ()
    drift: float = 1.0  # that ``total_s`` is multiplied by already (:mod:`astra_mesh.plan.drift`)


def slowdown(candidates: Sequence[Candidate]) -> list[float]:
    """How much slower each becomes when all work at once: peers of one host share its cores."""
    load: dict[str, float] = {}
    for one in candidates:
        used = min(one.device.cores, one.device.threads + LOOP_CORES)
        load[one.device.host] = load.get(one.device.host, 0.0) + used
    return [
        max(1.0, load[one.device.host] / max(one.device.host_cores, 1e-9)) for one in candidates
    ]


def predict(
    layout: Layout,
    work: Work,
    candidates: Sequence[Candidate],
    links: Mapping[tuple[PeerId, PeerId], Link],
) -> Prediction:
    """Play the pipeline: ``candidates[i]`` owns shard i of the layout."""
    return _Play(layout, work, candidates, links).run()


class _Play:
    """The clocks of all shards; what does not change from block to block is in tables."""

    def __init__(
        self,
        layout: Layout,
        work: Work,
        candidates: Sequence[Candidate],
        links: Mapping[tuple[PeerId, PeerId], Link],
    ) -> None:
        self.layout, self.work, self.candidates, self.links = layout, work, candidates, links
        self.shards = [i for i in range(len(candidates)) if layout.holds(i)]
        self.factor = dict.fromkeys(range(len(candidates)), 1.0)
        active = [candidates[i] for i in self.shards]
        self.factor |= dict(zip(self.shards, slowdown(active), strict=True))
        self.sent = [len(layout.sent(i)) for i in range(len(candidates))]
        self.now, self.uplink_free = self._started()
        self.downlink_free = [0.0] * len(candidates)
        self.waited = [0.0] * len(candidates)
        self.computed = [0.0] * len(candidates)
        self.encoded = [0.0] * len(candidates)
        self.decoded = [0.0] * len(candidates)
        self.other = [0.0] * len(candidates)
        self.hops = {(i, j): self._hop(i, j) for j in self.shards for i in layout.sources(j, 0)}

    def link(self, sender: PeerId, receiver: PeerId) -> Link:
        return self.links.get((sender, receiver), UNMEASURED)

    def _started(self) -> tuple[list[float], list[float]]:
        """When each has its inputs, which go to all at once, and when its uplink is free."""
        coordinator = self.work.coordinator
        links = [self.link(coordinator, one.peer) for one in self.candidates]
        others = [i for i, one in enumerate(self.candidates) if one.peer != coordinator]
        sent_s = sum(8 * self.work.input_bytes / links[i].bps for i in others)
        began, free = [0.0] * len(links), [sent_s] * len(links)
        for i in others:
            began[i], free[i] = sent_s + links[i].delay_s, 0.0
        return began, free

    def run(self) -> Prediction:
        layout, steps = self.layout, list[tuple[int, _Step]]()
        for block in range(layout.blocks):
            if block in (0, layout.blocks - 1):  # those in between are like the first
                steps = [(i, self._step(i, block)) for i in self.shards]
            if block < layout.first_block:
                self._known(steps)
            else:
                self._coded(steps)
        answering = layout.answering()
        owner = self.candidates[answering]
        arrivals = [
            self.now[i] + self.link(self.candidates[i].peer, owner.peer).delay_s
            for i in self.shards
            if i != answering and layout.wanted(i)
        ]
        total = max([self.now[answering], *arrivals])
        total += owner.timing.head_s * self.factor[answering]
        efforts = tuple(map(Effort, self.computed, self.encoded, self.decoded, self.other))
        return Prediction(total, tuple(self.now), tuple(self.waited), efforts)

    def _hop(self, shard: int, receiver: int) -> tuple[float, float]:
        """Seconds on the sender's uplink, and then until it is there."""
        link = self.link(self.candidates[shard].peer, self.candidates[receiver].peer)
        size = self.sent[shard] * self.work.token_bytes[self.layout.stages[shard, receiver]]
        return 8 * size / link.bps, link.delay_s

    def _step(self, shard: int, block: int) -> _Step:
        layout = self.layout
        timing, factor = self.candidates[shard].timing, self.factor[shard]
        rows = layout.local_rows(shard)
        last = block == layout.blocks - 1
        outputs = len(layout.wanted(shard)) if last else rows
        own_keys = causal_keys(rows) if layout.causal and outputs == rows else rows
        share = max(outputs / rows, 0.3)  # keys and values are computed for all rows
        local = timing.fixed_s + timing.per_token_s * rows * share
        local += timing.per_pair_s * outputs * own_keys
        pair = timing.per_pair_s * outputs
        candidate = self.candidates[shard]
        pace = candidate.pace if len(self.shards) > 1 else candidate.pace_alone
        known = (0.3 * timing.per_token_s + pair) * factor * pace.compute
        coded = (timing.decode_token_s + pair) * factor * pace.decode
        sources = layout.sources(shard, block)
        codes = layout.first_block < layout.blocks  # of some block are sent
        receivers = layout.receivers(shard, max(block, layout.first_block)) if codes else ()
        return _Step(
            encode=timing.encode_token_s * self.sent[shard] * factor * pace.encode,
            local=local * factor * pace.compute if outputs else 0.0,
            known=known * sum(self.sent[i] for i in sources),
            coded={i: coded * self.sent[i] for i in sources},
            message=MESSAGE_S * factor * pace.other,
            sends=[(receiver, *self.hops[shard, receiver]) for receiver in receivers],
        )

    def _known(self, steps: Sequence[tuple[int, _Step]]) -> None:
        """A block whose input every peer knows."""
        for shard, step in steps:
            handling = step.message * len(step.coded)
            self.computed[shard] += step.local + step.known
            self.other[shard] += handling
            self.now[shard] += step.local + step.known + handling

    def _coded(self, steps: Sequence[tuple[int, _Step]]) -> None:
        """A block of which codes are sent."""
        # By receiver: when each part would be there, were its downlink free; how long that needs
        # it; and the sender.
        coming: dict[int, list[tuple[float, float, int]]] = {shard: [] for shard, _ in steps}
        for shard, step in steps:
            if step.sends:
                self._send(shard, step, coming)
        for shard, step in steps:
            self._compute(shard, step, coming[shard])

    def _send(
        self, shard: int, step: _Step, coming: Mapping[int, list[tuple[float, float, int]]]
    ) -> None:
        now = self.now[shard] + step.encode
        self.encoded[shard] += step.encode
        depart = max(now, self.uplink_free[shard])
        for receiver, transfer, delay in step.sends:
            depart += transfer
            coming[receiver].append((depart + delay, transfer, shard))
        self.uplink_free[shard] = depart
        handling = step.message * len(step.sends)
        self.other[shard] += handling
        self.now[shard] = now + handling

    def _compute(self, shard: int, step: _Step, coming: list[tuple[float, float, int]]) -> None:
        """All of a block but encoding; what several peers send to one shares its downlink."""
        now, free, waited = self.now[shard] + step.local, self.downlink_free[shard], 0.0
        coming.sort()
        for arrival, transfer, source in coming:
            free += transfer
            if arrival > free:
                free = arrival
            if free > now:
                waited += free - now
                now = free
            now += step.coded[source] + step.message
        self.now[shard], self.downlink_free[shard] = now, free
        self.waited[shard] += waited
        self.computed[shard] += step.local
        self.decoded[shard] += step.remote
        self.other[shard] += step.message * len(coming)


@dataclass
class _Step:
    """Seconds of one shard in one block, and where its codes go."""

    encode: float  # own tokens
    local: float  # own tokens, the rest
    known: float  # all remote tokens, where every peer knows the block's input
    coded: dict[int, float]  # remote tokens that come as codes, by shard
    message: float  # handling the codes for or from one peer
    sends: list[tuple[int, float, float]]  # receiver, seconds on the uplink, and then on the way

    def __post_init__(self) -> None:
        self.remote = sum(self.coded.values())
