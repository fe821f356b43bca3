"""What a model family is. ``read_spec`` needs only the config, ``build_model`` the tensors too.

All but the specs bring torch along and are imported at their first use: who only lists models does
not wait for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from astra_mesh.families.spec import ModelSpec
from astra_mesh.families.specs import read_spec

if TYPE_CHECKING:
    from astra_mesh.families.build import build_model, export_config, export_weights
    from astra_mesh.families.model import Model, ModelInput

__all__ = [
    "Model",
    "ModelInput",
    "ModelSpec",
    "build_model",
    "export_config",
    "export_weights",
    "read_spec",
]

_HOMES = {
    "Model": "model",
    "ModelInput": "model",
    "build_model": "build",
    "export_config": "build",
    "export_weights": "build",
}


def __getattr__(name: str) -> Any:
    """What needs torch, imported when it is wanted."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
