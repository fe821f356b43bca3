"""Asking a weak device for a long text: another one should answer."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from astra_mesh.plan.cost import Candidate
from astra_mesh.plan.experience import Pace
from astra_mesh.plan.planner import Job, choose
from astra_mesh.plan.referral import GAIN, Referral, better_placed
from astra_mesh.wire.messages import CodebookId
from tests.unit.plan.making import device, job, links


def stepping(name: str, step_s: float, token_s: float = 1e-4, host: str = "") -> Candidate:
    one = device(name, token_s, host)
    return replace(one, timing=msgspec.structs.replace(one.timing, step_s=step_s))


def asked(
    me: Candidate, others: list[Candidate], tokens: int, jobs: list[Job] | None = None
) -> Referral | None:
    jobs = jobs or [job(64)]
    known = links([me, *others])
    own = choose(jobs[0], me, others, known)
    return better_placed(jobs, own, me, others, known, tokens)


BOARD, LAPTOP, DESK = stepping("board", 0.1), stepping("laptop", 0.01), stepping("desk", 0.02)


def test_the_fastest_steps_answer_a_long_text() -> None:
    found = asked(BOARD, [DESK, LAPTOP], 100)
    assert found is not None
    assert found.peer.name == "laptop"
    assert found.own_s == pytest.approx(100 * 0.1, rel=0.1)
    assert found.its_s == pytest.approx(100 * 0.01, rel=0.3)


@pytest.mark.parametrize(
    ("me", "others", "tokens"),
    [
        (BOARD, [LAPTOP], 1),  # nothing to gain that is worth another link
        (LAPTOP, [BOARD, DESK], 1000),  # it is the fastest itself
        (LAPTOP, [stepping("twin", 0.9 * 0.01)], 1000),  # as fast, but for noise
        (BOARD, [stepping("unmeasured", 0.0)], 1000),
        (BOARD, [], 1000),
        (BOARD, [stepping("lucky", 0.01, host="board")], 1000),  # the same machine
    ],
)
def test_otherwise_the_asked_one_answers(
    me: Candidate, others: list[Candidate], tokens: int
) -> None:
    assert asked(me, others, tokens) is None


def test_a_prompt_that_takes_long_elsewhere_counts() -> None:
    """Fast steps, and a slow prefill: alone it would take minutes."""
    slow = stepping("slow", 0.05, token_s=0.05)
    assert asked(BOARD, [slow], 20, [job(400, max_peers=1)]) is None
    assert asked(BOARD, [slow], 20_000, [job(400, max_peers=1)]) is not None


def test_what_was_learned_of_the_asked_one_counts() -> None:
    """A laptop that is busy with other things takes three times as long as it measured."""
    busy = replace(stepping("me", 0.02), pace_alone=Pace(compute=3.0))
    assert asked(stepping("me", 0.02), [DESK], 200) is None
    assert asked(busy, [DESK], 200) is not None
    assert GAIN < 1


def test_who_was_seen_to_be_slow_beside_others_is_slow_alone() -> None:
    hot = replace(LAPTOP, pace=Pace(compute=12.0))
    assert asked(BOARD, [LAPTOP], 100) is not None
    assert asked(BOARD, [hot], 100) is None


def test_it_must_hold_one_of_the_codebooks() -> None:
    laptop = replace(LAPTOP, books={})
    assert asked(BOARD, [laptop], 100) is None
    bare = replace(job(64), codebook=CodebookId(""))
    assert asked(BOARD, [laptop], 100, [job(64), bare]) is not None
