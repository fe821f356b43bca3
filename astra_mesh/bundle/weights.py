"""Which files of a bundle's folder hold the weights, found without reading them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from astra_mesh import limits
from astra_mesh.bundle.configs import bad_file, file_size, load_json, member
from astra_mesh.errors import BadBundleError

SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
_PICKLES: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def weight_map(folder: Path) -> dict[str, str]:
    """Tensor name to shard name, as the index says; empty for a bundle in one file.

    Raises:
        BadBundleError: the index is malformed or names a file outside the folder.
    """
    path = member(folder, INDEX)
    if member(folder, SINGLE).exists() or not path.exists():
        return {}
    mapping = load_json(path, limits.JSON_BYTES).get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise bad_file(path, "has no weight_map")
    for shard in set(map(str, mapping.values())):
        if not shard.endswith(".safetensors"):
            raise bad_file(path, f"lists {shard[:64]!a}, which is no safetensors file")
        member(folder, shard)
    return {name: str(shard) for name, shard in mapping.items()}


def weight_paths(folder: Path) -> tuple[Path, ...]:
    """The weight files in name order; each exists.

    Raises:
        BadBundleError: there are none, a shard is missing, or they are pickles.
    """
    single = member(folder, SINGLE)
    names = sorted(set(weight_map(folder).values())) or [SINGLE]
    paths = tuple(member(folder, name) for name in names)
    if names == [SINGLE] and not single.exists():
        raise _no_weights(folder)
    for path in paths:
        file_size(path)
    return paths


def _no_weights(folder: Path) -> BadBundleError:
    pickles = sorted(p.name for pattern in _PICKLES for p in folder.glob(pattern))
    if not pickles:
        return bad_file(folder / SINGLE, "is missing")
    return bad_file(
        folder / pickles[0],
        "is a pickle, which can run any program when it is opened, so astra-mesh never opens one",
        "if you trust it, convert it with transformers: AutoModel.from_pretrained(FOLDER)"
        ".save_pretrained(FOLDER, safe_serialization=True) with the class that config.json names",
    )
