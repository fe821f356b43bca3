"""A block's weights as a tab gets them.

Matrices are kept as the checkpoint has them, because only those fit into float16 without loss: what
was folded into them from the norm (:attr:`Linear.column_scale`) lies beside them and is multiplied
in when a graph is loaded.

Of a checkpoint that does not fit, a tab gets three bytes for each number: the nearest float16 and,
in 8 bits, what is left: of each row's numbers at most 2**-19 of the largest is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import torch
from torch import Tensor

from astra_mesh.browser.tensors import Array
from astra_mesh.families.block import Block, Linear

_LARGEST: Final = 65504.0  # of float16
_STEP: Final = 2.0**-24  # its smallest


def block_tensors(block: Block) -> dict[str, Array]:
    """The weights of a block under the names that its graphs use, all float32."""
    size = block.spec.q_size
    found: dict[str, Array] = {}
    qkv = _plain_weight(block.qkv)
    _put(found, "q", qkv[:size], None if block.qkv.bias is None else block.qkv.bias[:size])
    _put(found, "kv", qkv[size:], block.kv_bias)
    _put(found, "out", block.out.weight, block.out.bias)
    _put(found, "up", _plain_weight(block.ffn.up), block.ffn.up.bias)
    _put(found, "down", block.ffn.down.weight, block.ffn.down.bias)
    for name, scale in (
        ("scale_1", block.qkv.column_scale),
        ("scale_2", block.ffn.up.column_scale),
    ):
        if scale is not None:
            found[name] = array_of(scale)
    for name, norm in (
        ("norm_1", block.norm_1),
        ("norm_2", block.norm_2),
        ("q_norm", block.q_norm),
        ("k_norm", block.k_norm),
    ):
        if norm is not None and norm.weight is not None:
            _put(found, name, norm.weight, norm.bias)
    return found


def fits_half(tensors: Mapping[str, Array]) -> bool:
    """Whether float16 holds all matrices without loss, give or take the folding's rounding and what
    is lost below float16's smallest step where that is nothing beside the matrix."""
    return all(_fits_half(one) for one in tensors.values() if one.ndim == 2)


def _fits_half(matrix: Array) -> bool:
    least = min(_STEP / 2, 1e-5 * float(np.sqrt(np.mean(np.square(matrix)))))
    return np.allclose(halved(matrix).astype(np.float32), matrix, rtol=2e-7, atol=least)


def with_half(tensors: Mapping[str, Array]) -> dict[str, Array]:
    """The same with matrices in float16; biases, scales and norms stay."""
    return {name: halved(one) if one.ndim == 2 else one for name, one in tensors.items()}


def with_rest(tensors: Mapping[str, Array]) -> dict[str, Array]:
    """The same, with what float16 leaves of each matrix: ``NAME.rest`` (int8) times ``NAME.step``
    (rows, 1)."""
    found = with_half(tensors)
    for name, one in tensors.items():
        if one.ndim == 2:
            left = one - found[name].astype(np.float32)
            step = np.maximum(_most(left) / 127, np.finfo(np.float32).tiny)
            found[f"{name}.rest"] = np.round(left / step).astype(np.int8)
            found[f"{name}.step"] = step
    return found


def _most(matrix: Array) -> Array:
    """The largest size of each row's numbers: (rows, 1)."""
    found: Array = np.abs(matrix).max(axis=1, keepdims=True)
    return found


def _plain_weight(layer: Linear) -> Tensor:
    """The matrix as the checkpoint had it; zero where the norm made it zero."""
    scale = layer.column_scale
    if scale is None:
        return layer.weight
    return torch.where(scale == 0, 0.0, layer.weight / scale)


def _put(found: dict[str, Array], name: str, weight: Tensor, bias: Tensor | None) -> None:
    found[f"{name}.weight"] = array_of(weight)
    if bias is not None:
        found[f"{name}.bias"] = array_of(bias)


def array_of(tensor: Tensor) -> Array:
    """The numbers, in float32."""
    found: Array = tensor.detach().float().contiguous().numpy()
    return found


def halved(tensor: Array) -> Array:
    """The nearest float16 numbers, which lose nothing where the numbers came from float16."""
    return np.clip(tensor, -_LARGEST, _LARGEST).astype(np.float16)
