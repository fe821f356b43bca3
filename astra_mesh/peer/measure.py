"""Measuring how fast this device runs a model (Petals measures its servers the same way: once)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from astra_mesh.engine.attention import attend, merge
from astra_mesh.families.model import Model
from astra_mesh.peer.parts import Parts, whole
from astra_mesh.plan.cost import causal_keys
from astra_mesh.quant.codes import Codec
from astra_mesh.wire.messages import Timing

_REPEATS = 3
WINDOW_S = 0.02  # that a steady measurement takes at least
_SIZES = (8, 64, 256)  # tokens that a block is timed with
_ATTENDED = 512  # that attention is timed with, apart: in a block it hides behind the products
_CHECKED = 64  # tokens that figures are checked with
_CHECKS = 3


def best_s(function: Callable[[], object], repeats: int = _REPEATS) -> float:
    """Seconds of the fastest of some calls, never 0."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return max(min(times), 1e-9)


def steady_s(function: Callable[[], object]) -> float:
    """Seconds of a call when it is called on and on, never 0: the better of two windows.

    Where a quota holds this process up, single calls may all fall between its pauses.
    """
    return min(_mean_s(function) for _ in range(2))


def _mean_s(function: Callable[[], object]) -> float:
    began, calls = time.perf_counter(), 0
    while True:
        function()
        calls += 1
        took = time.perf_counter() - began
        if took >= WINDOW_S:
            return max(took / calls, 1e-9)


@torch.inference_mode()
def measure(model: Model, codec: Codec | None, stages: int) -> Timing:
    """Time of one block at three sizes, of attention, of the codec and of the head; well under a
    second for small models. Runs in the compute thread.

    ``codec`` has no codebook; see :mod:`astra_mesh.peer.code_times` for those.
    """
    return whole(measuring(model, codec, stages))


def measuring(model: Model, codec: Codec | None, stages: int) -> Parts[Timing]:
    """As :func:`measure`, in parts."""
    spec = model.spec
    sizes = sorted({min(spec.max_tokens, size) for size in _SIZES})
    times = []
    for size in sizes:
        times.append(_block_time(model, size))
        yield
    per_pair = _pair_time(model)
    yield
    rest = [t - per_pair * _pairs(model, n) for n, t in zip(sizes, times, strict=True)]
    fixed, per_token = _fit(sizes, times, rest)
    encode_s = decode_s = 0.0
    if codec is not None:
        encode_s, decode_s = _codec_time(model, codec, stages)
        yield
    row = torch.randn(1, spec.hidden_size, dtype=dtype_of(model))
    head_s = steady_s(lambda: _head(model, row))
    return Timing(
        fixed_s=fixed,
        per_token_s=per_token,
        per_pair_s=per_pair,
        encode_token_s=encode_s,
        decode_token_s=decode_s,
        head_s=head_s,
        step_s=_step_time(model) + head_s if spec.causal else 0.0,
    )


def comparing(timing: Timing, model: Model) -> Parts[float]:
    """How many times what ``timing`` says a block, or a step of the decode, takes now: what is
    further from 1, the best of some each. Some 0.1 s for small models; 1 where the figures hold.
    """
    tokens = min(_CHECKED, model.spec.max_tokens)
    said = block_s(timing, tokens, _pairs(model, tokens))
    block = yield from _ratio(lambda: _block_time(model, tokens), said)
    if not model.spec.causal:
        return block
    row = torch.randn(1, model.spec.hidden_size, dtype=dtype_of(model))
    step = yield from _ratio(
        lambda: _step_time(model) + steady_s(lambda: _head(model, row)), timing.step_s
    )
    return max(block, step, key=lambda ratio: abs(math.log(ratio)))


def _ratio(measure_s: Callable[[], float], said_s: float) -> Parts[float]:
    times = []
    for _ in range(_CHECKS):
        times.append(measure_s())
        yield
    return min(times) / max(said_s, 1e-9)


def token_s(timing: Timing, model: Model) -> float:
    """Seconds of a token of one block, among as many as a block is timed with at most."""
    tokens = min(model.spec.max_tokens, _SIZES[-1])
    return block_s(timing, tokens, _pairs(model, tokens)) / tokens


def block_s(timing: Timing, tokens: int, pairs: float) -> float:
    """Seconds of one block as a device measured it."""
    return timing.fixed_s + timing.per_token_s * tokens + timing.per_pair_s * pairs


def _pairs(model: Model, tokens: int) -> float:
    """Of a token with one that its query is multiplied with."""
    return tokens * (causal_keys(tokens) if model.spec.causal else tokens)


def dtype_of(model: Model) -> torch.dtype:
    """Of the weights."""
    return next(model.parameters()).dtype


def _head(model: Model, row: torch.Tensor) -> None:
    hidden = model.final(row)
    if "generate" in model.spec.tasks:
        model.logits(hidden)
    elif "classify" in model.spec.tasks:
        model.classify(hidden[0])


def _forward(model: Model, x: torch.Tensor) -> None:
    for index in range(model.spec.num_hidden_layers):
        block = model.block(index)
        query, rows = block.query_key_value(block.normalize(x), 0)
        x = block.mix(x, merge([attend(query, rows, model.spec.causal)]))


def _block_time(model: Model, tokens: int) -> float:
    x = torch.randn(tokens, model.spec.hidden_size, dtype=dtype_of(model))
    return steady_s(lambda: _forward(model, x)) / model.spec.num_hidden_layers


def _step_time(model: Model) -> float:
    x = torch.randn(1, model.spec.hidden_size, dtype=dtype_of(model))
    return steady_s(lambda: _forward(model, x))


def _pair_time(model: Model) -> float:
    """Seconds of a token with one that it attends to, in one block."""
    spec, block = model.spec, model.block(0)
    tokens = min(_ATTENDED, spec.max_tokens)
    x = torch.randn(tokens, spec.hidden_size, dtype=dtype_of(model))
    query, rows = block.query_key_value(block.normalize(x), 0)
    return steady_s(lambda: attend(query, rows, spec.causal)) / _pairs(model, tokens)


def _fit(
    sizes: Sequence[int], times: Sequence[float], rest: Sequence[float]
) -> tuple[float, float]:
    """Non-negative fixed and per-token seconds that explain ``rest``, which is a part of ``times``.

    Errors count in proportion to what was measured.
    """
    weights = 1.0 / np.array(times)
    columns = np.array([np.ones(len(sizes)), sizes]).T * weights[:, None]
    wanted = np.maximum(rest, 0.0) * weights
    if len(sizes) > 1:
        found, *_ = np.linalg.lstsq(columns, wanted, rcond=None)
        if found.min() >= 0:
            return float(found[0]), float(found[1])
    one = [max(0.0, float(column @ wanted / (column @ column))) for column in columns.T]
    left = [float(np.square(wanted - x * c).sum()) for x, c in zip(one, columns.T, strict=True)]
    return (one[0], 0.0) if left[0] < left[1] else (0.0, one[1])


def _codec_time(model: Model, codec: Codec, stages: int) -> tuple[float, float]:
    """Seconds per token of encoding and decoding one block."""
    block = model.spec.num_hidden_layers - 1
    tokens = min(64, model.spec.max_tokens)
    x = torch.randn(tokens, model.spec.hidden_size, dtype=dtype_of(model))
    sender, receiver = codec.sender(stages, None), codec.receiver(stages, None)
    codes = sender.encode(block, x)
    receiver.decode(block, codes)
    encode_s = steady_s(lambda: sender.encode(block, x))
    return encode_s / tokens, steady_s(lambda: receiver.decode(block, codes)) / tokens
