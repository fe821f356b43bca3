"""The blocks' graphs give what torch gives, for every family."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from astra_mesh.browser.blocks import block_graphs, norm_graph
from astra_mesh.browser.tensors import Array, Packed
from astra_mesh.browser.weights import block_tensors, fits_half, with_half, with_rest
from astra_mesh.engine.attention import attend
from astra_mesh.families import Model, build_model
from astra_mesh.families.block import Block
from tests.unit.browser.running import Session
from tests.unit.families.making import CAUSAL, CONFIGS, KINDS, make_model, make_tensors

TOKENS, START = 11, 5


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def _close(found: Array, wanted: Tensor, least: float = 1e-5) -> None:
    expected = wanted.numpy()
    scale = np.abs(expected).max()
    assert np.abs(found - expected).max() <= least * scale


def _halves(kind: str) -> Model:
    """A model whose checkpoint has float16 numbers only."""
    tensors = {name: one.half().float() for name, one in make_tensors(kind).items()}
    return build_model(CONFIGS[kind], tensors)


@torch.inference_mode()
def _check_block(block: Block, packed: Packed) -> None:
    graphs = block_graphs(block, packed.entries)
    made = {name: Session(graph, packed) for name, graph in graphs.items()}
    x = _random(TOKENS, block.spec.hidden_size)
    n = block.normalize(x)
    if "norm" in made:
        _close(made["norm"](x=x.numpy())["n"], n)
    query, rows = block.query_key_value(n, START)
    flat_query = query.permute(2, 0, 1, 3).reshape(TOKENS, -1)
    flat_rows = rows.reshape(TOKENS, -1)
    _close(made["q"](n=n.numpy(), start=START)["query"], flat_query)
    _close(made["kv"](n=n.numpy(), start=START)["rows"], flat_rows)
    if "finish" in made:
        raw = block.project_key_value(n)
        _close(made["finish"](raw=raw.numpy(), start=START)["rows"], flat_rows)
    if "finish_q" in made:
        raw = block.qkv(n)[:, : block.spec.q_size]
        _close(made["finish_q"](raw=raw.numpy(), start=START)["query"], flat_query)
    for name in ("attend", "attend_causal"):
        if name in made:
            part = attend(query, rows, causal=name == "attend_causal")
            found = made[name](query=flat_query.numpy(), rows=flat_rows.numpy())
            out = part.out.permute(2, 0, 1, 3).reshape(TOKENS, -1)
            _close(found["out"], out)
            _close(found["lse"], part.lse.permute(2, 0, 1).reshape(TOKENS, -1))
            _close(made["mix"](x=x.numpy(), attended=out.numpy())["y"], block.mix(x, out))
            _close(_mixed_in_pieces(made, block, x, out), block.mix(x, out))


def _mixed_in_pieces(made: dict[str, Session], block: Block, x: Tensor, out: Tensor) -> Array:
    """As ``mix``, with the products outside of the graphs."""
    found = made["between"](x=x.numpy(), attended=block.out(out).numpy())
    wide = block.ffn.up(torch.from_numpy(found["n"]))
    fed = made["act"](wide=wide.numpy())["fed"]
    down = block.ffn.down(torch.from_numpy(fed))
    y: Array = made["end"](middle=found["middle"], down=down.numpy())["y"]
    return y


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_in_float32(kind: str) -> None:
    block = make_model(kind).block(1)
    _check_block(block, Packed(block_tensors(block)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_of_a_float16_checkpoint_loses_nothing(kind: str) -> None:
    block = _halves(kind).block(1)
    tensors = block_tensors(block)
    assert fits_half(tensors)
    packed = Packed(with_half(tensors))
    assert len(packed.data) < 0.6 * len(Packed(tensors).data)
    _check_block(block, packed)


@pytest.mark.parametrize("kind", KINDS)
def test_a_float32_checkpoint_does_not_fit_float16(kind: str) -> None:
    assert not fits_half(block_tensors(make_model(kind).block(0)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_of_a_float32_checkpoint_in_three_bytes(kind: str) -> None:
    block = make_model(kind).block(1)
    tensors = block_tensors(block)
    packed = Packed(with_rest(tensors))
    assert len(packed.data) < 0.85 * len(Packed(tensors).data)
    _check_block(block, packed)


def test_three_bytes_lose_two_millionths_of_the_largest() -> None:
    generator = np.random.default_rng(1)
    matrix = generator.standard_normal((9, 300)).astype(np.float32)
    matrix[2] *= 1e-6  # most of it below float16's smallest
    matrix[3] = 0.0
    matrix[4, 0] = 60000.0
    found = with_rest({"w": matrix})
    again = found["w"].astype(np.float32) + found["w.rest"] * found["w.step"]
    most = np.abs(matrix).max(axis=1)
    bound = 2.0**-19 * 128 / 127 * np.maximum(most, 2.0**-14)  # the last: float16's smallest steps
    assert np.all(np.abs(again - matrix).max(axis=1) <= bound)


def test_a_bfloat16_checkpoint_fits_float16() -> None:
    matrix = torch.randn(50, 400).mul_(0.02)
    matrix[0, :9] = 1e-7
    tensors = {"w": matrix.bfloat16().float().numpy()}
    assert fits_half(tensors)
    tensors["w"][3, 3] = 1e5  # beyond float16
    assert not fits_half(tensors)


@pytest.mark.parametrize("kind", KINDS)
def test_all_blocks_of_a_model_share_their_graphs(kind: str) -> None:
    model = make_model(kind)
    found = [
        block_graphs(model.block(i), Packed(block_tensors(model.block(i))).entries)
        for i in range(model.spec.num_hidden_layers)
    ]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("act", ["gelu", "gelu_new", "quick_gelu", "relu", "silu"])
def test_every_activation(act: str) -> None:
    block = build_model(CONFIGS["vit"] | {"hidden_act": act}, make_tensors("vit")).block(0)
    _check_block(block, Packed(block_tensors(block)))


@pytest.mark.parametrize("kind", CAUSAL)
def test_the_final_norm(kind: str) -> None:
    model = make_model(kind)
    x = _random(TOKENS, model.spec.hidden_size)
    assert model.final_norm is not None
    made = Session(norm_graph(model.final_norm, model.spec.hidden_size))
    with torch.inference_mode():
        _close(made(x=x.numpy())["n"], model.final(x))


def test_a_norm_of_zero_is_no_division_by_zero() -> None:
    tensors = make_tensors("gpt2")
    tensors["transformer.h.0.ln_1.weight"][3] = 0.0
    block = build_model(CONFIGS["gpt2"], tensors).block(0)
    _check_block(block, Packed(block_tensors(block)))
