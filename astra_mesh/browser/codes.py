"""Coding one block's input with a codebook, as graphs.

``encode``   n (and what the block is predicted from) to codes, and what both ends keep
``rebuild``  codes (and the same) to n^, and what both ends keep
``predict``  what the block is predicted from to its prediction, where codes did not come

Codes are (T, G) int32, one array for each stage: ``codes.0``, ``codes.1``, ... ``past`` is
(T, sources * D), see :class:`astra_mesh.quant.coders.Memory`; ``kept`` is (T, D).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from torch import Tensor

from astra_mesh.browser import onnx
from astra_mesh.browser.graph import Graph
from astra_mesh.browser.tensors import Array, Packed
from astra_mesh.quant.codebook import UNLIMITED, BlockBook
from astra_mesh.quant.coders import BlockCoder, StageCoder

_INT: Final = onnx.INT32


def book_tensors(book: BlockBook) -> dict[str, Array]:
    """The tensors of a block's quantizer, coordinates arranged as the first stage cuts them.

    What the codebook's file has as float16 stays so.
    """
    coder = BlockCoder(book)
    found: dict[str, Array] = {}

    def put(name: str, tensor: Tensor | None, kind: str = "float16") -> None:
        if tensor is not None:
            found[name] = tensor.numpy().astype(kind)

    put("center", book.center, "float32")
    put("analysis", coder.analysis)
    put("synthesis", coder.synthesis)
    if book.predict is not None:
        put("predict", book.predict.flatten(0, 1))
    for index, stage in enumerate(coder.stages):
        put(f"codewords.{index}", stage.codewords)
        put(f"order.{index}", stage.cut.order, "int32")
        put(f"inverse.{index}", stage.cut.inverse, "int32")
    return found


def book_graphs(book: BlockBook, packed: Packed, hidden: int, history: int) -> dict[str, bytes]:
    """The graphs of a block's quantizer, whose tensors may be those of more stages than it has."""
    made = _BookGraphs(book, packed, hidden, history)
    found = {"encode": made.encode(), "rebuild": made.rebuild()}
    if book.predict is not None:
        found["predict"] = made.predict()
    return found


class _BookGraphs:
    def __init__(self, book: BlockBook, packed: Packed, hidden: int, history: int) -> None:
        self._book, self._entries = book, packed.entries
        self._hidden, self._history = hidden, history
        self._stages = BlockCoder(book).stages

    def encode(self) -> bytes:
        graph = Graph(self._entries)
        y = graph.input("n", ("T", self._hidden))
        predicted = self._prediction(graph)
        if predicted is not None:
            y = graph.op("Sub", y, predicted)
        if self._book.analysis is not None:
            y = graph.op("Gemm", y, graph.weight("analysis"), transB=1)
        whole, last = None, len(self._stages) - 1
        for index, stage in enumerate(self._stages):
            codes = _nearest(graph, y, index, stage)
            graph.output(f"codes.{index}", codes, ("T", stage.cut.groups), _INT)
            if index == last and not self._history:
                break  # nothing more is needed
            words = _words(graph, codes, index, stage)
            whole = words if whole is None else graph.op("Add", whole, words)
            y = graph.op("Sub", y, words)
        if whole is not None and self._history:
            self._keep(graph, predicted, self._added(graph, whole))
        return graph.data()

    def rebuild(self) -> bytes:
        graph = Graph(self._entries)
        whole = None
        for index, stage in enumerate(self._stages):
            codes = graph.input(f"codes.{index}", ("T", stage.cut.groups), _INT)
            words = _words(graph, codes, index, stage)
            whole = words if whole is None else graph.op("Add", whole, words)
        assert whole is not None
        added, predicted = self._added(graph, whole), self._prediction(graph)
        n = added if predicted is None else graph.op("Add", predicted, added)
        graph.output("n", n, ("T", self._hidden))
        if self._history:
            self._keep(graph, predicted, added)
        return graph.data()

    def predict(self) -> bytes:
        graph = Graph(self._entries)
        predicted = self._prediction(graph)
        assert predicted is not None
        graph.output("n", predicted, ("T", self._hidden))
        return graph.data()

    def _prediction(self, graph: Graph) -> str | None:
        """(T, D), or (D,) where it is the same for all tokens; None without coordinates."""
        if self._book.center is None:
            return None
        center = graph.weight("center")
        if self._book.predict is None:
            return center
        width = self._book.predict.shape[0] * self._hidden
        past = graph.input("past", ("T", width))
        return graph.op("Gemm", past, graph.weight("predict"), center)

    def _added(self, graph: Graph, whole: str) -> str:
        if self._book.synthesis is None:
            return whole
        return graph.op("Gemm", whole, graph.weight("synthesis"), transB=1)

    def _keep(self, graph: Graph, predicted: str | None, added: str) -> None:
        if self._history == UNLIMITED:
            assert predicted is not None
            added = graph.op("Add", predicted, added)
        graph.output("kept", added, ("T", self._hidden))


def _nearest(graph: Graph, y: str, index: int, stage: StageCoder) -> str:
    """Codes (T, G) of coordinates (T, R)."""
    groups, size, width = stage.codewords.shape
    words = graph.weight(f"codewords.{index}")
    squares = graph.op("ReduceSumSquare", words, axes=[-1], keepdims=0)
    offset = graph.op("Mul", squares, graph.constant(-0.5))  # (G, K)
    y = _gather(graph, y, f"order.{index}")
    if groups == 1:
        flat = graph.shaped(words, size, width)
        scores = graph.op("Gemm", y, flat, graph.shaped(offset, size), transB=1)
        codes = graph.op("ArgMax", scores, axis=-1, keepdims=1)
    else:
        y = graph.turned(graph.shaped(y, -1, groups, width), 1, 0, 2)
        scores = graph.op("MatMul", y, graph.turned(words, 0, 2, 1))
        scores = graph.op("Add", scores, graph.shaped(offset, groups, 1, size))
        codes = graph.turned(graph.op("ArgMax", scores, axis=-1, keepdims=0), 1, 0)
    return graph.op("Cast", codes, to=_INT)


def _words(graph: Graph, codes: str, index: int, stage: StageCoder) -> str:
    """Coordinates (T, R) of codes (T, G)."""
    groups, size, width = stage.codewords.shape
    flat = graph.shaped(graph.weight(f"codewords.{index}"), groups * size, width)
    if groups > 1:
        codes = graph.op("Add", codes, graph.constant(np.arange(groups) * size, "int32"))
    found = graph.op("Gather", flat, codes, axis=0)  # (T, G, W)
    return _gather(graph, graph.shaped(found, 0, -1), f"inverse.{index}")


def _gather(graph: Graph, y: str, name: str) -> str:
    """Columns of ``y`` (T, R) in another order; the number R stands for zeros."""
    if not graph.has(name):
        return y
    wide = graph.op("Pad", y, graph.ints(0, 0, 0, 1))
    return graph.op("Gather", wide, graph.weight(name), axis=1)
