"""Plans in one process: with exact codes they equal one device, whatever the shards."""

from __future__ import annotations

import pytest
import torch

from astra_mesh.engine.reference import decode, hidden_rows, pooled, run_plan, run_solo
from astra_mesh.families.spec import Pooling
from astra_mesh.plan.layout import ClassToken, make_layout
from astra_mesh.quant.codecs import Codec, PlainCodec, VectorCodec, make_codec
from astra_mesh.wire.messages import Sampling
from tests.unit.engine.plans import (
    HISTORIES,
    close,
    cut,
    deep_model,
    input_of,
    random_bounds,
    random_codec,
)
from tests.unit.families.making import CAUSAL, KINDS, make_model

NEW = 12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shards", range(1, 10))
def test_exact_codes_equal_one_device(kind: str, shards: int) -> None:
    model = make_model(kind)
    codec = PlainCodec("fp32", model)
    for seed in range(3):
        inputs = input_of(model, 16, seed)
        layout = make_layout(model.spec, random_bounds(16, shards, seed), pooling="all")
        wanted = hidden_rows([run_solo(model, inputs, "all")])
        assert close(hidden_rows(run_plan(model, layout, codec, inputs)), wanted)


@pytest.mark.parametrize("kind", CAUSAL)
@pytest.mark.parametrize("tokens", [1, 2, 17])
def test_exact_codes_give_the_same_greedy_tokens(kind: str, tokens: int) -> None:
    model = make_model(kind)
    inputs, sampling = input_of(model, tokens), Sampling(max_new_tokens=NEW)
    wanted = decode([run_solo(model, inputs, "last", NEW)], sampling)
    assert len(wanted) == NEW
    for shards in (2, 3, 6):  # also more shards than tokens
        bounds = random_bounds(tokens, shards, seed=shards)
        layout = make_layout(model.spec, bounds, pooling="last")
        runs = run_plan(model, layout, PlainCodec("fp32", model), inputs, NEW)
        assert decode(runs, sampling) == wanted


@pytest.mark.parametrize("kind", ["vit", "bert"])
@pytest.mark.parametrize("pooling", ["class", "mean"])
@pytest.mark.parametrize("shards", [2, 5, 9])
def test_pooled_outputs_equal_one_device(kind: str, pooling: Pooling, shards: int) -> None:
    model = make_model(kind)
    inputs = input_of(model, 16)
    wanted = pooled([run_solo(model, inputs, pooling)])
    for seed in range(4):
        layout = make_layout(model.spec, random_bounds(16, shards, seed), pooling=pooling)
        assert close(pooled(run_plan(model, layout, PlainCodec("fp32", model), inputs)), wanted)


@pytest.mark.parametrize("class_token", ["single", "distributed"])
def test_one_shard_is_one_device(class_token: ClassToken) -> None:
    model = make_model("vit")
    inputs = input_of(model, 16)
    layout = make_layout(model.spec, [(0, 16)], pooling="class", class_token=class_token)
    found = pooled(run_plan(model, layout, random_codec(model), inputs))
    assert torch.equal(found, pooled([run_solo(model, inputs, "class")]))


def test_distributed_class_tokens_see_their_own_shard_exactly() -> None:
    """With exact codes, a copy sees what the single one sees: only its own key occurs there too."""
    model = make_model("bert")
    inputs = input_of(model, 16)
    layout = make_layout(model.spec, cut(16, [4, 9]), pooling="class", class_token="distributed")
    runs = run_plan(model, layout, PlainCodec("fp32", model), inputs)
    shares = [run.pooled() for run in runs]
    assert [weight for _, weight in shares] == [1.0, 1.0, 1.0]
    alone = pooled([run_solo(model, inputs, "class")])
    for vector, _ in shares:
        assert close(vector, alone)
    assert close(pooled(runs), alone)


@pytest.mark.parametrize("kind", ["llama", "bert"])
@pytest.mark.parametrize("history", HISTORIES)
def test_each_link_has_its_own_rate(kind: str, history: int) -> None:
    """A link with all stages is closer to exact than one with few, for its receiver alone."""
    model = make_model(kind)
    codec, inputs = random_codec(model, stages=3, history=history), input_of(model, 18)
    bounds = cut(18, [6, 12])
    links = [(i, j) for i in range(3) for j in range(3) if i != j]
    uneven = {link: 1 + sum(link) % 3 for link in links}
    mixed = run_plan(
        model, make_layout(model.spec, bounds, pooling="all", stages=uneven), codec, inputs
    )
    one_block = {}
    for stages in (1, 2, 3):
        layout = make_layout(model.spec, bounds, pooling="all", stages=stages)
        one_block[stages] = run_plan(model, layout, codec, inputs)
    for stages, runs in one_block.items():
        assert not torch.equal(hidden_rows(runs), hidden_rows(mixed)), stages
    only = uneven | {(0, 1): 3}
    changed = run_plan(
        model, make_layout(model.spec, bounds, pooling="all", stages=only), codec, inputs
    )
    assert not torch.equal(changed[1].x, mixed[1].x)
    if model.spec.causal:
        assert torch.equal(changed[0].x, mixed[0].x)


def test_less_exact_codecs_lose_more() -> None:
    model = make_model("gpt2")
    inputs = input_of(model, 32)
    wanted = hidden_rows([run_solo(model, inputs, "all")])
    layout = make_layout(model.spec, cut(32, [8, 16, 24]), pooling="all")
    errors = []
    for name in ("fp32", "fp16", "int8", "int4"):
        found = hidden_rows(run_plan(model, layout, make_codec(name, model), inputs))
        errors.append(float((found - wanted).norm() / wanted.norm()))
    assert errors == sorted(errors)
    assert errors[0] < 1e-5 < errors[1] < 1e-2 < errors[3]


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_models_run(kind: str) -> None:
    model = deep_model(kind, dtype=torch.bfloat16)
    inputs = input_of(model, 16)
    layout = make_layout(model.spec, cut(16, [5, 11]), pooling="all", stages=2)
    books = [random_codec(model, history=history).codebook for history in HISTORIES]
    vector = [VectorCodec(model, book, how) for book in books for how in ("table", "project")]
    codecs: list[Codec] = [PlainCodec("fp16", model), *vector]
    for codec in codecs:
        rows = hidden_rows(run_plan(model, layout, codec, inputs))
        assert rows.isfinite().all()
        assert rows.dtype == torch.bfloat16
