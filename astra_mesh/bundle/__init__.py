"""Model bundles: folders in Hugging Face layout with weights, tokenizer and codebooks.

This package's own names need no torch; tensors, text and image are imported where they are used:
:mod:`astra_mesh.bundle.tensors`, :mod:`astra_mesh.bundle.text`, :mod:`astra_mesh.bundle.image`.
"""

from astra_mesh.bundle.manifest import write_manifest
from astra_mesh.bundle.store import (
    Bundle,
    find_bundle,
    find_named,
    list_bundles,
    model_folders,
    open_bundle,
    take_new,
    user_models_path,
    verify,
)

__all__ = [
    "Bundle",
    "find_bundle",
    "find_named",
    "list_bundles",
    "model_folders",
    "open_bundle",
    "take_new",
    "user_models_path",
    "verify",
    "write_manifest",
]
