"""Other number formats: close to float32, the same first input, and decoded codes that fit."""

from __future__ import annotations

import pytest
import torch

from astra_mesh.engine.reference import hidden_rows, run_solo
from astra_mesh.families.block import Linear
from astra_mesh.families.model import Model
from astra_mesh.families.precision import (
    PRECISIONS,
    Int8Linear,
    Precision,
    convert,
    converted,
    linears,
    set_linears,
)
from tests.unit.families.making import make_input, make_model

KINDS = ("gpt2", "vit", "llama", "bert", "qwen3")
TOLERANCE = {"fp32": 1e-6, "bf16": 0.06, "fp16": 0.01, "int8": 0.15}  # of random weights


def rows(model: Model) -> torch.Tensor:
    return hidden_rows([run_solo(model, make_input(model), "all")]).float()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_answers_are_close_to_float32(kind: str, precision: Precision) -> None:
    model = make_model(kind)
    exact = rows(model)
    convert(model, precision)
    error = float((rows(model) - exact).norm() / exact.norm())
    assert error <= TOLERANCE[precision]
    assert (error > 0) == (precision != "fp32")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_first_input_is_the_same_in_all(precision: Precision) -> None:
    """Codes are predicted from it on both ends."""
    plain, other = make_model("gpt2"), make_model("gpt2")
    convert(other, precision)
    given = make_input(plain)
    ours, theirs = plain.embed(given, 0, 5), other.embed(given, 0, 5)
    assert torch.equal(ours, theirs)
    assert torch.equal(plain.block(0).normalize(ours), other.block(0).normalize(theirs))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_was_replaced_can_be_put_back(precision: Precision) -> None:
    model = make_model("gpt2")
    exact = rows(model)
    before = convert(model, precision)
    assert {name.split(".")[0] for name in before} == {"block_list", "head"}
    set_linears(model, before)
    assert torch.equal(rows(model), exact)


def test_heads_that_classify_stay_as_they_are() -> None:
    assert all(name.startswith("block_list.") for name in linears(make_model("vit")))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_from_a_place_on(precision: Precision, bias: bool) -> None:
    drawn = torch.Generator().manual_seed(0)
    weight = torch.randn(12, 8, generator=drawn)
    shift = torch.randn(12, generator=drawn) if bias else None
    layer, x = converted(Linear(weight, shift), precision), torch.randn(3, 8, generator=drawn)
    whole, part = layer(x), layer.outputs_from(x, 5)
    assert part.dtype == layer.dtype == whole.dtype
    torch.testing.assert_close(part, whole[:, 5:], rtol=0.02, atol=0.02)


def test_int8_weights_are_within_half_a_step() -> None:
    weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    step = weight.abs().amax(1, keepdim=True) / 127
    rounded = Int8Linear(weight).weight
    assert bool(((rounded - weight).abs() <= step / 2 + 1e-7).all())
    assert not torch.equal(rounded, weight)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_do_not_depend_on_those_beside_them(precision: Precision) -> None:
    """Several requests share a step: none may change another one's text."""
    drawn = torch.Generator().manual_seed(2)
    layer = converted(
        Linear(torch.randn(96, 64, generator=drawn), torch.randn(96, generator=drawn)), precision
    )
    x = torch.randn(9, 64, generator=drawn) * torch.logspace(-2, 2, 9)[:, None]
    x[4] = 3.0  # all alike
    together = layer(x.to(layer.dtype)).detach()
    assert layer.bias is not None
    exact = x @ layer.weight.detach().float().T + layer.bias.detach().float()
    for row in range(9):
        alone = layer(x[row : row + 1].to(layer.dtype)).detach()
        if precision == "int8":  # whole numbers: to the bit
            assert torch.equal(together[row : row + 1], alone)
        error = float((together[row].float() - exact[row]).norm() / exact[row].norm())
        assert error <= max(1e-6, TOLERANCE[precision] / 5)
        near = alone.abs().max() / (1e5 if precision == "fp32" else 100)
        assert float((together[row : row + 1] - alone).abs().max()) <= float(near)
