"""Why an automatic plan of several devices has no part for others that could take one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from astra_mesh.naming import SHOWN_NAMES, Names, listed
from astra_mesh.plan.cost import Candidate, Link
from astra_mesh.plan.planner import Choice, Job, Room
from astra_mesh.wire.messages import PeerId, Use


def left_out(
    jobs: Sequence[Job],
    choice: Choice,
    me: Candidate,
    others: Sequence[Candidate],
    links: Mapping[tuple[PeerId, PeerId], Link],
) -> list[str]:
    """Groups of names, each with the reason; none where one device alone is the plan, which says
    itself why, or where the caller chose who takes part.
    """
    plan = choice.plan
    job = next(one for one in jobs if one.codes == choice.codes)
    taken = [shard.peer for shard in plan.shards]
    rest = [one for one in others if one.peer not in taken]
    if job.use is not Use.AUTO or len(taken) < 2 or not rest:
        return []
    names = Names({one.peer: one.name for one in (me, *others)})
    room = Room.of(job, me, others, links)
    able = [one for one in room.others if one.peer not in taken]
    bare = [one for one in rest if not one.holds(job.codebook)]
    found = []
    if able:
        found.append(f"{_listed(able, names)} ({_why(room, choice, able)})")
    if bare:
        found.append(f"{_listed(bare, names)} (without the codebook that is used)")
    return found


def _listed(candidates: Sequence[Candidate], names: Names) -> str:
    return listed(names(one.peer) for one in candidates)


def _why(room: Room, choice: Choice, able: Sequence[Candidate]) -> str:
    job, plan, search = room.job, choice.plan, room.search
    if job.max_peers and len(plan.shards) >= job.max_peers:
        return f"at most {job.max_peers} peers were asked for"
    more = search.ranked(able)[: min(SHOWN_NAMES, job.tokens - len(plan.shards))]
    if not more:
        return "the input has no tokens for more"
    known = {one.peer: one for one in (*room.others, search.me)}
    group = [known[shard.peer] for shard in plan.shards]
    with_s = search.balanced([*group[:-1], *more, group[-1]]).total_s
    without_s = choice.prediction.total_s
    whom = "it" if len(able) == 1 else "them"
    gain = f"slower with {whom}" if with_s > without_s else f"next to nothing gained with {whom}"
    return f"{gain}: predicted {1000 * with_s:.1f} ms with, {1000 * without_s:.1f} ms without"
