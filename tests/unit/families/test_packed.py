"""Packed weights: the same products, in the place of the plain ones."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from astra_mesh.engine.reference import hidden_rows, run_solo
from astra_mesh.families.block import Linear, activation
from astra_mesh.families.model import Model
from astra_mesh.families.packed import PackedLinear, can_pack, pack, packed
from astra_mesh.families.precision import Int8Linear, Precision, convert
from astra_mesh.peer import precision as choosing
from astra_mesh.peer.precision import pack_if_faster
from tests.unit.families.making import make_input, make_model

KINDS = ("gpt2", "vit", "llama", "bert", "qwen3")

pytestmark = pytest.mark.skipif(
    not can_pack(torch.float32), reason="this torch has no oneDNN kernels for packed weights"
)


def rows(model: Model) -> torch.Tensor:
    return hidden_rows([run_solo(model, make_input(model), "all")]).float()


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    relative, absolute = (1e-5, 1e-5) if ours.dtype == torch.float32 else (0.02, 0.1)
    return ours.dtype == theirs.dtype and torch.allclose(ours, theirs, relative, absolute)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_answers_stay(kind: str, precision: Precision) -> None:
    model = make_model(kind)
    convert(model, precision)
    before = rows(model)
    pack(model)
    tolerance = 1e-5 if precision == "fp32" else 0.02
    assert float((rows(model) - before).norm() / before.norm()) <= tolerance
    able = can_pack(model.block(0).qkv.dtype)  # without the kernels the layer stays as it is
    assert (type(model.block(0).qkv) is PackedLinear) == able


@pytest.mark.parametrize("kind", KINDS)
def test_without_doubles_what_is_used_in_part_stays(kind: str) -> None:
    model = make_model(kind)
    before = rows(model)
    pack(model, doubles=False)
    kinds = {
        name.rpartition(".")[2]: type(one)
        for name, one in model.block(0).named_modules()
        if isinstance(one, Linear)
    }
    assert kinds == {"qkv": Linear, "out": PackedLinear, "up": PackedLinear, "down": PackedLinear}
    assert float((rows(model) - before).norm() / before.norm()) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("count", [1, 3, 40])
def test_a_packed_layer_is_the_layer(dtype: torch.dtype, bias: bool, count: int) -> None:
    if not can_pack(dtype):
        pytest.skip("this processor has no kernels for it")
    drawn = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 33, generator=drawn).to(dtype)
    plain = Linear(weight, torch.randn(48, generator=drawn).to(dtype) if bias else None)
    plain.requires_grad_(False)
    other = packed(plain)
    assert isinstance(other, PackedLinear)
    assert torch.equal(other.weight, weight)
    assert other.dtype == dtype
    x = torch.randn(count, 33, generator=drawn)
    wide = x.expand(2, count, 33)
    assert close(other(x), plain(x))
    assert close(other(wide), plain(wide))
    for start in (0, 16, 20):
        assert close(other.outputs_from(x, start), plain.outputs_from(x, start))
    assert packed(other) is other


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["gelu", "gelu_new", "gelu_fast", "relu", "silu", "quick_gelu"])
def test_what_is_applied_with_the_product_is_the_activation(name: str, dtype: torch.dtype) -> None:
    if not can_pack(dtype):
        pytest.skip("this processor has no kernels for it")
    drawn = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(48, 33, generator=drawn), torch.randn(48, generator=drawn)
    plain = Linear(weight.to(dtype), bias.to(dtype)).requires_grad_(False)
    x, act = torch.randn(2, 40, 33, generator=drawn), activation(name)
    within, apart = packed(plain), packed(plain, fuses=False)
    assert close(within.activated(x, act), act(plain(x)))
    assert torch.equal(apart.activated(x, act), act(apart(x)))
    assert not torch.allclose(within.activated(x, act), plain(x), 0.1, 0.1)


@pytest.mark.parametrize("name", ["gelu", "gelu_new", "relu"])
def test_an_activation_within_the_product_makes_no_pass_of_its_own(name: str) -> None:
    layer, act = packed(Linear(torch.randn(8, 4)).requires_grad_(False)), activation(name)
    seen = list[str]()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append(func.name())
            return func(*args, **(kwargs or {}))

    with Watch():
        layer.activated(torch.randn(3, 4), act)
    assert not any(f"aten::{kind}" in one for one in seen for kind in ("gelu", "relu"))
    assert any("_linear_pointwise" in one for one in seen)


def test_other_formats_stay_as_they_are() -> None:
    model = make_model("gpt2")
    convert(model, "int8")
    pack(model)
    assert type(model.block(0).qkv) is Int8Linear


def test_a_head_that_is_the_embedding_stays() -> None:
    """Packing it would hold the largest matrix twice."""
    model = make_model("gpt2")
    assert model.get_submodule("head").get_parameter("weight") is model.get_parameter("wte")
    pack(model)
    assert type(model.head) is Linear


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize(
    ("fused_s", "apart_s", "plain_s", "wanted"),
    [(1.0, 2.0, 3.0, "fused"), (2.0, 1.0, 3.0, "apart"), (2.0, 3.0, 1.0, "none")],
)
def test_packed_only_where_it_is_faster(
    kind: str,
    fused_s: float,
    apart_s: float,
    plain_s: float,
    wanted: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A gated activation is never within the product: it has nothing apart to measure."""
    model, gated = make_model(kind), kind == "llama"
    times = iter([fused_s, plain_s] if gated else [fused_s, apart_s, plain_s])
    monkeypatch.setattr(choosing, "best_s", lambda work: next(times))
    if gated and wanted == "apart":
        wanted = "fused"
    assert pack_if_faster(model) == wanted
    up = model.block(0).ffn.up
    assert isinstance(up, PackedLinear) == (wanted != "none")
    assert not isinstance(up, PackedLinear) or up.fuses == (wanted == "fused")
    assert next(times, None) is None


_MANY_LENGTHS = """
import sys, torch
from astra_mesh.families.packed import PackedLinear

def held_kib():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

with torch.inference_mode():
    layers = [PackedLinear(torch.randn(width, 192)) for width in (576, 192, 768)]
    before = held_kib()
    for tokens in range(1, 200):
        for layer in layers:
            layer(torch.randn(tokens, 192))
print(held_kib() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_prompts_of_many_lengths_do_not_cost_memory_each() -> None:
    found = subprocess.run(
        [sys.executable, "-c", _MANY_LENGTHS], capture_output=True, text=True, check=True
    )
    assert int(found.stdout) < 80 * 1024  # 28 MiB, and 250 MiB as torch is
