"""What a finished request teaches the planner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from astra_mesh.plan.drift import Drifts
from astra_mesh.plan.experience import Conditions, Effort, Experience
from astra_mesh.plan.memory import Memory
from astra_mesh.plan.planner import Choice
from astra_mesh.wire.messages import Device, Hello, PeerId, PeerReport

TABS: Final = 256  # that are remembered after they left


class _Tab(NamedTuple):
    """What a tab says of itself each time it joins."""

    via: PeerId
    name: str
    device: Device | None


@dataclass(frozen=True)
class Lessons:
    """All that was learned."""

    experience: Experience = field(default_factory=Experience)  # of the pace of each peer
    drifts: Drifts = field(default_factory=Drifts)  # of whole plans
    plans: Memory = field(default_factory=Memory)  # that were found; for the compute thread
    _tabs: dict[_Tab, PeerId] = field(default_factory=dict)

    def recognise(self, hellos: Mapping[PeerId, Hello]) -> None:
        """Keep what was learned of a tab that left for the one that joined in its place: each time
        a tab joins it is somebody new."""
        for peer, hello in hellos.items():
            tab = _Tab(hello.via, hello.name, hello.device)
            before = self._tabs.get(tab, peer)
            if not hello.via or (before != peer and before in hellos):  # two alike, side by side
                continue
            if before != peer:
                self.experience.move(before, peer)
            self._tabs.pop(tab, None)
            self._tabs[tab] = peer  # the newest is last
            while len(self._tabs) > TABS:
                del self._tabs[next(iter(self._tabs))]

    def learn_paces(self, choice: Choice, reports: Sequence[PeerReport], now: float) -> None:
        """How long each peer took, beside what was predicted: the next plan is better balanced."""
        shards = choice.plan.shards
        conditions = Conditions(choice.plan.model, alone=len(shards) == 1)
        took = {one.peer: _effort(one) for one in reports}
        for shard, predicted in zip(shards, choice.prediction.efforts, strict=True):
            self.experience.learn(shard.peer, conditions, predicted, took[shard.peer], now)

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
