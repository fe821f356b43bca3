"""Small random model bundles on disk, for tests that need a model and not its quality."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from astra_mesh.bundle.tensors import save_tensors
from astra_mesh.bundle.text import NAME as TOKENIZER_FILE

GPT2 = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "n_embd": 32,
    "n_head": 4,
    "n_layer": 3,
    "n_positions": 96,
    "vocab_size": 64,
}
VIT = {
    "model_type": "vit",
    "architectures": ["ViTForImageClassification"],
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "id2label": {str(i): f"class {i}" for i in range(5)},
}
BERT = {
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "id2label": {"0": "bad", "1": "good"},
}


def _dense(found: dict[str, Tensor], name: str, outer: int, inner: int, g: torch.Generator) -> None:
    found[f"{name}.weight"] = torch.randn(outer, inner, generator=g) * 0.25
    found[f"{name}.bias"] = torch.randn(outer, generator=g) * 0.1


def _norm(found: dict[str, Tensor], name: str, size: int, g: torch.Generator) -> None:
    found[f"{name}.weight"] = 1 + 0.2 * torch.randn(size, generator=g)
    found[f"{name}.bias"] = 0.1 * torch.randn(size, generator=g)


def gpt2_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Random weights under their Hugging Face names."""
    g, d = torch.Generator().manual_seed(seed), config["n_embd"]
    found = {
        "transformer.wte.weight": torch.randn(config["vocab_size"], d, generator=g),
        "transformer.wpe.weight": torch.randn(config["n_positions"], d, generator=g) * 0.3,
    }
    _norm(found, "transformer.ln_f", d, g)
    for i in range(config["n_layer"]):
        at = f"transformer.h.{i}"
        _norm(found, f"{at}.ln_1", d, g)
        _norm(found, f"{at}.ln_2", d, g)
        for name, inner, outer in (
            ("attn.c_attn", d, 3 * d),
            ("attn.c_proj", d, d),
            ("mlp.c_fc", d, 4 * d),
            ("mlp.c_proj", 4 * d, d),
        ):
            found[f"{at}.{name}.weight"] = torch.randn(inner, outer, generator=g) * 0.25
            found[f"{at}.{name}.bias"] = torch.randn(outer, generator=g) * 0.1
    return found


def _encoder(
    config: dict[str, Any], prefix: str, names: dict[str, str], g: torch.Generator
) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    d, f = config["hidden_size"], config["intermediate_size"]
    for i in range(config["num_hidden_layers"]):
        at = f"{prefix}.encoder.layer.{i}"
        for part in ("query", "key", "value"):
            _dense(found, f"{at}.attention.{names['attention']}.{part}", d, d, g)
        _dense(found, f"{at}.attention.output.dense", d, d, g)
        _dense(found, f"{at}.intermediate.dense", f, d, g)
        _dense(found, f"{at}.output.dense", d, f, g)
        _norm(found, f"{at}.{names['norm_1']}", d, g)
        _norm(found, f"{at}.{names['norm_2']}", d, g)
    return found


def vit_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Random weights under their Hugging Face names."""
    g, d = torch.Generator().manual_seed(seed), config["hidden_size"]
    names = {"attention": "attention", "norm_1": "layernorm_before", "norm_2": "layernorm_after"}
    found = _encoder(config, "vit", names, g)
    patches, size = (config["image_size"] // config["patch_size"]) ** 2, config["patch_size"]
    at = "vit.embeddings"
    found[f"{at}.cls_token"] = torch.randn(1, 1, d, generator=g)
    found[f"{at}.position_embeddings"] = torch.randn(1, patches + 1, d, generator=g) * 0.5
    found[f"{at}.patch_embeddings.projection.weight"] = (
        torch.randn(d, 3, size, size, generator=g) * 0.3
    )
    found[f"{at}.patch_embeddings.projection.bias"] = torch.randn(d, generator=g) * 0.1
    _norm(found, "vit.layernorm", d, g)
    _dense(found, "classifier", len(config["id2label"]), d, g)
    return found


def bert_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Random weights under their Hugging Face names."""
    g, d = torch.Generator().manual_seed(seed), config["hidden_size"]
    names = {
        "attention": "self",
        "norm_1": "attention.output.LayerNorm",
        "norm_2": "output.LayerNorm",
    }
    found = _encoder(config, "bert", names, g)
    at = "bert.embeddings"
    found[f"{at}.word_embeddings.weight"] = torch.randn(config["vocab_size"], d, generator=g)
    found[f"{at}.position_embeddings.weight"] = torch.randn(
        config["max_position_embeddings"], d, generator=g
    )
    found[f"{at}.token_type_embeddings.weight"] = torch.randn(2, d, generator=g)
    _norm(found, f"{at}.LayerNorm", d, g)
    _dense(found, "bert.pooler.dense", d, d, g)
    _dense(found, "classifier", len(config["id2label"]), d, g)
    return found


def word_tokenizer(vocab: int) -> str:
    """A ``tokenizer.json`` whose tokens are the words w0, w1, ... (w0 for unknown ones)."""
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "post_processor": None,
            "decoder": None,
            "model": {
                "type": "WordLevel",
                "vocab": {f"w{i}": i for i in range(vocab)},
                "unk_token": "w0",
            },
        }
    )


def write_bundle(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    """The bundle at ``folder``, with a tokenizer or image settings as the model needs."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_tensors(folder / "model.safetensors", tensors)
    if "vocab_size" in config:
        (folder / TOKENIZER_FILE).write_text(word_tokenizer(config["vocab_size"]))
    else:
        size = {"height": config["image_size"], "width": config["image_size"]}
        settings = {"image_processor_type": "ViTImageProcessor", "size": size}
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder
