"""Small bundles, safetensors files and images for the tests."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from astra_mesh.bundle.tensors import save_tensors


def raw_safetensors(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file with any header at all (bytes as they are, else as JSON)."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: Any, shape: Any, begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def make_bundle(folder: Path, *, weights: float = 1.0, **config: Any) -> Path:
    """A bundle with one weight tensor (2, 3)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", **config}))
    save_tensors(folder / "model.safetensors", {"w": torch.full((2, 3), weights)})
    return folder


def make_sharded(folder: Path, weight_map: dict[str, str] | None = None) -> Path:
    """A bundle in two shards with the tensors a and b."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    first, second = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    save_tensors(folder / first, {"a": torch.zeros(2)})
    save_tensors(folder / second, {"b": torch.ones(2)})
    index = {"weight_map": {"a": first, "b": second} if weight_map is None else weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def photo(width: int = 300, height: int = 200) -> Image.Image:
    """A colourful image without symmetry."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x * y) % 256], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))
