"""The bound that eval shows is above the errors, and both are of the codes at hand."""

from __future__ import annotations

import math

import pytest
import torch

from astra_mesh.families import ModelInput
from astra_mesh.quality.bounds import BoundSettings, attention_bounds
from astra_mesh.quant.codebook import UNLIMITED, Codebook
from astra_mesh.quant.codecs import make_codec
from astra_mesh.quant.fit import fit_codebook
from astra_mesh.quant.options import FitOptions
from astra_mesh.wire.messages import ModelId
from tests.unit.families.making import make_input, make_model

ASTRA = FitOptions(codec="astra", history=0, groups=4, codewords=16, iterations=2)


def fitted(kind: str, options: FitOptions) -> Codebook:
    model = make_model(kind)
    inputs = [make_input(model, seed=seed) for seed in range(12)]
    return fit_codebook(model, ModelId("a" * 64), inputs, options)[0]


@pytest.mark.parametrize("kind", ["gpt2", "qwen3", "bert", "vit"])
@pytest.mark.parametrize("history", [0, 1, UNLIMITED])
@pytest.mark.parametrize("distributed", [False, True])
def test_no_error_is_above_its_bound(kind: str, history: int, distributed: bool) -> None:
    model = make_model(kind)
    quick = FitOptions(history=history, rates=(8, 32), groups=2, codewords=16, iterations=2)
    codec = make_codec("vq", model, fitted(kind, quick))
    codes = [(codec, "a", stages) for stages in (1, codec.stages)]
    inputs = [make_input(model, seed=seed) for seed in (50, 51)]
    found = attention_bounds(model, inputs, codes, BoundSettings(3, distributed))
    assert [(row.stages, row.block) for row in found] == [
        (stages, block) for stages in (1, codec.stages) for block in (1, 2)
    ]
    assert all(0 < row.error < row.bound < math.inf for row in found)
    coarse, fine = found[:2], found[2:]
    assert sum(row.error for row in fine) < sum(row.error for row in coarse)


def test_the_published_form_is_bounded_from_the_first_block() -> None:
    model = make_model("bert")
    codec = make_codec("astra", model, fitted("bert", ASTRA))
    found = attention_bounds(model, [make_input(model)], [(codec, "b", 1)], BoundSettings(2))
    assert [row.block for row in found] == [0, 1, 2]
    assert all(0 < row.error < row.bound for row in found)


def test_a_single_token_has_no_remote_rows() -> None:
    model = make_model("gpt2")
    quick = FitOptions(history=0, rates=(8,), groups=2, codewords=16, iterations=2)
    codec = make_codec("vq", model, fitted("gpt2", quick))
    one = ModelInput(tokens=torch.tensor([3]))
    for row in attention_bounds(model, [one], [(codec, "c", 1)], BoundSettings(4)):
        assert row.error == pytest.approx(0.0, abs=1e-6)
        assert row.bound == pytest.approx(0.0, abs=1e-6)
