"""Plans that were found before are taken again while a search would find much the same."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from astra_mesh.families import read_spec
from astra_mesh.plan import alternatives
from astra_mesh.plan.alternatives import choose_among
from astra_mesh.plan.cost import Candidate, Link
from astra_mesh.plan.experience import Pace
from astra_mesh.plan.memory import Memory
from astra_mesh.plan.planner import Choice, Job
from astra_mesh.wire.messages import CodebookId, Use
from tests.unit.families.making import CONFIGS
from tests.unit.plan.making import FAST, device, job, links


class Counter:
    """Searches since the last look."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> int:
        count, self.count = self.count, 0
        return count


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> Counter:
    counter, searched = Counter(), alternatives._searched

    def counted(*args: Any) -> Any:
        counter.count += 1
        return searched(*args)

    monkeypatch.setattr(alternatives, "_searched", counted)
    return counter


class Asked:
    """Some peers, the first of which plans, with one memory."""

    def __init__(self, searches: Counter, count: int = 4) -> None:
        self.memory, self._searches = Memory(), searches
        self.peers = [device(f"p{i}", token_s=1e-4 * (1 + i / 4)) for i in range(count)]

    def __call__(
        self, jobs: Sequence[Job], peers: Sequence[Candidate] = (), link: Link = FAST
    ) -> tuple[Choice, bool]:
        """The choice, and whether it was searched for."""
        me, *others = peers or self.peers
        self._searches()
        choice = choose_among(jobs, me, others, links([me, *others], link), self.memory)
        return choice, bool(self._searches())


@pytest.fixture
def asked(searches: Counter) -> Asked:
    return Asked(searches)


@pytest.mark.parametrize("use", [Use.AUTO, Use.ALL])
def test_the_same_question_is_not_searched_again(asked: Asked, use: Use) -> None:
    first, searched = asked([job(use=use)])
    assert searched
    again, searched = asked([job(use=use)])
    assert not searched
    assert again.plan.predicted_s <= first.plan.predicted_s
    assert [one.peer for one in again.plan.shards] == [one.peer for one in first.plan.shards]
    assert again.solo_s == first.solo_s


def test_what_it_takes_is_predicted_anew(asked: Asked) -> None:
    first, _ = asked([job()])
    slower = [replace(one, pace=Pace(compute=1.08)) for one in asked.peers]
    again, searched = asked([job()], slower)
    assert not searched
    assert 1.05 * first.plan.predicted_s < again.plan.predicted_s < 1.1 * first.plan.predicted_s


def test_inputs_about_as_long_are_not_searched(asked: Asked) -> None:
    asked([job(512)])
    for tokens in (430, 600):
        choice, searched = asked([job(tokens)])
        assert not searched
        assert choice.plan.shards[-1].stop == tokens
        assert all(one.stop == other.start for one, other in pairwise(choice.plan.shards))
    assert asked([job(1024)])[1]
    assert not asked([job(512)])[1]
    assert not asked([job(1000)])[1]


def test_what_changed_is_searched(asked: Asked) -> None:
    asked([job()])
    peers, more = asked.peers, device("more")
    slow = [*peers[:-1], replace(peers[-1], pace=Pace(compute=1.5))]
    coding = [*peers[:-1], replace(peers[-1], pace=Pace(decode=40.0))]
    for changed in ([*peers, more], peers[:-1], slow, coding):
        choice, searched = asked([job()], changed)
        assert searched
        me, *others = changed
        fresh = choose_among([job()], me, others, links([me, *others]))
        assert choice.plan == fresh.plan
    assert asked([job()], link=Link(0.004, 2e6))[1]
    assert asked([job()], link=Link(0.4, 1e9))[1]
    for other in (
        job(causal=False),
        job(use=Use.ALL),
        job(max_peers=2),
        job(token_bytes=8.0),
        replace(job(), tables=False),
        replace(job(), input_bytes=10_000_000),
        replace(job(), drifts={frozenset(one.peer for one in peers): 3.0}),
    ):
        assert asked([other])[1]
    assert asked([job()])[1]  # the last two were the same jobs
    assert not asked([job()])[1]


def test_another_kind_of_codes_that_is_faster_now_is_searched(asked: Asked) -> None:
    few = replace(job(token_bytes=2.0), codebook=CodebookId("c" * 64))
    _, searched = asked([job(), few])
    assert searched
    choice, searched = asked([job(), few])
    assert not searched
    assert "would take" in choice.reason
    assert asked([few])[1]  # another question


def test_one_device_alone_is_remembered_too(asked: Asked) -> None:
    thin = Link(0.2, 1e5)
    first, _ = asked([job(64)], link=thin)
    again, searched = asked([job(64)], link=thin)
    assert len(first.plan.shards) == len(again.plan.shards) == 1
    assert not searched
    assert again.reason == first.reason


def test_about_as_many_tokens_as_peers(searches: Counter) -> None:
    """No shard of a plan is empty, and nobody is left out, also where little else changed."""
    for kind in (texts, pictures):
        asked = Asked(searches, 5)
        for tokens in (6, 5, 4, 5, 6, 7):
            choice, _ = asked([kind(tokens)])
            sizes = [one.stop - one.start for one in choice.plan.shards]
            assert min(sizes) > 0
            assert sum(sizes) == tokens
            assert len(sizes) == min(5, kind(tokens).most_shards)


def texts(tokens: int) -> Job:
    return job(tokens, use=Use.ALL)


def pictures(tokens: int) -> Job:
    spec = read_spec(CONFIGS["vit"])
    return replace(job(tokens, False, Use.ALL), spec=spec, class_token="distributed")


def test_a_slow_peer_beside_does_not_hide_what_became_of_a_link(searches: Counter) -> None:
    """Its own times are no measure of what others may take."""
    asked = Asked(searches)
    asked.peers = [device("me"), device("a"), device("b"), device("board", token_s=2e-2)]
    me, *others = asked.peers
    between = links(asked.peers)
    first = choose_among([job()], me, others, between, asked.memory)
    assert {one.peer for one in first.plan.shards} == {"me", "a", "b"}
    thin = between | {pair: Link(0.002, 2e5) for pair in between if "a" in pair}
    again = choose_among([job()], me, others, thin, asked.memory)
    assert again.plan == choose_among([job()], me, others, thin).plan
    assert {one.peer for one in again.plan.shards} == {"me", "b"}


def test_memory_is_bounded(searches: Counter) -> None:
    asked = Asked(searches, 2)
    asked.memory = Memory(limit=3)
    for tokens in (64, 128, 256, 512):
        assert asked([job(tokens)])[1]
    assert not asked([job(256)])[1]
    assert asked([job(64)])[1]


def test_what_is_recalled_is_nearly_as_good_as_what_a_search_finds(searches: Counter) -> None:
    drawn = random.Random(3)
    for _ in range(20):
        asked = Asked(searches, drawn.choice([2, 4, 6]))
        causal, use = drawn.random() < 0.5, drawn.choice([Use.AUTO, Use.ALL])
        asked([job(512, causal, use)])
        paces = [Pace(*(drawn.uniform(0.85, 1.15) for _ in range(4))) for _ in asked.peers]
        peers = [replace(one, pace=pace) for one, pace in zip(asked.peers, paces, strict=True)]
        wanted = job(drawn.randint(430, 600), causal, use)
        found, searched = asked([wanted], peers)
        assert not searched
        fresh = choose_among([wanted], peers[0], peers[1:], links(peers))
        assert found.prediction.total_s <= 1.1 * fresh.prediction.total_s
