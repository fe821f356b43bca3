"""Who needs what of whom."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra_mesh.plan.layout import Layout, make_layout
from tests.unit.engine.plans import cut
from tests.unit.families.making import make_model

GPT, BERT = make_model("gpt2").spec, make_model("bert").spec


@pytest.mark.parametrize(
    "bounds", [[(1, 4)], [(0, 2), (3, 4)], [(0, 3), (2, 4)], [(0, 3), (3, 2)], [(0, 0)]]
)
def test_shards_must_tile_the_tokens(bounds: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match=r"contiguous|without tokens"):
        make_layout(GPT, bounds, pooling="last")


def test_causal_shards_need_those_to_their_left() -> None:
    layout = make_layout(GPT, cut(9, [2, 2, 5]), pooling="last")
    assert [layout.sources(i, 1) for i in range(4)] == [(), (), (0,), (0, 2)]
    assert [layout.receivers(i, 1) for i in range(4)] == [(2, 3), (), (3,), ()]
    assert [layout.receivers(i, 0) for i in range(4)] == [()] * 4  # known without codes
    last = GPT.num_hidden_layers - 1
    assert [layout.sources(i, last) for i in range(4)] == [(), (), (), (0, 2)]
    assert layout.answering() == 3


def test_encoders_need_all_others() -> None:
    layout = make_layout(BERT, cut(9, [3, 6]), pooling="mean", first_block=0)
    assert [layout.sources(i, 0) for i in range(3)] == [(1, 2), (0, 2), (0, 1)]
    assert [layout.receivers(i, 0) for i in range(3)] == [(1, 2), (0, 2), (0, 1)]


def test_the_class_token_is_all_that_the_last_block_is_for() -> None:
    layout = make_layout(BERT, cut(9, [3, 6]), pooling="class")
    last = BERT.num_hidden_layers - 1
    assert [layout.sources(i, last) for i in range(3)] == [(1, 2), (), ()]
    assert layout.receivers(0, last) == ()


def test_copies_of_the_class_token_are_never_sent() -> None:
    layout = make_layout(BERT, cut(9, [1, 4, 4]), pooling="class", class_token="distributed")
    assert [list(layout.sent(i)) for i in range(4)] == [[], [1, 2, 3], [], [4, 5, 6, 7, 8]]
    assert [layout.local_rows(i) for i in range(4)] == [1, 4, 0, 6]
    assert [len(layout.wanted(i)) for i in range(4)] == [1, 1, 0, 1]
    assert layout.sources(1, 1) == (3,)  # the first shard has nothing to send


def test_models_without_class_token_have_none() -> None:
    layout = make_layout(GPT, [(0, 3)], pooling="last", class_token="distributed")
    assert layout.class_token == "none"


def definition(layout: Layout, shard: int, block: int) -> list[int]:
    """Sources, from the words of the docstrings."""
    needs_output = block < layout.blocks - 1 or len(layout.wanted(shard)) > 0
    return [
        other
        for other in range(len(layout.bounds))
        if other != shard
        and layout.holds(shard)
        and needs_output
        and len(layout.sent(other)) > 0
        and (other < shard or not layout.causal)
    ]


@given(
    st.lists(st.integers(0, 12), max_size=6),
    st.sampled_from(["last", "all", "mean", "class"]),
    st.sampled_from([GPT, BERT]),
    st.sampled_from(["single", "distributed"]),
)
def test_receivers_are_sources_turned_round(edges, pooling, spec, class_token) -> None:  # type: ignore[no-untyped-def]
    layout = make_layout(spec, cut(12, sorted(edges)), pooling=pooling, class_token=class_token)
    shards = range(len(layout.bounds))
    for block in range(layout.blocks):
        for shard in shards:
            assert list(layout.sources(shard, block)) == definition(layout, shard, block)
            found = [i for i in shards if shard in definition(layout, i, block)]
            assert list(layout.receivers(shard, block)) == (found if block else [])
