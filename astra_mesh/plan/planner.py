"""Choosing a plan: how many peers, which, with how many tokens each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from astra_mesh.engine.layout import ClassToken, Layout, make_layout
from astra_mesh.families.spec import ModelSpec, Pooling
from astra_mesh.plan.cost import Candidate, Link, Prediction, Work, predict
from astra_mesh.wire.messages import CodebookId, LinkRate, ModelId, PeerId, Plan, Shard, Use

GAIN = 0.97  # a mesh must be predicted this much faster than one device to be chosen


@dataclass(frozen=True)
class Job:
    """What is to be planned."""

    spec: ModelSpec
    model: ModelId
    codebook: CodebookId
    codec: str
    token_bytes: float  # of one token, block and stage
    stages: int
    first_block: int
    class_token: ClassToken
    pooling: Pooling
    tokens: int
    use: Use = Use.AUTO
    max_peers: int = 0


@dataclass(frozen=True)
class Choice:
    """A plan and why it was chosen."""

    plan: Plan
    layout: Layout
    prediction: Prediction
    solo_s: float
    reason: str


def choose(
    job: Job,
    me: Candidate,
    others: Sequence[Candidate],
    links: Mapping[tuple[PeerId, PeerId], Link],
) -> Choice:
    """The plan with the shortest predicted time (``Use.AUTO``), or what the caller asked for.

    ``me`` is the coordinator; it owns the last shard, so that new tokens need no network.
    """
    me, *others = _same_measure([me, *others])
    trial = _Trial(job, me, links)
    solo = trial([me], [job.tokens])
    if job.use is Use.SOLO:
        return trial.choice(solo, solo, "one device was asked for")
    if not others:
        return trial.choice(solo, solo, "no other peer here holds this model and codebook")
    ranked = sorted(others, key=lambda one: (one.timing.per_token_s, one.peer))
    limit = min(job.max_peers or len(ranked) + 1, len(ranked) + 1, job.tokens)
    if job.use is Use.ALL:
        group = [*ranked[: limit - 1], me]
        found = trial(group, proportional(job.tokens, group))
        return trial.choice(found, solo, _compare(found, solo, "all peers were asked for"))
    tried = [trial.improved([*ranked[: count - 1], me]) for count in range(2, limit + 1)]
    best = min(tried, key=lambda one: one.prediction.total_s, default=solo)
    if best.prediction.total_s > GAIN * solo.prediction.total_s or best is solo:
        reason = (
            f"one device is faster: {_ms(solo.prediction.total_s)} alone, "
            f"{_ms(best.prediction.total_s)} is the best with others"
        )
        return trial.choice(solo, solo, reason)
    return trial.choice(best, solo, _compare(best, solo, "shortest predicted time"))


def _same_measure(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Peers of one machine with equal cores and threads are one device: its best measure counts.

    They measure themselves while the others use the same cores, so that single figures are noise.
    """
    best: dict[tuple[str, float, int], Candidate] = {}
    for one in candidates:
        key = (one.device.host, one.device.cores, one.device.threads)
        if key not in best or one.timing.per_token_s < best[key].timing.per_token_s:
            best[key] = one
    return [
        replace(one, timing=best[one.device.host, one.device.cores, one.device.threads].timing)
        for one in candidates
    ]


@dataclass(frozen=True)
class _Tried:
    group: list[Candidate]
    layout: Layout
    prediction: Prediction


@dataclass(frozen=True)
class _Trial:
    """Evaluates groups and sizes for one job."""

    job: Job
    me: Candidate
    links: Mapping[tuple[PeerId, PeerId], Link]

    def __call__(self, group: list[Candidate], sizes: Sequence[int]) -> _Tried:
        layout = _layout(self.job, sizes)
        work = Work(self.job.token_bytes, self.me.peer)
        return _Tried(group, layout, predict(layout, work, group, self.links))

    def improved(self, group: list[Candidate]) -> _Tried:
        """The group with the shard sizes of the shortest predicted time."""

        def cost(sizes: list[int]) -> float:
            return self(group, sizes).prediction.total_s

        return self(group, improve(proportional(self.job.tokens, group), cost))

    def choice(self, found: _Tried, solo: _Tried, reason: str) -> Choice:
        """The plan of what was tried."""
        return Choice(
            plan=_plan(self.job, found),
            layout=found.layout,
            prediction=found.prediction,
            solo_s=solo.prediction.total_s,
            reason=reason,
        )


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def _compare(found: _Tried, solo: _Tried, why: str) -> str:
    alone = solo.prediction.total_s
    ratio = alone / max(found.prediction.total_s, 1e-9)
    text = f"{why}; predicted {ratio:.2f}x one device ({_ms(alone)})"
    hosts = [one.device.host for one in found.group]
    if ratio < 1 and len(set(hosts)) < len(hosts):
        text += ": slower, because peers of one machine share its cores"
    elif ratio < 1:
        text += ": slower than one device"
    return text


def _layout(job: Job, sizes: Sequence[int]) -> Layout:
    bounds, at = [], 0
    for size in sizes:
        bounds.append((at, at + size))
        at += size
    return make_layout(
        job.spec,
        bounds,
        pooling=job.pooling,
        first_block=job.first_block,
        class_token=job.class_token,
        stages=job.stages,
    )


def _plan(job: Job, found: _Tried) -> Plan:
    layout = found.layout
    peers = [one.peer for one in found.group]
    return Plan(
        model=job.model,
        codec=job.codec,
        codebook=job.codebook,
        shards=[
            Shard(peer=peer, start=start, stop=stop)
            for peer, (start, stop) in zip(peers, layout.bounds, strict=True)
        ],
        rates=[
            LinkRate(sender=peers[i], receiver=peers[j], stages=job.stages)
            for j in range(len(peers))
            for i in layout.sources(j, 0)
        ],
        answering=peers[layout.answering()],
        class_token=layout.class_token,
        predicted_s=found.prediction.total_s,
    )


def proportional(tokens: int, group: Sequence[Candidate]) -> list[int]:
    """Shard sizes in proportion to speed, each at least one token."""
    speeds = [1.0 / max(one.timing.per_token_s, 1e-9) for one in group]
    total = sum(speeds)
    sizes = [max(1, int(tokens * speed / total)) for speed in speeds]
    while sum(sizes) > tokens:
        sizes[sizes.index(max(sizes))] -= 1
    for index in range(tokens - sum(sizes)):
        sizes[-1 - index % len(sizes)] += 1
    return sizes


def improve(sizes: list[int], cost: Callable[[list[int]], float]) -> list[int]:
    """Move tokens between shards, in ever smaller lots, while that lowers the predicted time."""
    best = cost(sizes)
    lot = max(1, sum(sizes) // 8)
    while lot >= max(1, sum(sizes) // 128):
        moved = False
        for giver in range(len(sizes)):
            for taker in range(len(sizes)):
                if giver == taker or sizes[giver] <= lot:
                    continue
                trial = list(sizes)
                trial[giver] -= lot
                trial[taker] += lot
                if (found := cost(trial)) < best:
                    sizes, best, moved = trial, found, True
        if not moved:
            if lot == 1:
                break
            lot //= 2
    return sizes
