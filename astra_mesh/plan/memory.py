"""Plans that were found before.

A search takes as long as a hundred predictions, 0.1 s for eight peers on one Xeon core and ten
times as long on a small device, and who asked waits for it. What it found, a group and the sizes of
its shards, holds while devices and links are about what they were, and inputs about as long; what
it is predicted to take is predicted anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from typing import Final, NamedTuple

from astra_mesh.plan.cost import MESSAGE_S, UNMEASURED, Candidate
from astra_mesh.plan.drift import Codes, Group
from astra_mesh.plan.planner import Room
from astra_mesh.plan.search import Job, Trial, shares
from astra_mesh.wire.messages import PeerId

ALIKE: Final = 1.1  # times: single measurements of one device differ by as much
LENGTHS: Final = 1.25  # times as many tokens, or as few
KEPT: Final = 64  # plans


class _Figures(NamedTuple):
    """What a search depends on, of one job."""

    shares_s: dict[PeerId, float]  # of each peer: an even share of one block
    links_s: dict[tuple[PeerId, PeerId], float]  # codes of such a share, and inputs, for one block
    drifts: dict[Group, float]


class _Found(NamedTuple):
    situation: Hashable  # what is the same or not
    tokens: int
    figures: list[_Figures]  # of all jobs
    codes: Codes  # of the fastest
    group: list[PeerId]
    sizes: list[int]


class Memory:
    """What searches found, the newest last. Belongs to one thread."""

    def __init__(self, limit: int = KEPT) -> None:
        self._found: deque[_Found] = deque(maxlen=limit)

    def keep(self, rooms: Sequence[Room], room: Room, trial: Trial) -> None:
        """The search over ``rooms`` ended with a trial of one of them."""
        tokens = room.job.tokens
        figures = [_figures(one, tokens) for one in rooms]
        group = [one.peer for one in trial.group]
        found = _Found(_situation(rooms), tokens, figures, room.job.codes, group, trial.sizes)
        self._found.append(found)

    def recall(self, rooms: Sequence[Room]) -> tuple[Room, Trial] | None:
        """The last that was found for the same jobs, if little changed since then."""
        situation, tokens = _situation(rooms), rooms[0].job.tokens
        for found in reversed(self._found):
            near = found.tokens <= LENGTHS * tokens and tokens <= LENGTHS * found.tokens
            if not near or found.situation != situation:
                continue
            pairs = zip(rooms, found.figures, strict=True)
            if all(_alike(before, _figures(one, found.tokens)) for one, before in pairs):
                return _again(found, rooms)
        return None


def _again(found: _Found, rooms: Sequence[Room]) -> tuple[Room, Trial]:
    room = next(one for one in rooms if one.job.codes == found.codes)
    known = {one.peer: one for one in _everybody(room)}
    tokens = room.job.tokens
    sizes = found.sizes if tokens == found.tokens else shares(tokens, found.sizes)
    trial = room.search.trial([known[peer] for peer in found.group], sizes)
    return room, room.search.evened(trial, 1)


def _everybody(room: Room) -> list[Candidate]:
    return [room.search.me, *room.others]


def _situation(rooms: Sequence[Room]) -> Hashable:
    return tuple(
        (_job(room.job), tuple((one.peer, one.device) for one in _everybody(room)))
        for room in rooms
    )


def _job(job: Job) -> Hashable:
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

    def link_s(sender: Candidate, receiver: Candidate) -> float:
        link = search.links.get((sender.peer, receiver.peer), UNMEASURED)
        inputs = job.input_bytes / blocks if sender is search.me else 0
        return 8 * (size + inputs) / link.bps + link.delay_s

    return _Figures(
        {one.peer: share_s(one) for one in everybody},
        {(a.peer, b.peer): link_s(a, b) for a in everybody for b in everybody if a is not b},
        dict(job.drifts),
    )


def _alike(before: _Figures, now: _Figures) -> bool:
    """Whether a search would find much the same: links matter beside what devices take."""
    slack_s = (ALIKE - 1) * sum(before.shares_s.values()) / len(before.shares_s)
    return (
        before.drifts.keys() == now.drifts.keys()
        and all(_near(one, now.drifts[group]) for group, one in before.drifts.items())
        and all(_near(one, now.shares_s[peer]) for peer, one in before.shares_s.items())
        and all(abs(one - now.links_s[pair]) <= slack_s for pair, one in before.links_s.items())
    )


def _near(one: float, other: float) -> bool:
    return one <= ALIKE * other and other <= ALIKE * one
