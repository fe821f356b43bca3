"""Choosing among codes: several codebooks and rates would do, and the fastest is taken.

A codebook with history needs fewer bits for the same quality, and more work to decode: on thin
links it is faster, on good links or weak processors one without history and with more bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from astra_mesh.plan.cost import Candidate, Link
from astra_mesh.plan.planner import Choice, Job, Room, settle
from astra_mesh.plan.search import Trial
from astra_mesh.wire.messages import PeerId, Use

SHOWN = 2  # codes that were not taken, in the reason


@dataclass(frozen=True)
class _Tried:
    room: Room
    trial: Trial
    searched: bool  # with a group and sizes of its own

    @property
    def total_s(self) -> float:
        return self.trial.total_s


def choose_among(
    jobs: Sequence[Job],
    me: Candidate,
    others: Sequence[Candidate],
    links: Mapping[tuple[PeerId, PeerId], Link],
) -> Choice:
    """The plan with the shortest predicted time, over jobs that differ in their codes only.

    Of equally fast ones the first is taken. One job is searched in full, the others are predicted
    for the group and sizes that it found, and the fastest of them is then searched, too: a search
    takes as long as hundreds of predictions.
    """
    rooms = _comparable([Room.of(job, me, others, links) for job in jobs])
    tried: list[_Tried] = []
    for room in rooms:
        same = room.same(tried[0].trial) if tried else None
        if same is not None:
            tried.append(_Tried(room, same, searched=False))
        elif (best := room.best()) is not None:
            tried.append(_Tried(room, best, searched=True))
    if not tried:
        return settle(rooms[0], None)
    fastest = min(tried, key=lambda one: one.total_s)
    trial = fastest.trial
    if not fastest.searched:
        trial = min(trial, fastest.room.best() or trial, key=lambda one: one.total_s)
    choice = settle(fastest.room, trial)
    rivals = sorted((one for one in tried if one is not fastest), key=lambda one: one.total_s)
    if len(choice.plan.shards) > 1 and rivals:
        choice = replace(choice, reason=f"{choice.reason}; {_compared(choice, fastest, rivals)}")
    return choice


def _comparable(rooms: list[Room]) -> list[Room]:
    """Where all peers were asked for, only codes that the most peers can use."""
    if rooms[0].job.use is not Use.ALL:
        return rooms
    most = max(len(room.others) for room in rooms)
    return [room for room in rooms if len(room.others) == most]


def _compared(choice: Choice, taken: _Tried, rivals: Sequence[_Tried]) -> str:
    text = f"{_name(taken.room.job)}: {_seconds(choice.prediction.total_s)}"
    others = [f"{_name(one.room.job)} would take {_seconds(one.total_s)}" for one in rivals[:SHOWN]]
    return "; ".join([text, *others])


def _name(job: Job) -> str:
    return f"{job.label or job.codec} {job.bits} bits"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"
