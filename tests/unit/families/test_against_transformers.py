"""The single device's numbers equal those of transformers, family by family, in fp32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from astra_mesh.engine.reference import hidden_rows, pooled, run_solo
from astra_mesh.families import Model, ModelInput, build_model

TOLERANCE = 1e-4
SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
}
GPT2: dict[str, Any] = {
    "vocab_size": 97,
    "n_positions": 64,
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 6,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}

TEXT_MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2 tied": ("GPT2", "LMHeadModel", GPT2),
    "gpt2 untied": (
        "GPT2",
        "LMHeadModel",
        GPT2 | {"n_inner": 100, "activation_function": "relu", "tie_word_embeddings": False},
    ),
    "llama gqa": ("Llama", "ForCausalLM", SIZES | {"num_key_value_heads": 2}),
    "llama mha, tied": ("Llama", "ForCausalLM", SIZES | {"tie_word_embeddings": True}),
    "llama biases": (
        "Llama",
        "ForCausalLM",
        SIZES | {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1},
    ),
    "llama head_dim": ("Llama", "ForCausalLM", SIZES | {"head_dim": 14}),
    "llama3 rope": ("Llama", "ForCausalLM", SIZES | {"rope_parameters": LLAMA3}),
    "linear rope": ("Llama", "ForCausalLM", SIZES | {"rope_parameters": LINEAR}),
    "qwen2": ("Qwen2", "ForCausalLM", SIZES | {"num_key_value_heads": 2}),
    "qwen3": ("Qwen3", "ForCausalLM", SIZES | {"num_key_value_heads": 2, "head_dim": 16}),
    "mistral": (
        "Mistral",
        "ForCausalLM",
        SIZES | {"num_key_value_heads": 2, "sliding_window": None},
    ),
    "mistral window": (
        "Mistral",
        "ForCausalLM",
        SIZES | {"num_key_value_heads": 2, "sliding_window": 20},
    ),
}


def both(folder: Path, name: str, head: str, settings: dict[str, Any]) -> tuple[Any, Model]:
    """transformers' model with random weights, and ours from the files that it saves."""
    import transformers

    torch.manual_seed(len(name))
    theirs = getattr(transformers, name + head)(getattr(transformers, name + "Config")(**settings))
    for parameter in theirs.parameters():
        # Much larger than the usual start, so that no part of a block is lost in the residual.
        matrix = parameter.dim() > 1
        torch.nn.init.normal_(parameter, 0.0 if matrix else 0.5, 0.15 if matrix else 0.5)
    theirs.eval().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    return theirs, build_model(config, load_file(folder / "model.safetensors"))


def close(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).abs().max() < TOLERANCE)


@pytest.mark.parametrize("case", TEXT_MODELS)
def test_next_token_logits(tmp_path: Path, case: str) -> None:
    theirs, ours = both(tmp_path, *TEXT_MODELS[case])
    tokens = torch.randint(97, (min(45, ours.spec.max_tokens),))
    with torch.no_grad():
        wanted = theirs(tokens[None]).logits[0]
    got = ours.logits(hidden_rows([run_solo(ours, ModelInput(tokens=tokens), "all")]))
    assert close(got, wanted)
    assert wanted.std() > 0.2  # the comparison is not one of zeros


def test_a_sliding_window_caps_the_context(tmp_path: Path) -> None:
    _, ours = both(tmp_path, *TEXT_MODELS["mistral window"])
    assert ours.spec.max_tokens == 20


@pytest.mark.parametrize(("bias", "act"), [(True, "gelu"), (False, "gelu_pytorch_tanh")])
def test_vit_class_logits(tmp_path: Path, bias: bool, act: str) -> None:
    settings = {k: v for k, v in SIZES.items() if not k.startswith(("vocab", "max"))}
    settings |= {"image_size": (24, 40), "patch_size": 8, "qkv_bias": bias, "hidden_act": act}
    theirs, ours = both(tmp_path, "ViT", "ForImageClassification", settings | {"num_labels": 7})
    pixels = torch.randn(3, 24, 40)
    with torch.no_grad():
        wanted = theirs(pixels[None]).logits[0]
    assert close(
        ours.classify(pooled([run_solo(ours, ModelInput(pixels=pixels), "class")])), wanted
    )
    assert wanted.std() > 0.2


@pytest.mark.parametrize("with_types", [False, True])
def test_bert_class_logits_and_mean(tmp_path: Path, with_types: bool) -> None:
    theirs, ours = both(tmp_path, "Bert", "ForSequenceClassification", SIZES | {"num_labels": 5})
    tokens = torch.randint(97, (20,))
    types = torch.randint(2, (20,)) if with_types else None
    given = {} if types is None else {"token_type_ids": types[None]}
    with torch.no_grad():
        wanted = theirs(tokens[None], **given).logits[0]
        mean = theirs.bert(tokens[None], **given).last_hidden_state[0].mean(0)
    inputs = ModelInput(tokens=tokens, token_types=types)
    assert close(ours.classify(pooled([run_solo(ours, inputs, "class")])), wanted)
    assert close(pooled([run_solo(ours, inputs, "mean")]), mean)


def test_old_names_of_norms_are_understood(tmp_path: Path) -> None:
    _, ours = both(tmp_path, "Bert", "ForSequenceClassification", SIZES | {"num_labels": 5})
    tensors = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in load_file(tmp_path / "model.safetensors").items()
    }
    assert any(name.endswith(".gamma") for name in tensors)
    old = build_model(json.loads((tmp_path / "config.json").read_text()), tensors)
    inputs = ModelInput(tokens=torch.arange(9))
    assert torch.equal(
        pooled([run_solo(old, inputs, "mean")]), pooled([run_solo(ours, inputs, "mean")])
    )
