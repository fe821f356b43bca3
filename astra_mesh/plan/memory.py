"""Plans that were found before.

A search takes 40 predictions for eight peers, 0.25 to 1 ms each on one Xeon core (by what else its
host did), and who asked waits for it. What it found, a group and the sizes of its shards, holds
while devices and links are about what they were, and inputs about as long; what it is predicted to
take is predicted anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from astra_mesh.plan.cost import MESSAGE_S, UNMEASURED, Candidate, Link
from astra_mesh.plan.drift import Codes, Group
from astra_mesh.plan.planner import Room
from astra_mesh.plan.search import Job, Trial, shares
from astra_mesh.wire.messages import PeerId

ALIKE: Final = 1.3  # times: what evening out makes up for, and busy devices differ by
SLACK: Final = 0.2  # of what a block takes: what links may differ by
LENGTHS: Final = 1.25  # times as many tokens, or as few
KEPT: Final = 64  # plans
ROUNDS: Final = 2  # of evening out, each time


_Pair = tuple[PeerId, PeerId]


class _Figures(NamedTuple):
    """What a search depends on, of one job."""

    shares_s: dict[PeerId, float]  # of each peer: an even share of one block
    sending_s: dict[_Pair, float]  # its codes to all others at the rate of one link, and inputs
    delays_s: dict[_Pair, float]
    drifts: dict[Group, float]


@dataclass
class _Found:
    situation: object  # what is the same or not
    tokens: int
    figures: list[_Figures]  # of all jobs
    codes: Codes  # of the fastest
    total_s: float  # predicted
    group: list[PeerId]
    sizes: list[int]  # better ones with each time


class Memory:
    """What searches found, the newest last. Belongs to one thread."""

    def __init__(self, limit: int = KEPT) -> None:
        self._found: deque[_Found] = deque(maxlen=limit)

    def keep(self, rooms: Sequence[Room], room: Room, trial: Trial) -> None:
        """The search over ``rooms`` ended with a trial of one of them."""
        tokens = room.job.tokens
        figures = [_figures(one, tokens) for one in rooms]
        found = _Found(
            _situation(rooms),
            tokens,
            figures,
            room.job.codes,
            trial.total_s,
            [one.peer for one in trial.group],
            trial.sizes,
        )
        for one in [one for one in self._found if one.situation == found.situation]:
            if _near_length(one.tokens, tokens):
                self._found.remove(one)
        self._found.append(found)

    def recall(self, rooms: Sequence[Room]) -> tuple[Room, Trial] | None:
        """What was found for the same jobs, if little changed since then."""
        situation, tokens = _situation(rooms), rooms[0].job.tokens
        for found in reversed(self._found):
            near = _near_length(found.tokens, tokens)
            if near and found.situation == situation and (again := _again(found, rooms)):
                return again
        return None


def _near_length(one: int, other: int) -> bool:
    return one <= LENGTHS * other and other <= LENGTHS * one


def _again(found: _Found, rooms: Sequence[Room]) -> tuple[Room, Trial] | None:
    """The plan with today's figures; None where a search might find a better one."""
    for room, before in zip(rooms, found.figures, strict=True):
        if not _alike(before, _figures(room, found.tokens), found.group):
            return None
    room = next(one for one in rooms if one.job.codes == found.codes)
    known = {one.peer: one for one in _everybody(room)}
    tokens = room.job.tokens
    sizes = found.sizes if tokens == found.tokens else shares(tokens, found.sizes)
    same = room.search.trial([known[peer] for peer in found.group], sizes)
    trial = room.search.evened(same, ROUNDS)
    if trial.total_s > ALIKE * found.total_s * max(1.0, tokens / found.tokens):
        return None
    if tokens == found.tokens:
        found.sizes = trial.sizes
    return room, trial


def _everybody(room: Room) -> list[Candidate]:
    return [room.search.me, *room.others]


def _situation(rooms: Sequence[Room]) -> object:
    return [
        (
            _job(room.job),
            room.limit,
            room.search.me.peer,
            {one.peer: one.device for one in _everybody(room)},
        )
        for room in rooms
    ]


def _job(job: Job) -> object:
    """All but what may differ a little, and words."""
    kind = job.class_token, job.pooling, job.first_block, job.stages
    return job.codes, kind, job.use, job.max_peers, job.tables


def _figures(room: Room, tokens: int) -> _Figures:
    """With so many tokens."""
    job, search, everybody = room.job, room.search, _everybody(room)
    share, blocks = tokens / len(everybody), job.spec.num_hidden_layers
    size = share * job.token_bytes[job.stages]

    def share_s(one: Candidate) -> float:
        timing, pace = one.timing, one.pace
        own_s = timing.fixed_s + share * (timing.per_token_s + tokens * timing.per_pair_s)
        messages_s = 2 * (len(everybody) - 1) * MESSAGE_S
        return (
            own_s * pace.compute
            + share * timing.encode_token_s * pace.encode
            + tokens * timing.decode_token_s * pace.decode
            + messages_s * pace.other
        )

    def sending_s(sender: Candidate, link: Link) -> float:
        inputs = job.input_bytes / blocks if sender is search.me else 0
        return 8 * (len(everybody) - 1) * (size + inputs) / link.bps

    links = {
        (a.peer, b.peer): (a, search.links.get((a.peer, b.peer), UNMEASURED))
        for a in everybody
        for b in everybody
        if a is not b
    }
    return _Figures(
        {one.peer: share_s(one) for one in everybody},
        {pair: sending_s(*one) for pair, one in links.items()},
        {pair: link.delay_s for pair, (_, link) in links.items()},
        dict(job.drifts),
    )


def _alike(before: _Figures, now: _Figures, group: Sequence[PeerId]) -> bool:
    """Whether a search would find much the same: links matter beside what the fastest of the group
    takes."""
    slack_s = SLACK * min(before.shares_s[peer] for peer in group)

    def steady(then: Mapping[_Pair, float], now: Mapping[_Pair, float]) -> bool:
        return all(abs(one - now[pair]) <= slack_s for pair, one in then.items())

    return (
        before.drifts.keys() == now.drifts.keys()
        and all(_near(one, now.drifts[group]) for group, one in before.drifts.items())
        and all(_near(one, now.shares_s[peer]) for peer, one in before.shares_s.items())
        and steady(before.sending_s, now.sending_s)
        and steady(before.delays_s, now.delays_s)
    )


def _near(one: float, other: float) -> bool:
    return one <= ALIKE * other and other <= ALIKE * one
