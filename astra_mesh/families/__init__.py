"""What a model family is. ``read_spec`` needs only the config, ``build_model`` the tensors too."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor

from astra_mesh.errors import UnsupportedModelError
from astra_mesh.families import bert, gpt2, llama, vit
from astra_mesh.families.model import Model, ModelInput, load_dtype
from astra_mesh.families.spec import ModelSpec

__all__ = [
    "Model",
    "ModelInput",
    "ModelSpec",
    "build_model",
    "export_config",
    "export_weights",
    "read_spec",
]

_FAMILIES: dict[str, ModuleType] = {
    name: module for module in (gpt2, vit, llama, bert) for name in module.MODEL_TYPES
}


def _family(config: Mapping[str, Any]) -> ModuleType:
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _FAMILIES:
        raise UnsupportedModelError(
            f"config.json: model_type {kind!r} is not supported; supported: {', '.join(_FAMILIES)}"
        )
    return _FAMILIES[kind]


def read_spec(config: Mapping[str, Any]) -> ModelSpec:
    """The spec of a Hugging Face ``config.json``; UnsupportedModelError, BadBundleError."""
    return cast(ModelSpec, _family(config).read_spec(config))


def export_weights(config: Mapping[str, Any], model: Model) -> dict[str, Tensor]:
    """The tensors of a Hugging Face checkpoint: :func:`build_model` makes the model of them."""
    return cast(dict[str, Tensor], _family(config).export(model))


def export_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config for :func:`export_weights`: a norm's shift, folded in, leaves ViT with biases."""
    return {**config, "qkv_bias": True} if config.get("qkv_bias") is False else dict(config)


def build_model(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
) -> Model:
    """The model, ready for inference. Raises as :func:`read_spec`; also for missing tensors."""
    return load_dtype(_family(config).build(config, tensors), dtype)
