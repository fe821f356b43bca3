"""Putting an ONNX graph together, one operation after the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from astra_mesh.browser import onnx
from astra_mesh.browser.onnx import Attribute, Shape
from astra_mesh.browser.tensors import Entry

OPSET: Final = 17
WEIGHTS: Final = "weights"  # what the graphs call the bytes that their tensors lie in


class Graph:
    """A graph that grows. Values are named by strings.

    Args:
        entries: where the tensors that :meth:`weight` names lie; they are not part of the graph.
    """

    def __init__(self, entries: Mapping[str, Entry] | None = None) -> None:
        self._entries = entries or {}
        self._nodes: list[bytes] = []
        self._tensors: dict[str, bytes] = {}
        self._inputs: list[bytes] = []
        self._outputs: list[bytes] = []
        self._casts: dict[str, str] = {}

    def input(self, name: str, shape: Shape, kind: int = onnx.FLOAT) -> str:
        """A value that callers give."""
        self._inputs.append(onnx.value(name, kind, shape))
        return name

    def output(self, name: str, value: str, shape: Shape, kind: int = onnx.FLOAT) -> None:
        """A value that callers get."""
        self._nodes.append(onnx.node("Identity", [value], [name], {}))
        self._outputs.append(onnx.value(name, kind, shape))

    def constant(self, value: object, kind: str = "float32") -> str:
        """A small tensor that is part of the graph."""
        name = f"c{len(self._tensors)}"
        self._tensors[name] = onnx.tensor(name, np.array(value, kind))
        return name

    def ints(self, *values: int) -> str:
        """A constant list of integers."""
        return self.constant(values, "int64")

    def has(self, name: str) -> bool:
        """Whether there is such a weight."""
        return name in self._entries

    def weight(self, name: str) -> str:
        """A tensor of the weights, as float32."""
        if name not in self._casts:
            value = self._stored(name)
            if self.has(f"{name}.rest"):
                steps = (self._stored(f"{name}.{part}") for part in ("rest", "step"))
                value = self.op("Add", value, self.op("Mul", *steps))
            self._casts[name] = value
        return self._casts[name]

    def _stored(self, name: str) -> str:
        entry = self._entries[name]
        self._tensors[name] = onnx.external(entry, WEIGHTS)
        return name if entry.dtype == "f4" else self.op("Cast", name, to=onnx.FLOAT)

    def op(self, kind: str, *values: str, **attributes: Attribute) -> str:
        """The result of one operation."""
        return self.ops(kind, 1, *values, **attributes)[0]

    def ops(self, kind: str, count: int, *values: str, **attributes: Attribute) -> list[str]:
        """The results of one operation."""
        names = [f"v{len(self._nodes)}.{i}" for i in range(count)]
        self._nodes.append(onnx.node(kind, values, names, attributes))
        return names

    def shaped(self, value: str, *shape: int) -> str:
        """Another shape; 0 keeps a size, -1 is what is left."""
        return self.op("Reshape", value, self.ints(*shape))

    def turned(self, value: str, *order: int) -> str:
        """Dimensions in another order."""
        return self.op("Transpose", value, perm=list(order))

    def linear(self, x: str, name: str, scale: str | None = None) -> str:
        """(T, in) to (T, out): ``name.weight``, its columns times the weight ``scale``, and
        ``name.bias`` where there is one."""
        weight = self.weight(f"{name}.weight")
        if scale is not None and self.has(scale):
            weight = self.op("Mul", weight, self.weight(scale))
        bias = [self.weight(f"{name}.bias")] if self.has(f"{name}.bias") else []
        return self.op("Gemm", x, weight, *bias, transB=1)

    def data(self) -> bytes:
        """The graph as a file."""
        tensors = list(self._tensors.values())
        return onnx.model(self._nodes, tensors, self._inputs, self._outputs, OPSET)
