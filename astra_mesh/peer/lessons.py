"""What a finished request teaches the planner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from astra_mesh.plan.drift import Drifts
from astra_mesh.plan.experience import Conditions, Effort, Experience
from astra_mesh.plan.planner import Choice
from astra_mesh.wire.messages import PeerReport


@dataclass(frozen=True)
class Lessons:
    """All that was learned."""

    experience: Experience = field(default_factory=Experience)  # of the pace of each peer
    drifts: Drifts = field(default_factory=Drifts)  # of whole plans

    def learn_paces(self, choice: Choice, reports: Sequence[PeerReport]) -> None:
        """How long each peer took, beside what was predicted: the next plan is better balanced."""
        shards = choice.plan.shards
        conditions = Conditions(choice.plan.model, alone=len(shards) == 1)
        took = {one.peer: _effort(one) for one in reports}
        for shard, predicted in zip(shards, choice.prediction.efforts, strict=True):
            self.experience.learn(shard.peer, conditions, predicted, took[shard.peer])

    def learn_total(self, choice: Choice, actual_s: float, now: float) -> None:
        """How long the whole took."""
        told = choice.prediction
        if told.total_s > 0:
            group = frozenset(shard.peer for shard in choice.plan.shards)
            self.drifts.learn(choice.codes, group, told.drift * actual_s / told.total_s, now)


def _effort(one: PeerReport) -> Effort:
    worked_s = one.compute_s + one.encode_s + one.decode_s
    other_s = max(0.0, one.finished_s - worked_s - one.wait_s)
    return Effort(one.compute_s, one.encode_s, one.decode_s, other_s)
