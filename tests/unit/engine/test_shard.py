"""Attention of a shard: parts as they come, or all tokens together where they are few."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from astra_mesh.engine import shard as shards
from astra_mesh.engine.attention import Part, attend
from astra_mesh.engine.shard import ShardRun
from astra_mesh.families.model import Model
from astra_mesh.plan.layout import Layout, make_layout
from astra_mesh.quant.codecs import PlainCodec
from tests.unit.engine.plans import close, cut, input_of
from tests.unit.families.making import make_model

TOKENS, EDGES = 16, [3, 7, 12]
ORDERS = [(0, 1, 3), (3, 0, 1), (1, 3, 0)]  # in which the others' codes reach shard 2


def outputs(model: Model, layout: Layout, order: Iterable[int]) -> Tensor:
    """Of shard 2 after all blocks, the others' codes of each block coming in an order."""
    codec, inputs = PlainCodec("fp32", model), input_of(model, TOKENS)
    with torch.inference_mode():
        runs = [ShardRun(model, layout, i, codec, inputs) for i in range(len(layout.bounds))]
        for block in range(layout.blocks):
            sent = [run.encode(block) for run in runs]
            for run in runs:
                run.attend_local(block)
                sources = layout.sources(run.shard, block)
                coming = [i for i in order if i in sources] if run.shard == 2 else sources
                for source in coming if block >= layout.first_block else ():
                    run.attend_remote(block, source, sent[source][run.shard])
            for run in runs:
                run.finish(block)
    return runs[2].x


@pytest.mark.parametrize("kind", ["vit", "bert", "gpt2"])
@pytest.mark.parametrize("together", [True, False])
def test_the_order_of_arrival_changes_no_bit(
    kind: str, together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "TOGETHER", TOKENS if together else TOKENS - 1)
    model = make_model(kind)
    layout = make_layout(model.spec, cut(TOKENS, EDGES), pooling="all")
    first, *others = [outputs(model, layout, order) for order in ORDERS]
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("kind", ["vit", "bert"])
def test_few_tokens_together_are_the_same_softmax(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(kind)
    layout = make_layout(model.spec, cut(TOKENS, EDGES), pooling="all")
    calls: list[int] = []

    def counted(query: Tensor, rows: Tensor, causal: bool = False) -> Part:
        calls.append(len(rows))
        return attend(query, rows, causal)

    monkeypatch.setattr("astra_mesh.engine.shard.attend", counted)
    together = outputs(model, layout, ORDERS[0])
    assert set(calls) == {TOKENS}
    monkeypatch.setattr(shards, "TOGETHER", 0)
    calls.clear()
    assert close(outputs(model, layout, ORDERS[0]), together)
    assert TOKENS not in calls
