"""BERT (Devlin et al., arXiv 1810.04805): post-LN encoder.

Sequence classification reads the class token, a sentence embedding is the mean of the final rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from astra_mesh.errors import InputError, WrongTaskError
from astra_mesh.families.block import Activation, Block, FeedForward, Linear, Norm, activation
from astra_mesh.families.config import Config
from astra_mesh.families.model import Model, ModelInput, check_tokens, labels_of
from astra_mesh.families.spec import ModelSpec
from astra_mesh.families.specs import read_bert
from astra_mesh.families.weights import Export, Weights


class Bert(Model):
    """BERT encoder with its optional classifier."""

    def __init__(
        self,
        spec: ModelSpec,
        blocks: list[Block],
        *,
        words: Tensor,
        positions: Tensor,
        types: Tensor,
        norm: Norm,
        pooler: Linear | None,
        head: Linear | None,
    ) -> None:
        super().__init__(spec, blocks)
        self.words, self.positions = nn.Parameter(words), nn.Parameter(positions)
        self.types, self.norm = nn.Parameter(types), norm
        self.pooler, self.head = pooler, head

    def count_tokens(self, inputs: ModelInput) -> int:
        """See :meth:`Model.count_tokens`."""
        count = check_tokens(self.spec, inputs)
        types = inputs.token_types
        if types is not None and (
            types.shape[0] != count or int(types.min()) < 0 or int(types.max()) >= len(self.types)
        ):
            raise InputError(
                f"token types must be one of 0..{len(self.types) - 1} for each of {count} tokens"
            )
        return count

    def embed(self, inputs: ModelInput, start: int, stop: int) -> Tensor:
        """See :meth:`Model.embed`."""
        assert inputs.tokens is not None
        kinds = inputs.token_types
        types = self.types[0] if kinds is None else self.types[kinds[start:stop]]
        x = self.words[inputs.tokens[start:stop]] + types + self.positions[start:stop]
        return self.norm(x)  # type: ignore[no-any-return]

    def final(self, x: Tensor) -> Tensor:
        """See :meth:`Model.final`."""
        return x

    def classify(self, pooled: Tensor) -> Tensor:
        """See :meth:`Model.classify`."""
        if self.pooler is None or self.head is None:
            raise WrongTaskError("this bert model has no classifier")
        return self.head(torch.tanh(self.pooler(pooled)))  # type: ignore[no-any-return]


def build(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Bert:
    """The model from its config and tensors."""
    spec, config = read_bert(values), Config(values)
    weights = Weights(_renamed(tensors), ("bert.", ""))
    d, eps = spec.hidden_size, config.number("layer_norm_eps", default=1e-12)
    act = activation(config.get("hidden_act", "gelu"))
    pooler = head = None
    classes = 0
    if "classify" in spec.tasks:
        classes = weights.rows("classifier.weight")
        pooler = Linear(
            weights.take("pooler.dense.weight", d, d), weights.take("pooler.dense.bias", d)
        )
        head = Linear(
            weights.take("classifier.weight", classes, d), weights.take("classifier.bias", classes)
        )
    model = Bert(
        spec,
        [
            _block(spec, weights, f"encoder.layer.{i}.", eps, act)
            for i in range(spec.num_hidden_layers)
        ],
        words=weights.take("embeddings.word_embeddings.weight", spec.vocab_size, d),
        positions=weights.take("embeddings.position_embeddings.weight", spec.max_tokens, d),
        types=weights.take(
            "embeddings.token_type_embeddings.weight", config.size("type_vocab_size", default=2), d
        ),
        norm=_norm(weights, "embeddings.LayerNorm", d, eps),
        pooler=pooler,
        head=head,
    )
    model.labels = labels_of(values.get("id2label"), classes)
    return model


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Old checkpoints (bert-base-uncased among them) call a norm's weight gamma, its bias beta."""
    names = {".gamma": ".weight", ".beta": ".bias"}
    return {
        name.removesuffix(end) + names.get(end, end): tensor
        for name, tensor in tensors.items()
        for end in (name[name.rfind(".") :],)
    }


def _norm(weights: Weights, name: str, d: int, eps: float) -> Norm:
    return Norm("layer", eps, weights.take(f"{name}.weight", d), weights.take(f"{name}.bias", d))


def _block(spec: ModelSpec, weights: Weights, at: str, eps: float, act: Activation) -> Block:
    d, f = spec.hidden_size, spec.intermediate_size

    def dense(name: str, inner: int, outer: int) -> tuple[Tensor, Tensor]:
        return (
            weights.take(f"{at}{name}.weight", outer, inner),
            weights.take(f"{at}{name}.bias", outer),
        )

    attention = [f"{at}attention.self.{name}" for name in ("query", "key", "value")]
    return Block(
        spec,
        post_norm=True,
        norm_1=_norm(weights, f"{at}attention.output.LayerNorm", d, eps),
        norm_2=_norm(weights, f"{at}output.LayerNorm", d, eps),
        qkv=Linear(*weights.stacked(attention, d, (d, d, d))),
        out=Linear(*dense("attention.output.dense", d, d)),
        ffn=FeedForward(
            Linear(*dense("intermediate.dense", d, f)),
            Linear(*dense("output.dense", f, d)),
            act,
            gated=False,
        ),
    )


def export(model: Bert) -> dict[str, Tensor]:
    """The tensors of a Hugging Face checkpoint of the model."""
    spec, found = model.spec, Export()
    d = spec.hidden_size
    found.put("bert.embeddings.word_embeddings.weight", model.words)
    found.put("bert.embeddings.position_embeddings.weight", model.positions)
    found.put("bert.embeddings.token_type_embeddings.weight", model.types)
    _put_norm(found, "bert.embeddings.LayerNorm", model.norm)
    for index in range(spec.num_hidden_layers):
        at, block = f"bert.encoder.layer.{index}.", model.block(index)
        names = [f"{at}attention.self.{name}" for name in ("query", "key", "value")]
        found.split(names, (d, d, d), block.qkv.weight, block.qkv.bias)
        found.dense(f"{at}attention.output.dense", block.out.weight, block.out.bias)
        _put_norm(found, f"{at}attention.output.LayerNorm", block.norm_1)
        found.dense(f"{at}intermediate.dense", block.ffn.up.weight, block.ffn.up.bias)
        found.dense(f"{at}output.dense", block.ffn.down.weight, block.ffn.down.bias)
        _put_norm(found, f"{at}output.LayerNorm", block.norm_2)
    if model.pooler is not None and model.head is not None:
        found.dense("bert.pooler.dense", model.pooler.weight, model.pooler.bias)
        found.dense("classifier", model.head.weight, model.head.bias)
    return found.tensors


def _put_norm(found: Export, name: str, norm: Norm) -> None:
    found.put(f"{name}.weight", norm.weight)
    found.put(f"{name}.bias", norm.bias)
