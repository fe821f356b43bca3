"""The planner: what every plan has, and which one it chooses."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astra_mesh.plan.check import layout_of
from astra_mesh.plan.cost import Candidate, Link, Prediction, predict
from astra_mesh.plan.planner import GAIN, Choice, choose
from astra_mesh.plan.search import BALANCE_ROUNDS, proportional, shares
from astra_mesh.wire.messages import Task, Use
from tests.unit.plan.making import FAST, device, job, links


def sizes(choice: Choice) -> dict[str, int]:
    return {shard.peer: shard.stop - shard.start for shard in choice.plan.shards}


token_times = st.floats(1e-6, 1e-2)
some_links = st.builds(Link, round_trip_s=st.floats(1e-4, 0.5), bps=st.floats(1e4, 1e10))


@st.composite
def meshes(draw):  # type: ignore[no-untyped-def]
    """Peers on few or many machines, with any links; some links are not measured."""
    count = draw(st.integers(1, 5))
    hosts = draw(st.lists(st.sampled_from(["x", "y", ""]), min_size=count, max_size=count))
    peers = [
        device(f"peer{i}", draw(token_times), host=host and f"{host}", cores=2)
        for i, host in enumerate(hosts)
    ]
    pairs = [(a.peer, b.peer) for a in peers for b in peers if a is not b]
    return peers, {pair: draw(some_links) for pair in pairs if draw(st.booleans())}


@settings(max_examples=60, deadline=None)
@given(
    meshes(),
    st.integers(1, 2000),
    st.booleans(),
    st.sampled_from(Use),
    st.integers(0, 5),
)
def test_every_plan_can_run(mesh, tokens, causal, use, max_peers) -> None:  # type: ignore[no-untyped-def]
    (me, *others), known = mesh
    wanted = job(tokens, causal, use, max_peers)
    choice = choose(wanted, me, others, known)
    plan = choice.plan
    at = 0
    for shard in plan.shards:
        assert shard.start == at < shard.stop
        at = shard.stop
    assert at == tokens
    peers = [shard.peer for shard in plan.shards]
    assert len(set(peers)) == len(peers) <= (max_peers or 5)
    assert set(peers) <= {one.peer for one in (me, *others)}
    assert peers[-1] == plan.answering == me.peer
    needed = {
        (source, receiver)
        for j, receiver in enumerate(peers)
        for i, source in enumerate(peers)
        if i < j or (not causal and i != j)
    }
    assert {(rate.sender, rate.receiver) for rate in plan.rates} == needed
    assert all(rate.stages == 2 for rate in plan.rates)
    assert choice.reason
    assert plan.predicted_s == choice.prediction.total_s > 0
    if use is Use.AUTO:
        assert len(peers) == 1 or plan.predicted_s <= GAIN * choice.solo_s
    if use is Use.SOLO:
        assert peers == [me.peer]
    if use is Use.ALL:
        assert len(peers) == min(len(others) + 1, max_peers or 5, tokens)
    task = Task.GENERATE if causal else Task.CLASSIFY
    checked = layout_of(plan, wanted.spec, task, tokens, 1, {2})
    assert checked.bounds == choice.layout.bounds


@pytest.mark.parametrize("causal", [True, False])
def test_equal_devices_on_good_links_share_the_work(causal: bool) -> None:
    peers = [device(name) for name in "abcd"]
    choice = choose(job(1000, causal), peers[0], peers[1:], links(peers))
    assert len(choice.plan.shards) == 4
    assert choice.solo_s / choice.plan.predicted_s > 2.5
    assert "shortest predicted time" in choice.reason
    found = sizes(choice)
    assert max(found.values()) < 2.2 * min(found.values())


@pytest.mark.parametrize("causal", [True, False])
@given(st.lists(st.floats(5e-5, 1e-3), min_size=2, max_size=4, unique=True))
@settings(max_examples=20, deadline=None)
def test_faster_devices_get_no_fewer_tokens(causal: bool, times: list[float]) -> None:
    """Among those that do the same work: the coordinator and causal positions have other costs."""
    others = [device(f"peer{i}", time_s) for i, time_s in enumerate(times)]
    me = device("me", 1e-4)
    choice = choose(job(1000, causal, Use.ALL), me, others, links([me, *others]))
    found = sizes(choice)
    by_speed = [found[one.peer] for one in sorted(others, key=lambda one: one.timing.per_token_s)]
    slack = 1000 // (16 if causal else 64)  # one lot of the search, or a quarter of it
    assert all(a >= b - slack for a, b in pairwise(by_speed))


def test_a_useless_device_is_left_out() -> None:
    good = [device(name) for name in ("me", "a", "b")]
    slow = device("slow", 1e-2)
    everyone = [*good, slow]
    choice = choose(job(600), good[0], [*good[1:], slow], links(everyone))
    assert set(sizes(choice)) == {"me", "a", "b"}


@pytest.mark.parametrize(("token_s", "taken"), [(1e-4, True), (5e-4, True), (7e-4, False)])
def test_one_more_device_has_to_gain_clearly(token_s: float, taken: bool) -> None:
    """Seven times slower than the two others it would gain 2 %."""
    peers = [device("a"), device("b"), device("c", token_s)]
    choice = choose(job(2000), peers[0], peers[1:], links(peers))
    assert ("c" in sizes(choice)) is taken
    assert {"a", "b"} <= sizes(choice).keys()


def test_a_fast_device_on_a_hopeless_link_is_left_out() -> None:
    """Speed alone would rank it first."""
    me, good, far = device("me"), device("good"), device("far", 2e-5)
    known = links([me, good, far])
    known |= {pair: Link(0.5, 1e4) for pair in known if "far" in pair}
    assert set(sizes(choose(job(600, causal=False), me, [far, good], known))) == {"me", "good"}


def test_one_device_alone_when_the_others_cannot_help() -> None:
    me, slow = device("me"), device("slow", 1.0)
    choice = choose(job(), me, [slow], links([me, slow]))
    assert sizes(choice) == {"me": 512}
    assert "one device is faster" in choice.reason
    assert choice.plan.rates == []


def test_what_others_have_to_be_sent_first_counts() -> None:
    """A photo of 3 MB takes 4.8 s to two others at 10 Mbit/s: one device is faster, and says so."""
    peers = [device(name) for name in "abc"]
    known = links(peers, Link(0.002, 1e7))
    small, large = (
        choose(replace(job(causal=False), input_bytes=size), peers[0], peers[1:], known)
        for size in (20_000, 3_000_000)
    )
    assert len(small.plan.shards) == 3
    assert len(large.plan.shards) == 1
    assert "one device is faster" in large.reason


@pytest.mark.parametrize(
    ("change", "others", "reason"),
    [
        ({"use": Use.SOLO}, 2, "asked for"),
        ({}, 0, "no other peer here holds"),
        ({"max_peers": 1}, 2, "at most one"),
        ({"max_peers": 1, "use": Use.ALL}, 2, "at most one"),
        ({"tokens": 1}, 2, "too short to be shared"),
    ],
)
def test_reasons_for_one_device(change: dict, others: int, reason: str) -> None:
    peers = [device(f"peer{i}") for i in range(others + 1)]
    choice = choose(job(**change), peers[0], peers[1:], links(peers))
    assert list(sizes(choice)) == ["peer0"]
    assert reason in choice.reason


def test_why_there_are_no_others_is_told_where_it_is_known() -> None:
    told = replace(job(use=Use.ALL), alone="no other peer here is ready")
    peers = [device("a"), device("b")]
    assert choose(told, peers[0], [], {}).reason == "no other peer here is ready"
    assert "ready" not in choose(told, peers[0], peers[1:], links(peers)).reason


def test_peers_of_one_machine_share_its_cores() -> None:
    peers = [device(name, host="box", cores=2, host_cores=2) for name in "abc"]
    auto = choose(job(), peers[0], peers[1:], links(peers))
    assert list(sizes(auto)) == ["a"]
    everyone = choose(job(use=Use.ALL), peers[0], peers[1:], links(peers))
    assert len(everyone.plan.shards) == 3
    assert "share its cores" in everyone.reason


def test_the_best_measure_of_a_machine_counts_for_all_its_peers() -> None:
    noisy = [
        device(name, token_s, host="box", cores=2, host_cores=8)
        for name, token_s in (("a", 1e-4), ("b", 9e-4), ("c", 3e-4))
    ]
    choice = choose(job(900, causal=False, use=Use.ALL), noisy[0], noisy[1:], links(noisy))
    found = sizes(choice)
    assert max(found.values()) < 1.3 * min(found.values())


def test_a_browser_is_not_as_fast_as_other_peers_of_its_machine() -> None:
    native, tab = (device(name, s, "box", 2, 8) for name, s in (("a", 1e-4), ("b", 9e-4)))
    tab = replace(tab, device=msgspec.structs.replace(tab.device, software="browser"))
    found = sizes(choose(job(900, causal=False, use=Use.ALL), native, [tab], links([native, tab])))
    assert found["a"] > 4 * found["b"]


@given(st.integers(1, 500), st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=8))
def test_shares_are_whole_positive_and_complete(tokens: int, weights: list[float]) -> None:
    if tokens < len(weights):
        return
    found = shares(tokens, weights)
    assert sum(found) == tokens
    assert min(found) >= 1
    total = sum(weights)
    lifted = len(weights)  # a share of at least one may be taken from others
    assert all(
        abs(size - tokens * weight / total) <= lifted
        for size, weight in zip(found, weights, strict=True)
    )


def test_equal_peers_of_a_causal_model_are_equally_long_busy() -> None:
    """The later ones have more to attend; that is less than the planner's noise."""
    peers = [device("a"), device("b")]
    choice = choose(job(1000, True, Use.ALL), peers[0], peers[1:], links(peers, FAST))
    first = choice.plan.shards[0].stop
    assert 505 < first < 600
    done, end = choice.prediction.finished_s
    assert done == pytest.approx(end, rel=0.02)


