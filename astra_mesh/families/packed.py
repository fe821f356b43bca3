"""Layers whose weights lie as oneDNN's kernels read them.

torch's own ``linear`` brings a weight into that order at every call, which costs the more the
fewer tokens a device has. Measured on two EPYC cores, one thread, 3072 x 768: 49 tokens in bfloat16
1.8 ms, packed 1.3 ms; 256 tokens in float32 13.2 ms, packed 11.2 ms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import torch
from torch import Tensor

from astra_mesh.families.block import Activation, Linear, activation
from astra_mesh.families.precision import linears, set_linears
from astra_mesh.memory import keep_few_kernels

Packing = Literal["none", "apart", "fused"]  # weights, and activations within the product or not

_TOKENS: Final = 256  # that the order is chosen for; it serves other counts as well

# What oneDNN applies to outputs while they are in the cache. Measured on two Xeon cores with AMX,
# one thread, 1,024 tokens, 768 to 3,072: GELU by tanh 1.3 ms of 39.6 in float32, where it takes 9.3
# by itself, and 4.4 of 8.8 in bfloat16, where it takes 9.5.
_FUSED: Final[Mapping[Activation, tuple[str, str]]] = {
    activation("gelu"): ("gelu", "none"),
    activation("gelu_new"): ("gelu", "tanh"),
    activation("relu"): ("relu", ""),
}

keep_few_kernels()


class PackedLinear(Linear):
    """``x @ weight.T + bias`` with a packed weight; no plain copy of it is kept.

    ``fuses`` says whether activations are applied within the product.
    """

    fuses = True

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        torch.nn.Module.__init__(self)
        weight = weight.detach().contiguous()
        self._dtype = weight.dtype
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, _TOKENS)
        self._bias = None if bias is None else bias.detach()
        self._parts: dict[int, PackedLinear] = {}

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """(out, in), made anew at each call."""
        return self._packed.to_dense()  # type: ignore[no-any-return]

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """(out,) or None."""
        return self._bias

    @property
    def dtype(self) -> torch.dtype:
        """Of what comes out."""
        return self._dtype

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return self._pointwise(x, "none", "")

    def activated(self, x: Tensor, act: Activation) -> Tensor:
        """See :meth:`Linear.activated`."""
        if not self.fuses or not can_fuse(act):
            return act(self(x))
        return self._pointwise(x, *_FUSED[act])

    def _pointwise(self, x: Tensor, name: str, algorithm: str) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(  # type: ignore[no-any-return]
            x.to(self._dtype), self._packed, self._bias, name, [], algorithm
        )

    def outputs_from(self, x: Tensor, start: int) -> Tensor:
        """See :meth:`Linear.outputs_from`; the part is packed once more at the first call."""
        if start not in self._parts:
            bias = None if self._bias is None else self._bias[start:]
            self._parts[start] = PackedLinear(self.weight[start:], bias)
        return self._parts[start](x)  # type: ignore[no-any-return]


def can_fuse(act: Activation) -> bool:
    """Whether there is a kernel that applies it within a product."""
    return act in _FUSED


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this torch and this processor have the kernels for it."""
    if not torch.backends.mkldnn.is_available() or not hasattr(
        torch.ops.mkldnn, "_reorder_linear_weight"
    ):
        return False
    if dtype == torch.float32:
        return True
    return dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def packed(layer: Linear, *, fuses: bool = True) -> Linear:
    """The layer, packed if it can be; itself where it cannot, or where it is packed already."""
    if type(layer) is not Linear or not can_pack(layer.dtype):
        return layer
    found = PackedLinear(layer.weight, layer.bias)
    found.fuses = fuses
    return found


def pack(model: torch.nn.Module, *, fuses: bool = True, doubles: bool = True) -> None:
    """Pack the layers of a model, or of a block, in place.

    A head that shares its weights with the embedding stays: packing would double them. Without
    ``doubles`` projections to queries, keys and values stay, too: their parts for keys and values
    are packed once more in each block where codes are decoded without tables.
    """
    layers = linears(model)
    own = set(map(id, layers.values()))
    shared = {
        id(tensor)
        for module in model.modules()
        if id(module) not in own
        for tensor in module.parameters(recurse=False)
    }
    set_linears(
        model,
        {
            name: packed(layer, fuses=fuses)
            for name, layer in layers.items()
            if type(layer) is Linear and id(layer.weight) not in shared
            if doubles or not f".{name}".endswith(".qkv")
        },
    )
