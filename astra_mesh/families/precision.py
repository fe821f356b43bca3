"""Faster number formats for the products of a model: of its blocks, and of the head.

Norms, the embedding and the sum that runs through the blocks stay float32. So all peers know
exactly the same input of the first block, from which codes are predicted, whatever each of them
computes in.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Final, Literal, get_args

import torch
from torch import Tensor

from astra_mesh.families.block import Linear
from astra_mesh.families.model import Model

Precision = Literal["fp32", "bf16", "fp16", "int8"]
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)

_DTYPES: Final[Mapping[str, torch.dtype]] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
Linears = dict[str, Linear]  # by name within the model


_LEAST_STEP: Final = 1e-30  # of a row whose numbers are all alike
_LEVELS: Final = 127  # steps from a row's least number to its largest: more may overflow


class Int8Linear(Linear):
    """A layer with 8-bit weights, one scale per output; inputs are rounded to 7 bits as they come.

    (..., in) float32 to (..., out) float32, by torch's dynamic quantization. That has one scale for
    all rows, so each row is brought to 0..127 before: what comes out of a row does not depend on
    the rows beside it, which may be of other requests, and the smaller ones lose less.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        torch.nn.Module.__init__(self)
        weight = weight.detach().float()
        scale = weight.abs().amax(1).clamp_min(1e-12) / 127
        with warnings.catch_warnings():  # torch announces another place for the same thing
            warnings.simplefilter("ignore")
            zero = torch.zeros(len(weight), dtype=torch.long)
            rounded = torch.quantize_per_channel(weight, scale, zero, 0, torch.qint8)
            self._packed = torch.ops.quantized.linear_prepack(rounded, None)
        self._bias = bias
        self._sums = rounded.dequantize().sum(1)  # what an input of ones gives
        self._parts: dict[int, Int8Linear] = {}

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """(out, in) float32, as it was rounded; made anew at each call."""
        return torch.ops.quantized.linear_unpack(self._packed)[0].dequantize()  # type: ignore[no-any-return]

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """(out,) float32."""
        return self._bias

    @property
    def dtype(self) -> torch.dtype:
        """Of what comes out."""
        return torch.float32

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        x = x.float()
        low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)  # aminmax is 15 times slower
        step = ((high - low) / _LEVELS).clamp_min(_LEAST_STEP)
        levels = x.sub(low).div_(step).round_().clamp_(0, _LEVELS).nan_to_num_()  # NaN comes by low
        found = torch.ops.quantized.linear_dynamic(levels, self._packed, reduce_range=True)
        base = low * self._sums
        if self._bias is not None:
            base += self._bias
        return torch.addcmul(base, found, step)

    def outputs_from(self, x: Tensor, start: int) -> Tensor:
        """See :meth:`Linear.outputs_from`."""
        if start not in self._parts:
            bias = None if self._bias is None else self._bias[start:]
            self._parts[start] = Int8Linear(self.weight[start:], bias)
        return self._parts[start](x)  # type: ignore[no-any-return]


def converted(layer: Linear, precision: Precision) -> Linear:
    """A copy of a float32 layer in another format; the layer itself for fp32."""
    if precision == "fp32":
        return layer
    if precision == "int8":
        return Int8Linear(layer.weight, layer.bias)
    dtype = _DTYPES[precision]
    bias = None if layer.bias is None else layer.bias.detach().to(dtype)
    return Linear(layer.weight.detach().to(dtype), bias).requires_grad_(False)


def linears(model: torch.nn.Module) -> Linears:
    """The layers that are converted: all products of the blocks, and the language model's head."""
    found = {name: one for name, one in model.named_modules() if isinstance(one, Linear)}
    if not isinstance(model, Model):
        return found
    kept = ("block_list.", *(("head",) if "generate" in model.spec.tasks else ()))
    return {name: one for name, one in found.items() if name.startswith(kept)}


def set_linears(model: torch.nn.Module, layers: Linears) -> None:
    """Put layers in their places."""
    for name, layer in layers.items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, layer)


def convert(model: torch.nn.Module, precision: Precision) -> Linears:
    """Convert a float32 model, or a block, in place; the layers that it had."""
    before = linears(model)
    set_linears(model, {name: converted(layer, precision) for name, layer in before.items()})
    return before
