"""Choosing a number format: the fastest that keeps the answers, or the one that was named."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from astra_mesh.families.precision import Int8Linear
from astra_mesh.peer import precision
from astra_mesh.peer.config import Wanted
from astra_mesh.peer.precision import Chosen, choose_precision
from tests.unit.families.making import make_model

KINDS = ("gpt2", "vit", "llama", "bert")


def timed(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
    times = {"fp32": 1.0, "bf16": 2.0, "fp16": 2.0, "int8": 2.0} | seconds
    monkeypatch.setattr(precision, "_block_s", lambda model, name, known_s=0.0: times[name])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wanted", ["bf16", "fp16", "int8"])
def test_a_named_format_is_taken(kind: str, wanted: Wanted) -> None:
    model = make_model(kind)
    found = choose_precision(model, wanted)
    assert found.precision == wanted
    assert 0 < found.divergence < 0.1
    assert found.speedup > 0
    assert isinstance(model.block(0).qkv, Int8Linear) == (wanted == "int8")


def test_float32_is_left_alone() -> None:
    model = make_model("gpt2")
    assert choose_precision(model, "fp32") == Chosen()
    assert model.block(0).qkv.weight.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_the_fastest_is_chosen(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, bf16=0.5, fp16=0.8)
    monkeypatch.setattr(precision, "CLOSE", 1.0)
    model = make_model(kind)
    found = choose_precision(model)
    assert (found.precision, found.speedup) == ("bf16", 2.0)
    assert model.block(1).ffn.up.weight.dtype == torch.bfloat16


def test_what_changes_the_answers_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, int8=0.2, bf16=0.5)
    told: dict[str, float] = {}

    def divergence(model: Any, found: Any, truth: Any) -> float:
        name = "int8" if isinstance(model.block(0).qkv, Int8Linear) else "bf16"
        told[name] = {"int8": 2 * precision.CLOSE, "bf16": 0.5 * precision.CLOSE}[name]
        return told[name]

    monkeypatch.setattr(precision, "_divergence", divergence)
    assert choose_precision(make_model("gpt2")).precision == "bf16"
    assert list(told) == ["int8", "bf16"]


def test_a_small_gain_is_not_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, bf16=0.95)
    assert choose_precision(make_model("gpt2")) == Chosen()


def test_measuring_leaves_the_model_alone() -> None:
    model = make_model("gpt2")
    before = {name: id(one) for name, one in model.named_modules()}
    for name in ("bf16", "fp16", "int8"):
        assert precision._block_s(model, name) > 0
    assert {name: id(one) for name, one in model.named_modules()} == before


def test_numbers_out_of_range_are_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("gpt2")
    model.block(0).ffn.down.weight.data *= 1e6  # beyond what fp16 can hold
    found = choose_precision(model, "fp16")
    assert found.divergence == float("inf") or found.divergence > 0.1
