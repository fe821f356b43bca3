"""Bundles with random models, and data for them."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from astra_mesh.bundle import Bundle, open_bundle
from astra_mesh.bundle.tensors import save_tensors
from tests.unit.families.making import CONFIGS, VOCAB, make_tensors

PREPROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": 12, "width": 20},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def toy_bundle(folder: Path, kind: str) -> Bundle:
    """A random model of ``tests.unit.families.making`` that reads words ``w0`` ... or pictures."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIGS[kind]))
    save_tensors(folder / "model.safetensors", make_tensors(kind))
    if kind == "vit":
        (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    else:
        words = models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0")
        tokenizer = Tokenizer(words)
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.save(str(folder / "tokenizer.json"))
    return open_bundle(folder)


def words(count: int, per_line: int = 7, start: int = 0) -> str:
    """``count`` words; the i-th is token ``(i * i + start) % 61``."""
    found = [f"w{(i * i + start) % VOCAB}" for i in range(count)]
    lines = [" ".join(found[i : i + per_line]) for i in range(0, count, per_line)]
    return "\n".join(lines) + "\n"


def picture(shade: int, kind: str = "PNG", size: tuple[int, int] = (20, 12)) -> bytes:
    """An image file of one colour."""
    stream = io.BytesIO()
    Image.new("RGB", size, (shade, 255 - shade, shade // 2)).save(stream, kind)
    return stream.getvalue()


def write(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def write_zip(path: Path, files: dict[str, bytes | str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path
