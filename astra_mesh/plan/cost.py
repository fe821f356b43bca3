"""Predicting how long a plan takes: the block pipeline, played with numbers instead of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from astra_mesh.engine.layout import Layout
from astra_mesh.wire.messages import Device, PeerId, Timing

PART_OVERHEAD_S = 0.0003  # thread hops and wire handling for one remote part of one block
DEFAULT_ROUND_TRIP_S = 0.004  # a link that is not measured yet: an ordinary Wi-Fi
DEFAULT_BPS = 20e6


@dataclass(frozen=True)
class Link:
    """One direction between two peers."""

    round_trip_s: float = DEFAULT_ROUND_TRIP_S
    bps: float = DEFAULT_BPS


@dataclass(frozen=True)
class Candidate:
    """A peer that could take part."""

    peer: PeerId
    name: str
    device: Device
    timing: Timing


@dataclass(frozen=True)
class Work:
    """What a plan is made for."""

    token_bytes: float  # of one token, block and stage on the wire
    coordinator: PeerId


@dataclass(frozen=True)
class Prediction:
    """When each shard is done, seconds after the request arrived at the coordinator."""

    total_s: float
    finished_s: tuple[float, ...]
    waited_s: tuple[float, ...]


def slowdown(candidates: Sequence[Candidate]) -> list[float]:
    """How much slower each becomes when all work at once: peers of one host share its cores."""
    load: dict[str, float] = {}
    for one in candidates:
        used = min(one.device.cores, one.device.threads)
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
    def __init__(
        self,
        layout: Layout,
        work: Work,
        candidates: Sequence[Candidate],
        links: Mapping[tuple[PeerId, PeerId], Link],
    ) -> None:
        self.layout, self.work, self.candidates, self.links = layout, work, candidates, links
        active = [one for i, one in enumerate(candidates) if layout.holds(i)]
        factors = dict(zip((one.peer for one in active), slowdown(active), strict=True))
        self.factor = [factors.get(one.peer, 1.0) for one in candidates]
        self.now = [
            0.0
            if one.peer == work.coordinator
            else self.link(work.coordinator, one).round_trip_s / 2
            for one in candidates
        ]
        self.uplink_free = [0.0] * len(candidates)
        self.waited = [0.0] * len(candidates)

    def link(self, sender: PeerId, receiver: Candidate) -> Link:
        return self.links.get((sender, receiver.peer), Link())

    def run(self) -> Prediction:
        for block in range(self.layout.blocks):
            self._block(block)
        answering = self.layout.answering()
        done = list(self.now)
        arrivals = [
            self.now[i]
            + self.link(self.candidates[i].peer, self.candidates[answering]).round_trip_s / 2
            for i in range(len(done))
            if i != answering and self.layout.wanted(i)
        ]
        total = max([self.now[answering], *arrivals])
        total += self.candidates[answering].timing.head_s * self.factor[answering]
        return Prediction(total, tuple(done), tuple(self.waited))

    def _block(self, block: int) -> None:
        arrivals: dict[tuple[int, int], float] = {}
        shards = [i for i in range(len(self.candidates)) if self.layout.holds(i)]
        for shard in shards:
            self._send(block, shard, arrivals)
        for shard in shards:
            self._compute(block, shard, arrivals)

    def _send(self, block: int, shard: int, arrivals: dict[tuple[int, int], float]) -> None:
        receivers = self.layout.receivers(shard, block)
        if not receivers:
            return
        me, tokens = self.candidates[shard], len(self.layout.sent(shard))
        self.now[shard] += me.timing.encode_token_s * tokens * self.factor[shard]
        depart = max(self.now[shard], self.uplink_free[shard])
        for receiver in receivers:
            link = self.link(me.peer, self.candidates[receiver])
            size = tokens * self.work.token_bytes * self.layout.stages[shard, receiver]
            depart += 8 * size / link.bps
            arrivals[shard, receiver] = depart + link.round_trip_s / 2
        self.uplink_free[shard] = depart

    def _compute(self, block: int, shard: int, arrivals: Mapping[tuple[int, int], float]) -> None:
        timing, factor = self.candidates[shard].timing, self.factor[shard]
        rows = self.layout.local_rows(shard)
        last = block == self.layout.blocks - 1
        outputs = len(self.layout.wanted(shard)) if last else rows
        if last and not outputs:
            return
        own_keys = rows / 2 if self.layout.causal and outputs == rows else rows
        share = outputs / rows if last else 1.0
        local = timing.fixed_s + timing.per_token_s * rows * max(share, 0.3)
        local += timing.per_pair_s * outputs * own_keys
        self.now[shard] += local * factor
        sources = self.layout.sources(shard, block)
        for arrival, source in sorted((arrivals.get((i, shard), 0.0), i) for i in sources):
            keys = len(self.layout.sent(source))
            waited = max(0.0, arrival - self.now[shard])
            self.waited[shard] += waited
            known = block < self.layout.first_block
            rebuild = 0.3 * timing.per_token_s if known else timing.decode_token_s
            part = rebuild * keys + timing.per_pair_s * outputs * keys
            self.now[shard] += waited + part * factor + PART_OVERHEAD_S
