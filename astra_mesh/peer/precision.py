"""Which number format this device runs a model in: the fastest that keeps its answers."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from astra_mesh.engine.reference import hidden_rows, pooled, run_solo
from astra_mesh.families.block import Linear
from astra_mesh.families.model import Model, ModelInput
from astra_mesh.families.packed import PackedLinear, Packing, can_fuse, pack, packed
from astra_mesh.families.precision import PRECISIONS, Precision, convert, set_linears
from astra_mesh.peer.config import Wanted
from astra_mesh.peer.measure import best_s

CLOSE: Final = 0.003  # nats, or 1 - cosine: well below what codes cost (docs/fidelity.md)
GAIN: Final = 0.9  # of the time in fp32 that another format may take, or it is not worth it
PACKING_GAIN: Final = 0.98  # of the time of plain weights that packed ones may take
_TOKENS: Final = 256  # that a block is timed with
_BUDGET_S: Final = 1.0  # for comparing answers
_LEAST, _MOST = 16, 64  # tokens that are compared
_INPUTS: Final = 4  # where an input has one answer
_SLOW: Final = 1.5  # times fp32: not measured again
_SEED: Final = 0


@dataclass(frozen=True)
class Chosen:
    """A format, and what it brings on this device."""

    precision: Precision = "fp32"
    speedup: float = 1.0  # of a block, over fp32
    divergence: float = 0.0  # of the answers from those in fp32: mean KL in nats, or 1 - cosine


@torch.inference_mode()
def choose_precision(model: Model, wanted: Wanted = "auto") -> Chosen:
    """Convert a float32 model in place, and say to what.

    ``auto`` takes the fastest format whose answers to made-up inputs stay within :data:`CLOSE` of
    fp32's; a named one is taken as it is. Runs in the compute thread, about a second.
    """
    if wanted == "fp32":
        return Chosen()
    began = time.perf_counter()
    whole = _block_s(model, "fp32")
    names = PRECISIONS[1:] if wanted == "auto" else (wanted,)
    times = {name: _block_s(model, name, whole) for name in names}
    blocks = model.spec.num_hidden_layers
    tokens = _compared(model, whole * blocks, _BUDGET_S - (time.perf_counter() - began))
    inputs = _made_up(model, tokens)
    truth = [_answers(model, one) for one in inputs]
    for name in sorted(times, key=lambda one: times[one]):
        if wanted == "auto" and times[name] > GAIN * whole:
            break
        before = convert(model, name)
        divergence = _divergence(model, [_answers(model, one) for one in inputs], truth)
        found = Chosen(name, whole / times[name], divergence)
        if wanted != "auto" or found.divergence <= CLOSE:
            return found
        set_linears(model, before)
    return Chosen()


@torch.inference_mode()
def pack_if_faster(model: Model, *, doubles: bool = True) -> Packing:
    """Pack the weights of a model (:func:`astra_mesh.families.packed.pack`) where that makes its
    largest product faster on this device, with the activation after it; how. Runs in the compute
    thread.
    """
    ffn = model.block(0).ffn
    layer, other = ffn.up, packed(ffn.up)
    if not isinstance(other, PackedLinear) or other is layer:
        return "none"
    rows = min(_TOKENS, model.spec.max_tokens)
    x = torch.randn(rows, model.spec.hidden_size).to(layer.dtype)

    def took_s(up: Linear) -> float:
        return best_s(lambda: up(x) if ffn.gated else up.activated(x, ffn.act))

    found: Packing = "fused"
    best = took_s(other)
    if not ffn.gated and can_fuse(ffn.act):
        other.fuses = False
        if (apart_s := took_s(other)) < best:
            found, best = "apart", apart_s
    if best > PACKING_GAIN * took_s(layer):
        return "none"
    pack(model, fuses=found == "fused", doubles=doubles)
    return found


def _block_s(model: Model, precision: Precision, known_s: float = math.inf) -> float:
    """Seconds of one block; one that is much slower than ``known_s`` is timed once only."""
    block = copy.copy(model.block(0))
    block._modules = dict(block._modules)  # convert() puts other layers into the copy only
    block._modules["ffn"] = feed = copy.copy(model.block(0).ffn)
    feed._modules = dict(feed._modules)
    convert(block, precision)
    x = torch.randn(
        min(_TOKENS, model.spec.max_tokens),
        model.spec.hidden_size,
        generator=torch.Generator().manual_seed(_SEED),
    )
    first = best_s(lambda: block(x, model.spec.causal), 1)
    if first > 4 * _SLOW * known_s:
        return first
    return best_s(lambda: block(x, model.spec.causal))


def _compared(model: Model, forward_s: float, left_s: float) -> int:
    """Tokens that three forward passes can afford, where a pass of _TOKENS takes so long."""
    per_token = forward_s / min(_TOKENS, model.spec.max_tokens)
    able = int(max(left_s, 0.0) / (3 * per_token))
    return min(max(able, _LEAST), _MOST, model.spec.max_tokens)


def _made_up(model: Model, tokens: int) -> list[ModelInput]:
    """One text for a model that answers at each token, else some inputs."""
    drawn = torch.Generator().manual_seed(_SEED)
    shape, vocab = model.image_shape, model.spec.vocab_size
    if shape is not None:
        return [ModelInput(pixels=torch.randn(shape, generator=drawn)) for _ in range(_INPUTS)]
    count = 1 if "generate" in model.spec.tasks else _INPUTS
    size = max(1, tokens // count)
    return [ModelInput(tokens=torch.randint(vocab, (size,), generator=drawn)) for _ in range(count)]


def _answers(model: Model, inputs: ModelInput) -> Tensor:
    """Log-probabilities (T, vocab) or (1, classes), or a vector (1, D) of a model without head."""
    if "generate" in model.spec.tasks:
        return model.logits(hidden_rows([run_solo(model, inputs, "all")])).float().log_softmax(-1)
    if "classify" in model.spec.tasks:
        logits = model.classify(pooled([run_solo(model, inputs, "class")]))
        return logits.float().log_softmax(-1)[None]
    return pooled([run_solo(model, inputs, "mean")]).float()[None]


def _divergence(model: Model, found: list[Tensor], truth: list[Tensor]) -> float:
    """Mean over all rows: KL in nats, or 1 - cosine of vectors."""
    ours, theirs = torch.cat(found), torch.cat(truth)
    if not bool(torch.isfinite(ours).all()):
        return math.inf
    if "generate" in model.spec.tasks or "classify" in model.spec.tasks:
        kl = F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
        return max(0.0, float(kl))
    return max(0.0, 1.0 - float(torch.cosine_similarity(ours, theirs).mean()))
