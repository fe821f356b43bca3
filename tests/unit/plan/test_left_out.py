"""An automatic plan says who has no part of it, and why."""

from __future__ import annotations

from dataclasses import replace

from astra_mesh.plan.alternatives import choose_among
from astra_mesh.plan.cost import Candidate
from astra_mesh.plan.left_out import left_out
from astra_mesh.plan.planner import Job
from astra_mesh.wire.messages import CodebookId, Use
from tests.unit.plan.making import device, job, links

SLOW_S = 5e-3  # for a token: fifty times as long as the others


def said(wanted: Job, me: Candidate, *others: Candidate) -> list[str]:
    between = links([me, *others])
    choice = choose_among([wanted], me, others, between)
    return left_out([wanted], choice, me, others, between)


def test_a_slow_device_is_named_with_what_it_would_cost() -> None:
    (found,) = said(job(1000), device("a"), device("b"), device("snail", SLOW_S))
    assert found.startswith("snail (slower with it: predicted ")
    with_ms, without_ms = (float(word) for word in found.split() if word[0].isdigit())
    assert with_ms > 1.05 * without_ms > 0


def test_of_many_some_are_named_and_the_rest_counted() -> None:
    slow = [device(f"snail{i}", SLOW_S) for i in range(6)]
    (found,) = said(job(1000), device("a"), device("b"), *slow)
    assert found.startswith("snail0, snail1, snail2, snail3 and 2 more (slower with them: ")


def test_who_is_one_too_many_or_lacks_the_codebook_hears_that() -> None:
    fast = [device(name) for name in "abc"]
    assert said(job(1000, max_peers=2), *fast) == ["c (at most 2 peers were asked for)"]
    able = [replace(device(name), books={job().codebook: {}}) for name in "ab"]
    bare = replace(device("bare"), books={CodebookId("c" * 64): {}})
    found = said(job(1000), *able, bare)
    assert found == ["bare (without the codebook that is used)"]


def test_nothing_is_said_where_all_take_part_or_the_reason_says_it() -> None:
    fast = [device(name) for name in "abc"]
    slow = device("snail", SLOW_S)
    assert said(job(1000), *fast) == []
    assert said(job(1000), device("a"), slow) == []  # "one device is faster"
    assert said(job(1000, use=Use.ALL, max_peers=2), *fast) == []