def test_proportional_to_speed() -> None:
    group = [device("a", 1e-4), device("b", 2e-4), device("c", 4e-4)]
    assert proportional(700, group) == [400, 200, 100]


@pytest.mark.parametrize(("tokens", "wanted"), [(1, [1]), (2, [2]), (3, [2, 1]), (17, [2, 15])])
def test_nobody_computes_a_copied_class_token_alone(tokens: int, wanted: list[int]) -> None:
    """Everyone has it, and its codes are not sent: it would be work for nothing."""
    slow, me = device("a", 1.0), device("b", 1e-6)
    for class_token in ("single", "distributed"):
        asked = replace(job(tokens, causal=False, use=Use.ALL), class_token=class_token)
        found = sizes(choose(asked, me, [slow], links([slow, me])))
        if class_token == "distributed":
            assert list(found.values()) == wanted
        elif tokens > 1:
            assert list(found.values()) == [1, tokens - 1]


def test_many_peers_are_planned_for_within_a_moment() -> None:
    """Every request waits for this: the search is bounded by trials, not by the number of peers."""
    peers: list[Candidate] = [device(f"p{i}", 1e-4 * (1 + i / 9)) for i in range(24)]
    began = time.process_time()
    choice = choose(job(1000), peers[0], peers[1:], links(peers, FAST))
    assert time.process_time() - began < 2.0
    assert len(choice.plan.shards) > 4


def test_no_time_is_spent_on_evening_out_what_is_hopeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a thin link two devices take so much longer than one that better shares do not help."""
    peers = [device("a"), device("b")]
    counts = []
    for link in (FAST, Link(0.01, 1e4)):
        played: list[int] = []

        def counted(*given: Any, played: list[int] = played) -> Prediction:
            played.append(1)
            return predict(*given)

        monkeypatch.setattr("astra_mesh.plan.search.predict", counted)
        choice = choose(job(1000), peers[0], peers[1:], links(peers, link))
        counts.append((len(choice.plan.shards), len(played)))
    assert [shards for shards, _ in counts] == [2, 1]
    assert counts[0][1] - counts[1][1] == BALANCE_ROUNDS
