"""GPT-2 (Radford et al. 2019): pre-LN, learned positions, tied head.

Its ``Conv1D`` weights are stored (in, out).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from astra_mesh.families.block import Block, FeedForward, Linear, Norm, activation, fold_norm
from astra_mesh.families.config import Config
from astra_mesh.families.model import Model, ModelInput, check_tokens
from astra_mesh.families.spec import ModelSpec
from astra_mesh.families.specs import read_gpt2
from astra_mesh.families.weights import Export, Weights


class GPT2(Model):
    """GPT-2 language model."""

    def __init__(
        self,
        spec: ModelSpec,
        blocks: list[Block],
        wte: Tensor,
        wpe: Tensor,
        ln_f: Norm,
        head: Tensor,
    ) -> None:
        super().__init__(spec, blocks)
        self.wte, self.wpe = nn.Parameter(wte), nn.Parameter(wpe)
        self.ln_f = ln_f
        self.head = Linear(head)
        if head is wte:
            self.head.weight = self.wte

    def count_tokens(self, inputs: ModelInput) -> int:
        """See :meth:`Model.count_tokens`."""
        return check_tokens(self.spec, inputs)

    def embed(self, inputs: ModelInput, start: int, stop: int) -> Tensor:
        """See :meth:`Model.embed`."""
        assert inputs.tokens is not None
        return self.wte[inputs.tokens[start:stop]] + self.wpe[start:stop]

    def final(self, x: Tensor) -> Tensor:
        """See :meth:`Model.final`."""
        return self.ln_f(x)  # type: ignore[no-any-return]

    @property
    def final_norm(self) -> Norm:
        """See :meth:`Model.final_norm`."""
        return self.ln_f

    def logits(self, hidden: Tensor) -> Tensor:
        """See :meth:`Model.logits`."""
        return self.head(hidden)  # type: ignore[no-any-return]


def build(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> GPT2:
    """The model from its config and tensors."""
    spec, config = read_gpt2(values), Config(values)
    weights = Weights(tensors, ("transformer.", ""))
    d, vocab = spec.hidden_size, spec.vocab_size
    eps = config.number("layer_norm_epsilon", default=1e-5)
    act = activation(config.get("activation_function", "gelu_new"))
    wte = weights.take("wte.weight", vocab, d)
    tied = config.get("tie_word_embeddings", True) or not weights.has("lm_head.weight")
    return GPT2(
        spec,
        [_block(spec, weights, f"h.{i}.", eps, act) for i in range(spec.num_hidden_layers)],
        wte,
        weights.take("wpe.weight", spec.max_tokens, d),
        Norm("layer", eps, weights.take("ln_f.weight", d), weights.take("ln_f.bias", d)),
        wte if tied else weights.take("lm_head.weight", vocab, d),
    )


def _block(spec: ModelSpec, weights: Weights, at: str, eps: float, act: Any) -> Block:
    d, f = spec.hidden_size, spec.intermediate_size

    def conv1d(name: str, inner: int, outer: int) -> tuple[Tensor, Tensor]:
        weight = weights.take(f"{at}{name}.weight", inner, outer).T
        return weight, weights.take(f"{at}{name}.bias", outer)

    def norm(name: str) -> tuple[Tensor, Tensor]:
        return weights.take(f"{at}{name}.weight", d), weights.take(f"{at}{name}.bias", d)

    return Block(
        spec,
        post_norm=False,
        norm_1=Norm("layer", eps),
        norm_2=Norm("layer", eps),
        qkv=fold_norm(*conv1d("attn.c_attn", d, 3 * d), *norm("ln_1")),
        out=Linear(*conv1d("attn.c_proj", d, d)),
        ffn=FeedForward(
            fold_norm(*conv1d("mlp.c_fc", d, f), *norm("ln_2")),
            Linear(*conv1d("mlp.c_proj", f, d)),
            act,
            gated=False,
        ),
    )


def export(model: GPT2) -> dict[str, Tensor]:
    """The tensors of a Hugging Face checkpoint of the model."""
    spec, found = model.spec, Export()
    found.put("transformer.wte.weight", model.wte)
    found.put("transformer.wpe.weight", model.wpe)
    for index in range(spec.num_hidden_layers):
        at, block = f"transformer.h.{index}.", model.block(index)
        layers = {
            "attn.c_attn": block.qkv,
            "attn.c_proj": block.out,
            "mlp.c_fc": block.ffn.up,
            "mlp.c_proj": block.ffn.down,
        }
        for name, layer in layers.items():
            found.dense(f"{at}{name}", layer.weight.T, layer.bias)
        for name in ("ln_1", "ln_2"):
            found.unit_norm(f"{at}{name}", spec.hidden_size, bias=True)
    found.put("transformer.ln_f.weight", model.ln_f.weight)
    found.put("transformer.ln_f.bias", model.ln_f.bias)
    if model.head.weight is not model.wte:
        found.put("lm_head.weight", model.head.weight)
    return found.tensors
