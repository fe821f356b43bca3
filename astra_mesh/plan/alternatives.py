"""Choosing among codes: several codebooks and rates would do, and the fastest is taken.

A codebook with history needs fewer bits for the same quality, and more work to decode: on thin
links it is faster, on good links or weak processors one without history and with more bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from astra_mesh.plan.cost import Candidate, Link
from astra_mesh.plan.memory import Memory
from astra_mesh.plan.planner import Choice, Job, Room, settle
from astra_mesh.plan.search import NOISE, Trial
from astra_mesh.wire.messages import PeerId, Use

SHOWN = 2  # codes that were not taken, in the reason


@dataclass(frozen=True, eq=False)
class _Tried:
    room: Room
    trial: Trial

    @property
    def total_s(self) -> float:
        return self.trial.total_s


def choose_among(
    jobs: Sequence[Job],
    me: Candidate,
    others: Sequence[Candidate],
    links: Mapping[tuple[PeerId, PeerId], Link],
    memory: Memory | None = None,
) -> Choice:
    """The plan with the shortest predicted time, over jobs that differ in their codes only.

    Of equally fast ones the first is taken. One job is searched in full, the others are predicted
    for the group and sizes that it found, and the fastest of them is then searched, too: a search
    takes as long as dozens of predictions. What ``memory`` has of such a search is taken instead,
    with its codes, while others are less than :data:`NOISE` faster.
    """
    rooms = _comparable([Room.of(job, me, others, links) for job in jobs])
    memory = memory if memory is not None else Memory()
    tried, fastest = _recalled(rooms, memory) or _searched(rooms, memory)
    if fastest is None:
        return settle(rooms[0], None)
    choice = settle(fastest.room, fastest.trial)
    others_tried = (one for one in tried if one is not fastest)
    rivals = sorted((one for one in others_tried if one.total_s >= fastest.total_s), key=_total)
    if len(choice.plan.shards) > 1 and rivals:
        choice = replace(choice, reason=f"{choice.reason}; {_compared(choice, fastest, rivals)}")
    return choice


def _recalled(rooms: Sequence[Room], memory: Memory) -> tuple[list[_Tried], _Tried] | None:
    """What a search found before, beside the same with other codes; None where those are faster
    now."""
    known = memory.recall(rooms)
    if known is None:
        return None
    fastest = _Tried(*known)
    tried = [
        _Tried(room, same)
        for room in rooms
        if room is not fastest.room and (same := room.same(fastest.trial)) is not None
    ]
    if any(one.total_s < (1 - NOISE) * fastest.total_s for one in tried):
        return None
    return [fastest, *tried], fastest


def _searched(rooms: Sequence[Room], memory: Memory) -> tuple[list[_Tried], _Tried | None]:
    """All that was tried, and the fastest; None where only one device comes into question."""
    tried: list[_Tried] = []
    searched: list[_Tried] = []
    for room in rooms:
        same = room.same(tried[0].trial) if tried else None
        if same is not None:
            tried.append(_Tried(room, same))
        elif (best := room.best()) is not None:
            tried.append(_Tried(room, best))
            searched.append(tried[-1])
    if not tried:
        return [], None
    fastest = min(tried, key=_total)
    if fastest not in searched and (best := fastest.room.best()) is not None:
        tried[tried.index(fastest)] = fastest = min(fastest, _Tried(fastest.room, best), key=_total)
    memory.keep(rooms, fastest.room, fastest.trial)
    return tried, fastest


def _total(one: _Tried) -> float:
    return one.total_s


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
