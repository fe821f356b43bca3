"""Predictions move as physics does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astra_mesh.families.spec import Pooling
from astra_mesh.plan.cost import (
    MESSAGE_S,
    Candidate,
    Link,
    Prediction,
    Work,
    predict,
    slowdown,
)
from astra_mesh.plan.layout import Layout, make_layout
from tests.unit.engine.plans import cut
from tests.unit.plan.making import BERT, GPT, device, links

WORK_BYTES = {1: 16.0, 2: 32.0}


def layout(causal: bool, tokens: int = 400, edges: list[int] | None = None) -> Layout:
    return make_layout(
        GPT if causal else BERT,
        cut(tokens, [100, 200, 300] if edges is None else edges),
        pooling="last" if causal else "class",
        stages=2,
    )


def told(
    shards: Layout,
    peers: list[Candidate],
    link: Link,
    token_bytes: Mapping[int, float] = WORK_BYTES,
) -> Prediction:
    return predict(shards, Work(token_bytes, peers[-1].peer), peers, links(peers, link))


PEERS = [device(name) for name in "abcd"]


@settings(max_examples=60, deadline=None)
@given(
    st.booleans(),
    st.lists(st.integers(0, 400), min_size=3, max_size=3),
    st.floats(1e4, 1e9),
    st.floats(1.0, 100.0),
    st.floats(0.0001, 0.5),
)
def test_better_links_are_hardly_ever_slower(causal, edges, bps, factor, round_trip_s) -> None:  # type: ignore[no-untyped-def]
    shards = layout(causal, edges=sorted(edges))
    # Nearly: codes that arrive in another order can delay those that somebody waits for, as in any
    # schedule on shared machines (Graham 1969). Seen so far: 4 %.
    most = told(shards, PEERS, Link(round_trip_s, bps)).total_s * 1.1
    assert told(shards, PEERS, Link(round_trip_s, bps * factor)).total_s <= most
    assert told(shards, PEERS, Link(round_trip_s / factor, bps)).total_s <= most
    assert told(shards, PEERS, Link(round_trip_s, bps), {2: 2.0}).total_s <= most


@pytest.mark.parametrize("causal", [True, False])
def test_a_faster_device_is_never_slower(causal: bool) -> None:
    before = told(layout(causal), PEERS, Link()).total_s
    for index in range(4):
        peers = list(PEERS)
        peers[index] = device(peers[index].name, 5e-5)
        assert told(layout(causal), peers, Link()).total_s <= before
    assert told(layout(causal), [device(n, 5e-5) for n in "abcd"], Link()).total_s < before


def test_a_wavefront_does_not_pay_the_delay_in_every_block() -> None:
    """Blocks take 10 ms: 20 ms more of delay cost about one round for each of three hops."""
    near, far = (told(layout(True), PEERS, Link(rtt, 1e9)).total_s for rtt in (0.0, 0.04))
    assert 0.02 <= far - near < 4 * 0.02


def test_an_encoder_pays_what_its_own_work_does_not_hide() -> None:
    near, far = (told(layout(False), PEERS, Link(rtt, 1e9)).total_s for rtt in (0.0, 0.4))
    assert far - near > 9 * 0.15  # 10 exchanges (block 0 needs none, the last pools one token)


def test_what_several_send_to_one_shares_its_downlink() -> None:
    """Four peers at 100 kbit/s, 25.6 kbit from each to each: 0.768 s for what one sends in each of
    10 exchanges, and more where parts for one receiver leave at the same time."""
    found = told(layout(False), PEERS, Link(0.0, 1e5))
    assert found.total_s > 10 * 0.768 + 1


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("blocks", [1, 2])
def test_models_of_one_block(causal: bool, blocks: int) -> None:
    """The first block's input is known to all, and nothing is sent of it."""
    spec = replace(GPT if causal else BERT, num_hidden_layers=blocks)
    pooling: Pooling = "last" if causal else "class"
    found = told(make_layout(spec, cut(400, [100, 200, 300]), pooling=pooling), PEERS, Link())
    thin = told(
        make_layout(spec, cut(400, [100, 200, 300]), pooling=pooling), PEERS, Link(0.004, 1e4)
    )
    assert found.total_s > 0
    assert (thin.total_s > found.total_s) == (blocks > 1)


def test_one_device_is_its_own_sum() -> None:
    only = device("a")
    shards = make_layout(GPT, [(0, 100)], pooling="all")
    timing = only.timing
    block = timing.fixed_s + timing.per_token_s * 100 + timing.per_pair_s * 100 * 100
    found = predict(shards, Work(WORK_BYTES, only.peer), [only], {})
    assert found.total_s == pytest.approx(12 * block + timing.head_s)
    assert found.waited_s == (0.0,)


