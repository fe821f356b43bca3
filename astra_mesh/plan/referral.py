"""Which peer should answer: new tokens come one by one, each by the answering peer alone.

Whoever is asked plans for itself as the answering peer. Where many tokens are wanted and another
peer makes them much faster, the client does better to ask that one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from astra_mesh.plan.alternatives import choose_among
from astra_mesh.plan.cost import Candidate, Link
from astra_mesh.plan.experience import Pace
from astra_mesh.plan.memory import Memory
from astra_mesh.plan.planner import Choice, Job
from astra_mesh.wire.messages import PeerId

GAIN: Final = 0.75  # of the own time: tokens may end early, and figures are not exact
LEAST_S: Final = 0.5  # that it saves: another link has to be made
TRIED: Final = 2  # peers, the ones with the fastest steps: a plan is searched for each


@dataclass(frozen=True)
class Referral:
    """A peer that would answer sooner."""

    peer: Candidate
    own_s: float  # predicted until the last token, by the asked peer
    its_s: float  # and by that one


def better_placed(
    jobs: Sequence[Job],
    own: Choice,
    me: Candidate,
    others: Sequence[Candidate],
    links: Mapping[tuple[PeerId, PeerId], Link],
    new_tokens: int,
    memory: Memory | None = None,
) -> Referral | None:
    """The peer that would have ``new_tokens`` much sooner than ``me`` with its plan ``own``."""
    own_s = own.prediction.total_s + new_tokens * _step_s(me)
    others = [_as_slow_alone(one) for one in others]
    elsewhere = [one for one in others if one.device.host != me.device.host]
    faster = [one for one in elsewhere if 0 < _step_s(one) < GAIN * _step_s(me)]
    found: list[Referral] = []
    for one in sorted(faster, key=_step_s)[:TRIED]:
        rest = [me, *(other for other in others if other is not one)]
        holding = [job for job in jobs if one.holds(job.codebook)]
        if holding:
            prefill_s = choose_among(holding, one, rest, links, memory).prediction.total_s
            found.append(Referral(one, own_s, prefill_s + new_tokens * _step_s(one)))
    best = min(found, key=lambda one: one.its_s, default=None)
    if best is None or best.its_s > min(GAIN * own_s, own_s - LEAST_S):
        return None
    return best


def _step_s(one: Candidate) -> float:
    return one.timing.step_s * one.pace_alone.compute


def _as_slow_alone(one: Candidate) -> Candidate:
    """This peer sees others work beside others only: who is slow there is so alone, too."""
    return replace(one, pace_alone=Pace(*map(max, one.pace, one.pace_alone)))
