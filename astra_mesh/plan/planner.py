"""Choosing a plan: how many peers, which, with how many tokens each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

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

    def evaluate(group: Sequence[Candidate], sizes: Sequence[int]) -> tuple[Layout, Prediction]:
        layout = _layout(job, sizes)
        return layout, predict(layout, Work(job.token_bytes, me.peer), group, links)

    alone, solo = evaluate([me], [job.tokens])
    if job.use is Use.SOLO:
        return _choice(job, [me], alone, solo, solo, "one device was asked for")
    if not others:
        return _choice(
            job, [me], alone, solo, solo, "no other peer here holds this model and codebook"
        )
    ranked = sorted(others, key=lambda one: (one.timing.per_token_s, one.peer))
    limit = min(job.max_peers or len(ranked) + 1, len(ranked) + 1, job.tokens)
    if job.use is Use.ALL:
        group = [*ranked[: limit - 1], me]
        layout, prediction = evaluate(group, proportional(job.tokens, group))
        reason = _compare(prediction, solo, [*group], "all peers were asked for")
        return _choice(job, group, layout, prediction, solo, reason)
    best: tuple[list[Candidate], Layout, Prediction] | None = None
    for count in range(2, limit + 1):
        group = [*ranked[: count - 1], me]
        sizes = improve(
            proportional(job.tokens, group), lambda s, g=group: evaluate(g, s)[1].total_s
        )
        layout, prediction = evaluate(group, sizes)
        if best is None or prediction.total_s < best[2].total_s:
            best = (group, layout, prediction)
    if best is None or best[2].total_s > GAIN * solo.total_s:
        found = best[2].total_s if best else solo.total_s
        reason = (
            f"one device is faster: {_ms(solo.total_s)} alone, {_ms(found)} is the best with others"
        )
        return _choice(job, [me], alone, solo, solo, reason)
    group, layout, prediction = best
    reason = _compare(prediction, solo, group, "shortest predicted time")
    return _choice(job, group, layout, prediction, solo, reason)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def _compare(prediction: Prediction, solo: Prediction, group: Sequence[Candidate], why: str) -> str:
    ratio = solo.total_s / max(prediction.total_s, 1e-9)
    text = f"{why}; predicted {ratio:.2f}x one device ({_ms(solo.total_s)})"
    hosts = [one.device.host for one in group]
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


def _choice(
    job: Job,
    group: Sequence[Candidate],
    layout: Layout,
    prediction: Prediction,
    solo: Prediction,
    reason: str,
) -> Choice:
    peers = [one.peer for one in group]
    plan = Plan(
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
        predicted_s=prediction.total_s,
    )
    return Choice(plan, layout, prediction, solo.total_s, reason)


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
