"""Choosing among codes: the fastest of those that would do, and the reason names the others."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from astra_mesh.plan.alternatives import choose_among
from astra_mesh.plan.cost import Books, Candidate, CodeCost, Link
from astra_mesh.plan.planner import Job, choose
from astra_mesh.wire.messages import CodebookId, Use
from tests.unit.plan.making import FAST, device, job, links

LONG, SHORT, OTHER = (CodebookId(letter * 64) for letter in "cde")
# Few bits that take long to decode, and many that do not.
BOOKS: Books = {LONG: {32: CodeCost(4e-6, 3e-6, 9e-6)}, SHORT: {128: CodeCost(2e-6, 0.5e-6, 9e-6)}}
THIN = Link(0.004, 2e6)


def coded(codebook: CodebookId, bits: int, label: str, use: Use = Use.AUTO, **more: int) -> Job:
    return replace(
        job(use=use, causal=False, **more),
        codebook=codebook,
        token_bytes={1: bits / 8},
        stages=1,
        label=label,
    )


def jobs(use: Use = Use.AUTO, **more: int) -> list[Job]:
    return [
        coded(LONG, 32, "predictive", use, **more),
        coded(SHORT, 128, "memoryless", use, **more),
    ]


def holding(name: str, books: Books = BOOKS) -> Candidate:
    return replace(device(name), books=books)


def room(count: int = 3) -> list[Candidate]:
    return [holding(f"p{i}") for i in range(count)]


def test_thin_links_want_few_bits_and_good_ones_little_work() -> None:
    me, *others = room()
    thin = choose_among(jobs(), me, others, links([me, *others], THIN))
    fast = choose_among(jobs(), me, others, links([me, *others], FAST))
    assert (thin.plan.codebook, fast.plan.codebook) == (LONG, SHORT)
    assert len(thin.plan.shards) > 1 < len(fast.plan.shards)
    for choice, taken, left in (
        (thin, "predictive 32 bits", "memoryless 128 bits"),
        (fast, "memoryless 128 bits", "predictive 32 bits"),
    ):
        assert f"; {taken}: {1000 * choice.plan.predicted_s:.1f} ms; {left} would" in choice.reason


def test_the_plan_is_as_good_as_that_of_its_codes_alone() -> None:
    me, *others = room()
    for link in (THIN, FAST):
        known = links([me, *others], link)
        found = choose_among(jobs(), me, others, known)
        alone = [choose(one, me, others, known).plan.predicted_s for one in jobs()]
        assert found.plan.predicted_s == pytest.approx(min(alone))


def test_the_measured_costs_of_the_codebook_count() -> None:
    """A device whose decoder is slow for one codebook makes the other one faster."""
    me, *others = room()
    known = links([me, *others], FAST)
    slow: Books = {LONG: {32: CodeCost(1e-6, 1e-6, 1e-6)}, SHORT: {128: CodeCost(2e-6, 9e-5, 9e-5)}}
    weak = [replace(one, books=slow) for one in (me, *others)]
    assert choose_among(jobs(), weak[0], weak[1:], known).plan.codebook == LONG
    assert choose_among(jobs(), me, others, known).plan.codebook == SHORT


def test_without_tables_the_other_decoder_counts() -> None:
    """Codes whose projection is slow are left where receivers may not look them up."""
    me, *others = room()
    known = links([me, *others], FAST)
    books: Books = {
        LONG: {32: CodeCost(1e-6, 2e-6, 2e-6)},
        SHORT: {128: CodeCost(1e-6, 1e-6, 9e-5)},
    }
    able = [replace(one, books=books) for one in (me, *others)]
    plain = [replace(one, tables=False) for one in jobs()]
    looked_up = choose_among(jobs(), able[0], able[1:], known)
    projected = choose_among(plain, able[0], able[1:], known)
    assert (looked_up.plan.codebook, projected.plan.codebook) == (SHORT, LONG)
    assert projected.plan.predicted_s > looked_up.plan.predicted_s


def test_only_peers_that_hold_the_codebook_take_part() -> None:
    me, a, b = room()
    a = replace(a, books={LONG: BOOKS[LONG]})
    b = replace(b, books={})
    choice = choose_among(jobs(), me, [a, b], links([me, a, b]))
    assert {shard.peer for shard in choice.plan.shards} == {"p0", "p1"}
    assert choice.plan.codebook == LONG
    alone = choose_among(jobs(), me, [b], links([me, b]))
    assert [shard.peer for shard in alone.plan.shards] == ["p0"]
    assert "no other peer" in alone.reason


def test_a_codebook_that_only_some_hold_can_still_win() -> None:
    """The first codes have no holder at all."""
    me, *others = (replace(one, books={SHORT: BOOKS[SHORT]}) for one in room())
    choice = choose_among(jobs(), me, others, links([me, *others]))
    assert choice.plan.codebook == SHORT
    assert len(choice.plan.shards) == 3


def test_all_peers_means_codes_that_most_can_use() -> None:
    me, *others = room(4)
    others[0] = replace(others[0], books={LONG: BOOKS[LONG]})
    choice = choose_among(jobs(Use.ALL), me, others, links([me, *others], FAST))
    assert choice.plan.codebook == LONG
    assert len(choice.plan.shards) == 4


@pytest.mark.parametrize("more", [{"max_peers": 1}, {"tokens": 1}])
def test_one_device_needs_no_comparison(more: dict[str, int]) -> None:
    me, *others = room()
    choice = choose_among(jobs(Use.AUTO, **more), me, others, links([me, *others]))
    assert len(choice.plan.shards) == 1
    assert "would take" not in choice.reason


def test_costs_that_nobody_measured_are_those_of_the_timing() -> None:
    me, *others = (replace(one, books={LONG: {}, SHORT: {}}) for one in room())
    choice = choose_among(jobs(), me, others, links([me, *others]))
    assert choice.plan.codebook == LONG  # fewer bits, the same work


def test_no_more_than_two_searches_however_many_codes() -> None:
    many = [coded(CodebookId(f"{i:064x}"), 32 + 8 * i, f"c{i}") for i in range(16)]
    books: Books = {one.codebook: {one.bits: CodeCost(1e-6, 1e-6, 1e-6)} for one in many}
    peers = [holding(f"p{i}", books) for i in range(8)]
    known = links(peers, FAST)

    def seconds(wanted: list[Job]) -> float:
        began = time.process_time()
        choose_among(wanted, peers[0], peers[1:], known)
        return time.process_time() - began

    one = min(seconds(many[:1]) for _ in range(3))
    assert min(seconds(many) for _ in range(3)) < 4 * one + 0.05
