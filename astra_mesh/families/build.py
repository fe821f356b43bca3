"""Models from checkpoints, and checkpoints from models."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, Final, cast

import torch
from torch import Tensor

from astra_mesh.families import bert, gpt2, llama, vit
from astra_mesh.families.model import Model, load_dtype
from astra_mesh.families.specs import read_spec

_MODULES: Final[dict[str, ModuleType]] = {"gpt2": gpt2, "vit": vit, "llama": llama, "bert": bert}


def _module(config: Mapping[str, Any]) -> ModuleType:
    return _MODULES[read_spec(config).family]


def build_model(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
) -> Model:
    """The model, ready for inference. Raises as :func:`read_spec`; also for missing tensors."""
    return load_dtype(_module(config).build(config, tensors), dtype)


def export_weights(config: Mapping[str, Any], model: Model) -> dict[str, Tensor]:
    """The tensors of a Hugging Face checkpoint: :func:`build_model` makes the model of them."""
    return cast(dict[str, Tensor], _module(config).export(model))


def export_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config for :func:`export_weights`: a norm's shift, folded in, leaves ViT with biases."""
    return {**config, "qkv_bias": True} if config.get("qkv_bias") is False else dict(config)
