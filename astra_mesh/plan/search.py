"""Looking for the group of peers and the shard sizes with the shortest predicted time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from astra_mesh.families.spec import ModelSpec, Pooling
from astra_mesh.plan.cost import Candidate, Link, Prediction, Work, predict
from astra_mesh.plan.drift import Codes, Group, drift_of
from astra_mesh.plan.layout import ClassToken, Layout, make_layout
from astra_mesh.wire.messages import CodebookId, ModelId, PeerId, Use

# Bounds on the search, which the asking person waits for. One trial of 12 blocks takes 0.4 ms for
# 4 peers and 0.9 ms for 8 on one Xeon core of 2.1 GHz. Moving tokens between pairs of peers, up to
# 120 trials more, made plans 0.5 % faster (200 random rooms of 2 to 8 peers).
BALANCE_ROUNDS = 3
NOISE = 0.05  # shorter by less is no gain: what devices and links measured is no better
HOPELESS = 1.3  # times one device alone: evening out once more does not make up for so much
PATIENCE = 2  # so many more peers without a shorter time, and the search ends


@dataclass(frozen=True)
class Job:
    """What is to be planned."""

    spec: ModelSpec
    model: ModelId
    codebook: CodebookId
    codec: str
    token_bytes: Mapping[int, float]  # of one token and block, by number of stages
    stages: int
    first_block: int
    class_token: ClassToken
    pooling: Pooling
    tokens: int
    use: Use = Use.AUTO
    max_peers: int = 0
    input_bytes: int = 0  # of the prompt or picture, as it goes to the other peers
    tables: bool = True  # whether receivers may look codes up
    drifts: Mapping[Group, float] = field(default_factory=dict)  # how much longer groups took
    label: str = ""  # of the codes, for people: "predictive"
    alone: str = ""  # why there are no other candidates, where it is not that nobody has the model

    @property
    def bits(self) -> int:
        """Per token and block."""
        return round(8 * self.token_bytes[self.stages])

    @property
    def most_shards(self) -> int:
        """Each with a token that counts: a copied class token is not sent, everyone has it."""
        return self.tokens - (self.class_token == "distributed" and self.tokens > 1)

    def useful(self, sizes: Sequence[int]) -> list[int]:
        """Shard sizes of which the first, where it is a copied class token alone, gets one more."""
        sizes = list(sizes)
        most = sizes.index(max(sizes))
        if self.class_token == "distributed" and sizes[0] == 1 < sizes[most]:
            sizes[0], sizes[most] = 2, sizes[most] - 1
        return sizes

    @property
    def codes(self) -> Codes:
        """What is sent."""
        return Codes(self.model, self.codec, self.codebook, self.bits)


@dataclass(frozen=True)
class Trial:
    """A group in the order of its shards, with what it is predicted to take."""

    group: Sequence[Candidate]
    layout: Layout
    prediction: Prediction

    @property
    def total_s(self) -> float:
        """Predicted."""
        return self.prediction.total_s

    @property
    def sizes(self) -> list[int]:
        """Tokens of each shard."""
        return [stop - start for start, stop in self.layout.bounds]


@dataclass(frozen=True)
class Search:
    """The steps of the search for one job; each costs some predictions."""

    job: Job
    me: Candidate
    links: Mapping[tuple[PeerId, PeerId], Link]

    def trial(self, group: Sequence[Candidate], sizes: Sequence[int]) -> Trial:
        """The prediction for one group with given sizes."""
        layout = _layout(self.job, self.job.useful(sizes))
        work = Work(self.job.token_bytes, self.me.peer, self.job.input_bytes)
        found = predict(layout, work, group, self.links)
        drift = drift_of(frozenset(one.peer for one in group), self.job.drifts)
        return Trial(group, layout, replace(found, total_s=drift * found.total_s, drift=drift))

    def ranked(self, others: Sequence[Candidate]) -> list[Candidate]:
        """Most useful first: by what each could do together with ``me``, over their link."""

        def pair_s(one: Candidate) -> float:
            group = [one, self.me]
            return self.trial(group, proportional(self.job.tokens, group)).total_s

        return sorted(others, key=lambda one: (pair_s(one), one.peer))

    def best(self, ranked: Sequence[Candidate], limit: int) -> Trial:
        """The best of 2 to ``limit`` peers, taken in the order of the ranking, and ``me``.

        More peers have to gain clearly: each is one more to wait for.
        """
        best = self.balanced([ranked[0], self.me])
        for count in range(3, limit + 1):
            trial = self.balanced([*ranked[: count - 1], self.me])
            if trial.total_s < (1 - NOISE) * best.total_s:
                best = trial
            elif count > len(best.group) + PATIENCE:
                break
        alone_s = self.trial([self.me], [self.job.tokens]).total_s
        return best if best.total_s > HOPELESS * alone_s else self.evened(best, BALANCE_ROUNDS)

    def balanced(self, group: Sequence[Candidate]) -> Trial:
        """Sizes that keep all peers busy equally long, from those in proportion to speed."""
        return self.evened(self.trial(group, proportional(self.job.tokens, group)), BALANCE_ROUNDS)

    def evened(self, start: Trial, rounds: int) -> Trial:
        """The best of a trial and others whose peers are more equally long busy."""
        best, last, group = start, start, start.group
        for _ in range(rounds):
            times = zip(last.prediction.finished_s, last.prediction.waited_s, strict=True)
            busy = [max(finished - waited, 1e-9) for finished, waited in times]
            weights = [size / one for size, one in zip(last.sizes, busy, strict=True)]
            last = self.trial(group, shares(self.job.tokens, weights))
            best = min(best, last, key=lambda one: one.total_s)
        return best


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


def proportional(tokens: int, group: Sequence[Candidate]) -> list[int]:
    """Shard sizes in proportion to speed, each at least one token."""
    return shares(tokens, [1.0 / max(one.timing.per_token_s, 1e-9) for one in group])


def shares(tokens: int, weights: Sequence[float]) -> list[int]:
    """``tokens`` in proportion to positive ``weights``, each at least one (largest remainder)."""
    total = sum(weights)
    exact = [tokens * weight / total for weight in weights]
    sizes = [max(1, int(one)) for one in exact]
    while sum(sizes) > tokens:
        sizes[sizes.index(max(sizes))] -= 1
    by_rest = sorted(range(len(sizes)), key=lambda i: sizes[i] - exact[i])
    for index in range(tokens - sum(sizes)):
        sizes[by_rest[index % len(sizes)]] += 1
    return sizes
