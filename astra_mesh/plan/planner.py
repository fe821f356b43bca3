"""Choosing a plan: how many peers, which, with how many tokens each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from astra_mesh.plan.cost import Candidate, Link, Prediction
from astra_mesh.plan.drift import Codes
from astra_mesh.plan.layout import Layout
from astra_mesh.plan.search import Job, Search, Trial
from astra_mesh.wire.messages import LinkRate, PeerId, Plan, Shard, Use

__all__ = ["Choice", "Job", "choose"]

GAIN = 0.97  # a mesh must be predicted this much faster than one device to be chosen


@dataclass(frozen=True)
class Choice:
    """A plan and why it was chosen."""

    plan: Plan
    layout: Layout
    prediction: Prediction
    solo_s: float
    reason: str
    codes: Codes


def choose(
    job: Job,
    me: Candidate,
    others: Sequence[Candidate],
    links: Mapping[tuple[PeerId, PeerId], Link],
) -> Choice:
    """The plan with the shortest predicted time (``Use.AUTO``), or what the caller asked for.

    ``me`` is the coordinator; it owns the last shard, so that new tokens need no network.
    """
    room = Room.of(job, me, others, links)
    return settle(room, room.best())


@dataclass(frozen=True)
class Room:
    """Who could run a job: the search for it, with the costs of its codes."""

    search: Search
    others: Sequence[Candidate]
    alone: str  # why no other peer comes into question; empty if one does

    @classmethod
    def of(
        cls,
        job: Job,
        me: Candidate,
        others: Sequence[Candidate],
        links: Mapping[tuple[PeerId, PeerId], Link],
    ) -> Room:
        """Of those who hold the codebook."""
        holders = [one for one in others if one.holds(job.codebook)]
        coding = [one.coding(job.codebook, job.bits, job.tables) for one in (me, *holders)]
        me, *holders = _same_measure(coding)
        search = Search(job, me, links)
        return cls(search, holders, _only_one(job, holders, _limit(job, holders)))

    @property
    def job(self) -> Job:
        """What is planned."""
        return self.search.job

    @property
    def limit(self) -> int:
        """The largest number of peers."""
        return _limit(self.job, self.others)

    def solo(self) -> Trial:
        """One device alone."""
        return self.search.trial([self.search.me], [self.job.tokens])

    def best(self) -> Trial | None:
        """The best of several peers; None where only one comes into question."""
        if self.alone:
            return None
        ranked = self.search.ranked(self.others)
        if self.job.use is Use.ALL:
            return self.search.balanced([*ranked[: self.limit - 1], self.search.me])
        return self.search.best(ranked, self.limit)

    def same(self, found: Trial) -> Trial | None:
        """The group and sizes of another job's trial; None where one of them cannot run this."""
        able = {one.peer: one for one in (*self.others, self.search.me)}
        group = [able[one.peer] for one in found.group if one.peer in able]
        if len(group) < len(found.group):
            return None
        return self.search.trial(group, found.sizes)


def _limit(job: Job, others: Sequence[Candidate]) -> int:
    """The largest number of peers."""
    return min(job.max_peers or len(others) + 1, len(others) + 1, job.most_shards)


def settle(room: Room, best: Trial | None) -> Choice:
    """The plan of a job, given its best trial with several peers."""
    job, solo = room.job, room.solo()
    if best is None:
        return _choice(job, solo, solo, room.alone)
    if job.use is Use.ALL:
        return _choice(job, best, solo, _compare(best, solo, "all peers were asked for"))
    if best.total_s > GAIN * solo.total_s:
        reason = (
            f"one device is faster: {_ms(solo.total_s)} alone, {_ms(best.total_s)} is the best "
            "with others"
        )
        return _choice(job, solo, solo, reason)
    return _choice(job, best, solo, _compare(best, solo, "shortest predicted time"))


def _only_one(job: Job, others: Sequence[Candidate], limit: int) -> str:
    """Why no other peer comes into question; empty if one does."""
    if job.use is Use.SOLO:
        return "one device was asked for"
    if not others:
        return job.alone or "no other peer here holds this model and codebook"
    if job.max_peers == 1:
        return "at most one peer was asked for"
    return "the input is too short to be shared" if limit <= 1 else ""


def _same_measure(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Peers of one machine with equal cores and threads are one device: its best measure counts,
    of browsers and of other peers apart.

    They measure themselves while the others use the same cores, so that single figures are noise.
    """

    def alike(one: Candidate) -> tuple[str, float, int, str]:
        return one.device.host, one.device.cores, one.device.threads, one.device.software

    best: dict[tuple[str, float, int, str], Candidate] = {}
    for one in candidates:
        key = alike(one)
        if key not in best or one.timing.per_token_s < best[key].timing.per_token_s:
            best[key] = one
    return [replace(one, timing=best[alike(one)].timing) for one in candidates]


def _choice(job: Job, found: Trial, solo: Trial, reason: str) -> Choice:
    return Choice(
        plan=_plan(job, found),
        layout=found.layout,
        prediction=found.prediction,
        solo_s=solo.total_s,
        reason=reason,
        codes=job.codes,
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def _compare(found: Trial, solo: Trial, why: str) -> str:
    alone = solo.prediction.total_s
    ratio = alone / max(found.prediction.total_s, 1e-9)
    text = f"{why}; predicted {ratio:.2f}x one device ({_ms(alone)})"
    hosts = [one.device.host for one in found.group]
    if ratio < 1 and len(set(hosts)) < len(hosts):
        text += ": slower, because peers of one machine share its cores"
    elif ratio < 1:
        text += ": slower than one device"
    return text


def _plan(job: Job, found: Trial) -> Plan:
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
