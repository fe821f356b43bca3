"""Real weights against reference outputs that transformers computed (shared/data/golden)."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from astra_mesh.bundle import open_bundle
from astra_mesh.bundle.image import ImageProcessor
from astra_mesh.bundle.tensors import load_weights
from astra_mesh.engine.reference import decode, hidden_rows, pooled, run_solo
from astra_mesh.families import Model, ModelInput, build_model
from astra_mesh.wire.messages import Sampling

TEXT = ("stories260K", "tinystories_656k", "babyllama_tok105", "gpt2_shakespeare_char")


def golden(data_dir: Path, name: str) -> tuple[Model, Any]:
    bundle = open_bundle(data_dir / "models" / name)
    model = build_model(bundle.config, load_weights(bundle))
    return model, np.load(data_dir / "golden" / f"{name}.npz")


def logits_of(model: Model, tokens: Any) -> Any:
    run = run_solo(model, ModelInput(tokens=torch.from_numpy(tokens)), "all")
    return model.logits(hidden_rows([run])).numpy()


@pytest.mark.parametrize("name", TEXT)
def test_logits_and_greedy_tokens(data_dir: Path, name: str) -> None:
    model, wanted = golden(data_dir, name)
    np.testing.assert_allclose(logits_of(model, wanted["prompt"]), wanted["logits"], atol=1e-4)
    count = len(wanted["greedy"])
    run = run_solo(model, ModelInput(tokens=torch.from_numpy(wanted["prompt"])), "last", count)
    assert decode([run], Sampling(max_new_tokens=count)) == wanted["greedy"].tolist()


def test_sorting_gpt(data_dir: Path) -> None:
    model, wanted = golden(data_dir, "gpt_nano_sort")
    for tokens, logits in zip(wanted["tokens"], wanted["logits"], strict=True):
        np.testing.assert_allclose(logits_of(model, tokens), logits, atol=1e-4)


def test_bert_on_unpadded_rows(data_dir: Path) -> None:
    model, wanted = golden(data_dir, "bert_sst2")
    for ids, mask, logits in zip(
        wanted["input_ids"], wanted["attention_mask"], wanted["logits"], strict=True
    ):
        tokens = torch.from_numpy(ids[: int(mask.sum())])
        found = model.classify(pooled([run_solo(model, ModelInput(tokens=tokens), "class")]))
        np.testing.assert_allclose(found.numpy(), logits, atol=1e-4)


def test_vit_on_photos(data_dir: Path) -> None:
    model, wanted = golden(data_dir, "vit_tiny_patch16_224")
    config = open_bundle(data_dir / "models" / "vit_tiny_patch16_224").optional_json(
        "preprocessor_config.json"
    )
    # The reference outputs were made without the resize to 248 that the config asks for.
    processor = ImageProcessor.from_config(config | {"size": {"shortest_edge": 256}})
    with zipfile.ZipFile(data_dir / "datasets" / "imagenet_photos_500.zip") as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".jpg"))[:4]
        photos = [archive.read(name) for name in names]
    for photo, logits in zip(photos, wanted["logits_first8"][::2], strict=True):
        run = run_solo(model, ModelInput(pixels=processor(photo)), "class")
        np.testing.assert_allclose(model.classify(pooled([run])).numpy(), logits, atol=1e-4)
