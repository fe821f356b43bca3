"""Llama (Touvron et al., arXiv 2307.09288) and its near kin Mistral, Qwen2 and Qwen3.

RMSNorm, rotary positions, grouped-query attention, gated feed-forward, tied or untied head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from astra_mesh.errors import BadBundleError, UnsupportedModelError
from astra_mesh.families.block import (
    Activation,
    Block,
    FeedForward,
    Linear,
    Norm,
    Rope,
    activation,
    fold_norm,
)
from astra_mesh.families.config import Config
from astra_mesh.families.model import Model, ModelInput, check_tokens
from astra_mesh.families.spec import ModelSpec
from astra_mesh.families.specs import read_llama
from astra_mesh.families.weights import Export, Weights


class Llama(Model):
    """Llama-like language model."""

    def __init__(
        self, spec: ModelSpec, blocks: list[Block], embedding: Tensor, norm: Norm, head: Tensor
    ) -> None:
        super().__init__(spec, blocks)
        self.embedding = nn.Parameter(embedding)
        self.norm = norm
        self.head = Linear(head)
        if head is embedding:
            self.head.weight = self.embedding

    def count_tokens(self, inputs: ModelInput) -> int:
        """See :meth:`Model.count_tokens`."""
        return check_tokens(self.spec, inputs)

    def embed(self, inputs: ModelInput, start: int, stop: int) -> Tensor:
        """See :meth:`Model.embed`."""
        assert inputs.tokens is not None
        return self.embedding[inputs.tokens[start:stop]]

    def final(self, x: Tensor) -> Tensor:
        """See :meth:`Model.final`."""
        return self.norm(x)  # type: ignore[no-any-return]

    @property
    def final_norm(self) -> Norm:
        """See :meth:`Model.final_norm`."""
        return self.norm

    def logits(self, hidden: Tensor) -> Tensor:
        """See :meth:`Model.logits`."""
        return self.head(hidden)  # type: ignore[no-any-return]


def inverse_frequency(values: Mapping[str, Any], head_dim: int) -> Tensor:
    """(E / 2,) rotation per position: plain, ``linear``, or ``llama3`` (the Llama 3.1 rule)."""
    scaling = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(scaling, dict):
        raise BadBundleError(f"config.json: rope_scaling must be an object, it is {scaling!r}")
    rope = Config(scaling)
    for part in (rope, Config(values)):
        part.reject("partial_rotary_factor", 1.0)
    base = Config(values).positive("rope_theta", default=rope.positive("rope_theta", default=1e4))
    plain = base ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return plain
    if kind == "linear":
        return plain / rope.positive("factor")
    if kind != "llama3":
        raise UnsupportedModelError(f"config.json: rope_scaling of type {kind!r} is not supported")
    return _llama3_frequency(plain, rope)


def _llama3_frequency(plain: Tensor, rope: Config) -> Tensor:
    factor = rope.positive("factor")
    low, high = rope.positive("low_freq_factor"), rope.positive("high_freq_factor")
    if low >= high:
        raise BadBundleError(f"config.json: low_freq_factor {low} is not below {high}")
    old_context = rope.positive("original_max_position_embeddings")
    turns = old_context * plain / (2 * math.pi)  # full turns within the old context
    smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - smooth) * plain / factor + smooth * plain


def build(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Llama:
    """The model from its config and tensors."""
    spec, config = read_llama(values), Config(values)
    weights = Weights(tensors, ("model.", ""))
    d, vocab = spec.hidden_size, spec.vocab_size
    eps = config.number("rms_norm_eps", default=1e-6)
    act = activation(config.get("hidden_act", "silu"))
    rope = Rope(inverse_frequency(values, spec.head_dim), spec.max_tokens)
    embedding = weights.take("embed_tokens.weight", vocab, d)
    tied = config.get("tie_word_embeddings", False)
    return Llama(
        spec,
        [
            _block(spec, weights, f"layers.{i}.", eps, act, rope, str(values["model_type"]))
            for i in range(spec.num_hidden_layers)
        ],
        embedding,
        Norm("rms", eps, weights.take("norm.weight", d)),
        embedding if tied else weights.take("lm_head.weight", vocab, d),
    )


def _block(
    spec: ModelSpec,
    weights: Weights,
    at: str,
    eps: float,
    act: Activation,
    rope: Rope,
    kind: str,
) -> Block:
    d, f, e = spec.hidden_size, spec.intermediate_size, spec.head_dim

    def dense(name: str, inner: int, outer: int) -> tuple[Tensor, Tensor | None]:
        return (
            weights.take(f"{at}{name}.weight", outer, inner),
            weights.maybe(f"{at}{name}.bias", outer),
        )

    def head_norm(name: str) -> Norm | None:
        if kind != "qwen3":
            return None
        return Norm("rms", eps, weights.take(f"{at}self_attn.{name}.weight", e))

    attention = [f"{at}self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj")]
    if kind == "qwen2":  # its config does not say that these have biases
        weights.take(f"{attention[0]}.bias", spec.q_size)
    sizes = (spec.q_size, spec.kv_size, spec.kv_size)
    return Block(
        spec,
        post_norm=False,
        norm_1=Norm("rms", eps),
        norm_2=Norm("rms", eps),
        qkv=fold_norm(
            *weights.stacked(attention, d, sizes),
            weights.take(f"{at}input_layernorm.weight", d),
            None,
        ),
        out=Linear(*dense("self_attn.o_proj", spec.q_size, d)),
        ffn=FeedForward(
            fold_norm(
                *weights.stacked((f"{at}mlp.gate_proj", f"{at}mlp.up_proj"), d, (f, f)),
                weights.take(f"{at}post_attention_layernorm.weight", d),
                None,
            ),
            Linear(*dense("mlp.down_proj", f, d)),
            act,
            gated=True,
        ),
        rope=rope,
        q_norm=head_norm("q_norm"),
        k_norm=head_norm("k_norm"),
    )


def export(model: Llama) -> dict[str, Tensor]:
    """The tensors of a Hugging Face checkpoint of the model."""
    spec, found = model.spec, Export()
    d, f = spec.hidden_size, spec.intermediate_size
    found.put("model.embed_tokens.weight", model.embedding)
    for index in range(spec.num_hidden_layers):
        at, block = f"model.layers.{index}.", model.block(index)
        names = [f"{at}self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj")]
        sizes = (spec.q_size, spec.kv_size, spec.kv_size)
        found.split(names, sizes, block.qkv.weight, block.qkv.bias)
        found.dense(f"{at}self_attn.o_proj", block.out.weight, block.out.bias)
        for name, norm in (("q_norm", block.q_norm), ("k_norm", block.k_norm)):
            found.put(f"{at}self_attn.{name}.weight", None if norm is None else norm.weight)
        gates = (f"{at}mlp.gate_proj", f"{at}mlp.up_proj")
        found.split(gates, (f, f), block.ffn.up.weight, block.ffn.up.bias)
        found.dense(f"{at}mlp.down_proj", block.ffn.down.weight, block.ffn.down.bias)
        for name in ("input_layernorm", "post_attention_layernorm"):
            found.unit_norm(f"{at}{name}", d, bias=False)
    found.put("model.norm.weight", model.norm.weight)
    if model.head.weight is not model.embedding:
        found.put("lm_head.weight", model.head.weight)
    return found.tensors