def test_two_devices_by_hand() -> None:
    """Causal, two shards: the second waits for the first's codes of block 1."""
    first, second = device("a", 1e-3), device("b", 1e-5)
    shards = make_layout(GPT, [(0, 100), (100, 200)], pooling="all", stages=2)
    link = Link(0.01, 1e6)
    found = predict(
        shards,
        Work({1: 10.0, 2: 20.0}, second.peer),
        [first, second],
        {(first.peer, second.peer): link, (second.peer, first.peer): link},
    )
    timing = first.timing
    block = timing.fixed_s + timing.per_token_s * 100 + timing.per_pair_s * 100 * 100
    encode = timing.encode_token_s * 100
    done = 0.005 + 12 * block + 11 * (encode + MESSAGE_S)
    assert found.finished_s[0] == pytest.approx(done)
    transfer = 8 * 100 * 10.0 * 2 / 1e6
    arrives = done - block - MESSAGE_S + transfer + 0.005  # codes of the last block
    assert found.finished_s[1] == pytest.approx(
        arrives + (second.timing.decode_token_s + second.timing.per_pair_s * 100) * 100 + MESSAGE_S
    )


def test_inputs_reach_the_others_before_they_begin() -> None:
    """500 kbit to each of two over 1 Mbit/s: both begin 1 s later, and the owner's codes leave
    after that."""
    peers = [device("a"), device("b"), device("c", 1e-9)]
    shards = make_layout(GPT, [(0, 100), (100, 200), (200, 300)], pooling="last", stages=1)
    known = links(peers, Link(0.0, 1e6))
    light, heavy = (
        predict(shards, Work({1: 1e-3}, peers[2].peer, size), peers, known) for size in (0, 62_500)
    )
    for before, after in zip(light.finished_s, heavy.finished_s, strict=True):
        assert after - before == pytest.approx(1.0, abs=0.01)
    first = Work({1: 100.0}, peers[0].peer, 62_500)  # the one whose codes the others wait for
    assert predict(shards, first, peers, known).finished_s[1] > 1.0


def test_a_full_uplink_delays_the_next_codes() -> None:
    """Codes of 1 s leave every 20 ms: what counts at the end is the line, not the work."""
    first, second = device("a"), device("b", 1e-6)
    shards = make_layout(GPT, [(0, 100), (100, 200)], pooling="last", stages=1)
    link = Link(0.0, 8e3)
    found = predict(
        shards,
        Work({1: 10.0}, second.peer),
        [first, second],
        {(first.peer, second.peer): link, (second.peer, first.peer): link},
    )
    assert 11.0 < found.total_s < 11.5  # 11 blocks of 1,000 bytes at 1,000 bytes a second


def test_each_link_carries_what_its_number_of_stages_takes() -> None:
    """Stages are of different sizes: 1 byte, 2 and 16 for one, two and four of them."""
    first, second = device("a"), device("b", 1e-6)
    both = {(first.peer, second.peer): Link(0.0, 8e3), (second.peer, first.peer): Link(0.0, 8e3)}
    work = Work({1: 1.0, 2: 2.0, 4: 16.0}, second.peer)

    def took(stages: int) -> float:
        cuts = [(0, 1000), (1000, 2000)]
        shards = make_layout(GPT, cuts, pooling="last", stages={(0, 1): stages, (1, 0): 1})
        return predict(shards, work, [first, second], both).total_s

    one, two, four = took(1), took(2), took(4)
    assert 11.0 < one < 11.0 + 2.5  # 11 blocks of 1,000 bytes at 1,000 bytes a second
    assert two - one == pytest.approx(11.0, abs=0.5)
    assert four - one == pytest.approx(165.0, abs=0.5)
    with pytest.raises(KeyError):
        took(3)  # a number of stages that the codec does not have: checked before


def test_empty_shards_cost_nothing() -> None:
    full = make_layout(GPT, [(0, 200), (200, 400)], pooling="last", stages=2)
    holes = make_layout(GPT, [(0, 200), (200, 200), (200, 400)], pooling="last", stages=2)
    slow = device("slow", 1.0)
    with_hole = told(holes, [PEERS[0], slow, PEERS[1]], Link())
    assert with_hole.total_s == told(full, PEERS[:2], Link()).total_s


def test_peers_of_one_machine_slow_each_other_down() -> None:
    here = [device(n, host="x", cores=2, host_cores=4) for n in "abc"]
    alone = device("d", cores=2, host_cores=4)
    assert slowdown([*here, alone]) == [1.5, 1.5, 1.5, 1.0]
    assert slowdown(here[:2]) == [1.0, 1.0]
