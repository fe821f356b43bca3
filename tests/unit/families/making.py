"""Small random models of every family, as configs and tensors in Hugging Face layout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from astra_mesh.families import Model, ModelInput, build_model

D, F, VOCAB, CONTEXT, BLOCKS = 32, 48, 61, 48, 3
Tensors = dict[str, Tensor]

CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": D,
        "n_inner": F,
        "n_layer": BLOCKS,
        "n_head": 4,
        "n_positions": CONTEXT,
        "vocab_size": VOCAB,
    },
    "llama": {
        "model_type": "llama",
        "hidden_size": D,
        "intermediate_size": F,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "vocab_size": VOCAB,
    },
    "vit": {
        "model_type": "vit",
        "hidden_size": D,
        "intermediate_size": F,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 4,
        "image_size": [12, 20],
        "patch_size": 4,
        "id2label": {"0": "cat", "1": "dog", "2": "cow"},
    },
    "bert": {
        "model_type": "bert",
        "architectures": ["BertForSequenceClassification"],
        "hidden_size": D,
        "intermediate_size": F,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
        "vocab_size": VOCAB,
    },
}
CONFIGS["qwen2"] = CONFIGS["llama"] | {"model_type": "qwen2"}
CONFIGS["qwen3"] = CONFIGS["llama"] | {"model_type": "qwen3", "head_dim": 12}
KINDS = tuple(CONFIGS)
CAUSAL = tuple(kind for kind in KINDS if kind not in ("vit", "bert"))


def make_tensors(kind: str, seed: int = 0) -> Tensors:
    """Random weights for ``CONFIGS[kind]``, not near zero, so that every part of a block counts."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"gpt2": _gpt2, "vit": _vit, "bert": _bert}.get(kind, lambda: _llama(kind))()

    def value(name: str, shape: tuple[int, ...]) -> Tensor:
        noise = torch.randn(shape, generator=generator)
        is_norm = len(shape) == 1 and name.endswith("weight")
        return 1 + 0.3 * noise if is_norm else noise * 0.3

    return {name: value(name, shape) for name, shape in shapes.items()}


def make_model(kind: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> Model:
    """A model of ``CONFIGS[kind]``."""
    return build_model(CONFIGS[kind], make_tensors(kind, seed), dtype)


def make_input(model: Model, tokens: int = 23, seed: int = 0) -> ModelInput:
    """A random input; images always have the model's own number of tokens."""
    generator = torch.Generator().manual_seed(seed)
    if model.spec.family == "vit":
        return ModelInput(pixels=torch.randn(3, 12, 20, generator=generator))
    return ModelInput(tokens=torch.randint(model.spec.vocab_size, (tokens,), generator=generator))


def _gpt2() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (VOCAB, D),
        "transformer.wpe.weight": (CONTEXT, D),
        "transformer.ln_f.weight": (D,),
        "transformer.ln_f.bias": (D,),
    }
    for i in range(BLOCKS):
        at = f"transformer.h.{i}."
        for name, inner, outer in (
            ("attn.c_attn", D, 3 * D),
            ("attn.c_proj", D, D),
            ("mlp.c_fc", D, F),
            ("mlp.c_proj", F, D),
        ):
            shapes |= {f"{at}{name}.weight": (inner, outer), f"{at}{name}.bias": (outer,)}
        for name in ("ln_1", "ln_2"):
            shapes |= {f"{at}{name}.weight": (D,), f"{at}{name}.bias": (D,)}
    return shapes


def _llama(kind: str) -> dict[str, tuple[int, ...]]:
    head = CONFIGS[kind].get("head_dim", D // 4)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, D),
        "model.norm.weight": (D,),
        "lm_head.weight": (VOCAB, D),
    }
    for i in range(BLOCKS):
        at = f"model.layers.{i}."
        shapes |= {
            f"{at}input_layernorm.weight": (D,),
            f"{at}post_attention_layernorm.weight": (D,),
            f"{at}self_attn.q_proj.weight": (4 * head, D),
            f"{at}self_attn.k_proj.weight": (2 * head, D),
            f"{at}self_attn.v_proj.weight": (2 * head, D),
            f"{at}self_attn.o_proj.weight": (D, 4 * head),
            f"{at}mlp.gate_proj.weight": (F, D),
            f"{at}mlp.up_proj.weight": (F, D),
            f"{at}mlp.down_proj.weight": (D, F),
        }
        if kind == "qwen2":
            for name, heads in (("q", 4), ("k", 2), ("v", 2)):
                shapes[f"{at}self_attn.{name}_proj.bias"] = (heads * head,)
        if kind == "qwen3":
            shapes |= {f"{at}self_attn.{name}_norm.weight": (head,) for name in ("q", "k")}
    return shapes


def _encoder(at: str, attention: str, norms: tuple[str, str]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(BLOCKS):
        block = f"{at}encoder.layer.{i}."
        for name, inner, outer in (
            *((f"attention.{attention}.{part}", D, D) for part in ("query", "key", "value")),
            ("attention.output.dense", D, D),
            ("intermediate.dense", D, F),
            ("output.dense", F, D),
        ):
            shapes |= {f"{block}{name}.weight": (outer, inner), f"{block}{name}.bias": (outer,)}
        for name in norms:
            shapes |= {f"{block}{name}.weight": (D,), f"{block}{name}.bias": (D,)}
    return shapes


def _vit() -> dict[str, tuple[int, ...]]:
    return _encoder("vit.", "attention", ("layernorm_before", "layernorm_after")) | {
        "vit.embeddings.cls_token": (1, 1, D),
        "vit.embeddings.position_embeddings": (1, 16, D),
        "vit.embeddings.patch_embeddings.projection.weight": (D, 3, 4, 4),
        "vit.embeddings.patch_embeddings.projection.bias": (D,),
        "vit.layernorm.weight": (D,),
        "vit.layernorm.bias": (D,),
        "classifier.weight": (3, D),
        "classifier.bias": (3,),
    }


def _bert() -> dict[str, tuple[int, ...]]:
    return _encoder("bert.", "self", ("attention.output.LayerNorm", "output.LayerNorm")) | {
        "bert.embeddings.word_embeddings.weight": (VOCAB, D),
        "bert.embeddings.position_embeddings.weight": (CONTEXT, D),
        "bert.embeddings.token_type_embeddings.weight": (2, D),
        "bert.embeddings.LayerNorm.weight": (D,),
        "bert.embeddings.LayerNorm.bias": (D,),
        "bert.pooler.dense.weight": (D, D),
        "bert.pooler.dense.bias": (D,),
        "classifier.weight": (2, D),
        "classifier.bias": (2,),
    }
