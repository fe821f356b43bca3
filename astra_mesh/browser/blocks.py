"""A block's steps as graphs, in the cuts in which the engine interleaves them with the mesh.

Everything is two-dimensional, a row for each token, so that a caller cuts rows without knowing
heads: ``n`` (T, D), ``query`` (T, q_size), ``rows`` (S, 2 kv_size: keys, then values), ``out``
(T, q_size) and ``lse`` (T, heads) of an attention over some keys, ``x`` (T, D).

The weights (:mod:`astra_mesh.browser.weights`) are those of one block; a graph is the same for all
blocks of a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import torch
from torch import Tensor

from astra_mesh.browser import onnx
from astra_mesh.browser.graph import Graph
from astra_mesh.browser.tensors import Entry
from astra_mesh.browser.weights import array_of
from astra_mesh.errors import UnsupportedModelError
from astra_mesh.families.block import Block, Norm, activation
from astra_mesh.families.spec import ModelSpec

Entries = Mapping[str, Entry]


def block_graphs(block: Block, entries: Entries) -> dict[str, bytes]:
    """The graphs of a block by name.

    ``norm``  x to n (absent where n is x)
    ``q``, ``kv``  n, and where there are rotations the position of its first row, to query and rows
    ``attend``, ``attend_causal``  query and rows to out and lse; causal: of the same tokens
    ``mix``  x and the merged heads to the block's output

    And what is left of them for a caller that multiplies with the weights by itself:

    ``finish_q``, ``finish``  of ``q`` and ``kv``, where anything follows the product
    ``between``, ``act``, ``end``  of ``mix``: x and the projected heads to ``middle`` and ``n``
    (T, D), ``wide`` (T, up), a product of n, to ``fed`` (T, down), ``middle`` and a product of that
    to ``y``
    """
    spec = block.spec
    found = {} if block.post_norm else {"norm": norm_graph(block.norm_1, spec.hidden_size)}
    found |= {
        "q": _query_graph(block, entries),
        "kv": _key_value_graph(block, entries),
        "attend": _attention_graph(spec, causal=False),
        "mix": _mix_graph(block, entries),
        "between": _between_graph(block, entries),
        "act": _act_graph(block),
        "end": _end_graph(block, entries),
    }
    if block.q_norm is not None or block.rope is not None:
        found["finish_q"] = _finish_query_graph(block, entries)
    if block.k_norm is not None or block.rope is not None:
        found["finish"] = _finish_graph(block, entries)
    if spec.causal:
        found["attend_causal"] = _attention_graph(spec, causal=True)
    return found


def norm_graph(norm: Norm, size: int) -> bytes:
    """The graph of a norm, ``x`` to ``n``; the affine part, if any, is part of the graph."""
    graph = Graph()
    x = graph.input("x", ("T", size))
    weight, bias = (None if t is None else array_of(t) for t in (norm.weight, norm.bias))
    scale = None if weight is None else graph.constant(weight)
    shift = None if bias is None else graph.constant(bias)
    graph.output("n", _norm(graph, x, norm, scale, shift, size), ("T", size))
    return graph.data()


def _norm(graph: Graph, x: str, norm: Norm, scale: str | None, shift: str | None, size: int) -> str:
    """Layer norm or RMS norm over the last dimension."""
    if norm.kind != "rms":
        scale = scale or graph.constant(np.ones(size))
        values = [x, scale] if shift is None else [x, scale, shift]
        return graph.op("LayerNormalization", *values, epsilon=norm.eps)
    square = graph.op("ReduceMean", graph.op("Mul", x, x), axes=[-1], keepdims=1)
    root = graph.op("Sqrt", graph.op("Add", square, graph.constant(norm.eps)))
    bare = graph.op("Div", x, root)
    return bare if scale is None else graph.op("Mul", bare, scale)


def _affine_norm(graph: Graph, x: str, norm: Norm, name: str, size: int) -> str:
    """A norm whose affine part, if any, lies among the weights."""
    scale = graph.weight(f"{name}.weight") if graph.has(f"{name}.weight") else None
    shift = graph.weight(f"{name}.bias") if graph.has(f"{name}.bias") else None
    return _norm(graph, x, norm, scale, shift, size)


def _query_graph(block: Block, entries: Entries) -> bytes:
    spec, graph = block.spec, Graph(entries)
    n = graph.input("n", ("T", spec.hidden_size))
    query = _finish_query(graph, block, graph.linear(n, "q", "scale_1"))
    graph.output("query", query, ("T", spec.q_size))
    return graph.data()


def _finish_query_graph(block: Block, entries: Entries) -> bytes:
    spec, graph = block.spec, Graph(entries)
    raw = graph.input("raw", ("T", spec.q_size))
    graph.output("query", _finish_query(graph, block, raw), ("T", spec.q_size))
    return graph.data()


def _finish_query(graph: Graph, block: Block, raw: str) -> str:
    spec = block.spec
    heads = graph.shaped(raw, 0, spec.num_attention_heads, spec.head_dim)
    return graph.shaped(_finish(graph, block, heads, block.q_norm, "q_norm"), 0, -1)


def _key_value_graph(block: Block, entries: Entries) -> bytes:
    spec, graph = block.spec, Graph(entries)
    n = graph.input("n", ("T", spec.hidden_size))
    raw = graph.linear(n, "kv", "scale_1")
    graph.output("rows", _finish_rows(graph, block, raw), ("T", 2 * spec.kv_size))
    return graph.data()


def _finish_graph(block: Block, entries: Entries) -> bytes:
    spec, graph = block.spec, Graph(entries)
    raw = graph.input("raw", ("T", 2 * spec.kv_size))
    graph.output("rows", _finish_rows(graph, block, raw), ("T", 2 * spec.kv_size))
    return graph.data()


def _finish_rows(graph: Graph, block: Block, raw: str) -> str:
    if block.k_norm is None and block.rope is None:
        return raw
    spec = block.spec
    key, value = graph.ops("Split", 2, raw, axis=1)
    heads = graph.shaped(key, 0, spec.num_key_value_heads, spec.head_dim)
    key = graph.shaped(_finish(graph, block, heads, block.k_norm, "k_norm"), 0, -1)
    return graph.op("Concat", key, value, axis=1)


def _finish(graph: Graph, block: Block, heads: str, norm: Norm | None, name: str) -> str:
    """Head norm and rotation of (T, H, E)."""
    size = block.spec.head_dim
    if norm is not None:
        heads = _affine_norm(graph, heads, norm, name, size)
    if block.rope is None:
        return heads
    start = graph.input("start", (), onnx.INT64)
    cos, sin = _angles(graph, heads, start, block.rope.inverse_frequency)
    low, high = graph.ops("Split", 2, heads, axis=2)
    turned = graph.op("Concat", graph.op("Neg", high), low, axis=2)
    return graph.op("Add", graph.op("Mul", heads, cos), graph.op("Mul", turned, sin))


def _angles(graph: Graph, heads: str, start: str, frequency: Tensor) -> tuple[str, str]:
    """Cosine and sine (T, 1, E) of the rotations of T tokens from position ``start`` on."""
    tokens = graph.op("Gather", graph.op("Shape", heads), graph.constant(0, "int64"))
    one = graph.constant(1, "int64")
    places = graph.op("Range", start, graph.op("Add", start, tokens), one)
    column = graph.shaped(graph.op("Cast", places, to=onnx.FLOAT), -1, 1, 1)
    both = torch.cat([frequency, frequency]).numpy()
    angles = graph.op("Mul", column, graph.constant(both))
    return graph.op("Cos", angles), graph.op("Sin", angles)


def _attention_graph(spec: ModelSpec, causal: bool) -> bytes:
    graph, groups, size = Graph(), spec.heads_per_kv, spec.head_dim
    heads, keys = spec.num_attention_heads, spec.num_key_value_heads
    query = graph.input("query", ("T", spec.q_size))
    rows = graph.input("rows", ("T" if causal else "S", 2 * spec.kv_size))
    scaled = graph.op("Mul", query, graph.constant(1 / math.sqrt(size)))
    scaled = graph.turned(graph.shaped(scaled, 0, heads, size), 1, 0, 2)  # (H, T, E)
    key, value = graph.ops("Split", 2, rows, axis=1)
    key = graph.turned(graph.shaped(key, 0, keys, size), 1, 2, 0)  # (H_kv, E, S)
    value = graph.turned(graph.shaped(value, 0, keys, size), 1, 0, 2)  # (H_kv, S, E)
    if groups > 1:
        scaled = graph.shaped(scaled, keys, groups, -1, size)
        key, value = (graph.op("Unsqueeze", one, graph.ints(1)) for one in (key, value))
    scores = graph.op("MatMul", scaled, key)  # (H_kv, [G,] T, S)
    if causal:
        scores = _masked(graph, scores)
    most = graph.op("ReduceMax", scores, axes=[-1], keepdims=1)
    shares = graph.op("Exp", graph.op("Sub", scores, most))
    whole = graph.op("ReduceSum", shares, graph.ints(-1), keepdims=1)
    out = graph.op("Div", graph.op("MatMul", shares, value), whole)
    lse = graph.op("Add", graph.op("Log", whole), most)
    out = graph.turned(graph.shaped(out, heads, -1, size), 1, 0, 2)
    graph.output("out", graph.shaped(out, 0, -1), ("T", spec.q_size))
    graph.output("lse", graph.turned(graph.shaped(lse, heads, -1), 1, 0), ("T", heads))
    return graph.data()


def _masked(graph: Graph, scores: str) -> str:
    """Scores (..., T, T) without those of later tokens."""
    size = graph.op("Gather", graph.op("Shape", scores), graph.constant(-1, "int64"))
    places = graph.op("Range", graph.constant(0, "int64"), size, graph.constant(1, "int64"))
    later = graph.op(
        "Less",
        graph.op("Unsqueeze", places, graph.ints(1)),
        graph.op("Unsqueeze", places, graph.ints(0)),
    )
    return graph.op("Where", later, graph.constant(-np.inf), scores)


def _mix_graph(block: Block, entries: Entries) -> bytes:
    spec, graph = block.spec, Graph(entries)
    x = graph.input("x", ("T", spec.hidden_size))
    attended = graph.linear(graph.input("attended", ("T", spec.q_size)), "out")
    middle, n = _between(graph, block, x, attended)
    fed = _act(graph, block, graph.linear(n, "up", "scale_2"))
    graph.output(
        "y", _end(graph, block, middle, graph.linear(fed, "down")), ("T", spec.hidden_size)
    )
    return graph.data()


def _between_graph(block: Block, entries: Entries) -> bytes:
    graph, shape = Graph(entries), ("T", block.spec.hidden_size)
    middle, n = _between(graph, block, graph.input("x", shape), graph.input("attended", shape))
    graph.output("middle", middle, shape)
    graph.output("n", n, shape)
    return graph.data()


def _between(graph: Graph, block: Block, x: str, attended: str) -> tuple[str, str]:
    """What goes on beside the layers between, and what goes into them."""
    size, middle = block.spec.hidden_size, graph.op("Add", x, attended)
    if block.post_norm:
        middle = _affine_norm(graph, middle, block.norm_1, "norm_1", size)
        return middle, middle
    return middle, _affine_norm(graph, middle, block.norm_2, "norm_2", size)


def _act_graph(block: Block) -> bytes:
    graph, ffn = Graph(), block.ffn
    wide = graph.input("wide", ("T", ffn.up.weight.shape[0]))
    graph.output("fed", _act(graph, block, wide), ("T", ffn.down.weight.shape[1]))
    return graph.data()


def _act(graph: Graph, block: Block, wide: str) -> str:
    act = _activation(block)
    if not block.ffn.gated:
        return act(graph, wide)
    gate, value = graph.ops("Split", 2, wide, axis=1)
    return graph.op("Mul", act(graph, gate), value)


def _end_graph(block: Block, entries: Entries) -> bytes:
    graph, shape = Graph(entries), ("T", block.spec.hidden_size)
    y = _end(graph, block, graph.input("middle", shape), graph.input("down", shape))
    graph.output("y", y, shape)
    return graph.data()


def _end(graph: Graph, block: Block, middle: str, down: str) -> str:
    y = graph.op("Add", middle, down)
    if block.post_norm:
        y = _affine_norm(graph, y, block.norm_2, "norm_2", block.spec.hidden_size)
    return y


def _gelu(graph: Graph, x: str) -> str:
    error = graph.op("Erf", graph.op("Div", x, graph.constant(math.sqrt(2))))
    return graph.op("Mul", _half(graph, x), graph.op("Add", error, graph.constant(1.0)))


def _gelu_tanh(graph: Graph, x: str) -> str:
    cube = graph.op("Mul", graph.op("Mul", x, x), x)
    inner = graph.op("Add", x, graph.op("Mul", cube, graph.constant(0.044715)))
    tanh = graph.op("Tanh", graph.op("Mul", inner, graph.constant(math.sqrt(2 / math.pi))))
    return graph.op("Mul", _half(graph, x), graph.op("Add", tanh, graph.constant(1.0)))


def _half(graph: Graph, x: str) -> str:
    return graph.op("Mul", x, graph.constant(0.5))


def _quick_gelu(graph: Graph, x: str) -> str:
    return graph.op("Mul", x, graph.op("Sigmoid", graph.op("Mul", x, graph.constant(1.702))))


def _silu(graph: Graph, x: str) -> str:
    return graph.op("Mul", x, graph.op("Sigmoid", x))


def _relu(graph: Graph, x: str) -> str:
    return graph.op("Relu", x)


_ACTIVATIONS: Final[Mapping[str, Callable[[Graph, str], str]]] = {
    "gelu": _gelu,
    "gelu_new": _gelu_tanh,
    "quick_gelu": _quick_gelu,
    "relu": _relu,
    "silu": _silu,
}


def _activation(block: Block) -> Callable[[Graph, str], str]:
    """The graph of the block's function; UnsupportedModelError where there is none."""
    for name, build in _ACTIVATIONS.items():
        if activation(name) is block.ffn.act:
            return build
    raise UnsupportedModelError("this model's activation has no graph for browsers")
