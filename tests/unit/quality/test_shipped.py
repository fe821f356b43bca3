"""The shipped models' codebooks are as good as their folders say, on real data."""

from __future__ import annotations

from pathlib import Path

import pytest

from astra_mesh.bundle import Bundle, open_bundle
from astra_mesh.bundle.quality import TaskQuality, read_quality
from astra_mesh.quality import EvalSettings, evaluate
from astra_mesh.quant.codebook import UNLIMITED, load_codebook
from tests.conftest import REPO_ROOT

MODELS = {"tiny-gpt2": "generate", "vit-tiny": "classify"}


def shipped(name: str) -> tuple[Bundle, TaskQuality]:
    bundle = open_bundle(REPO_ROOT / "models" / name)
    quality = read_quality(bundle)
    assert quality is not None
    assert quality.model == bundle.model_id
    return bundle, quality.tasks[MODELS[name]]


@pytest.mark.parametrize("name", MODELS)
def test_what_is_stored_belongs_to_what_lies_beside_it(name: str) -> None:
    bundle, stored = shipped(name)
    book = load_codebook(bundle.codebook_paths[""], bundle.model_id)
    assert book.history == UNLIMITED
    rows = [row for row in stored.measured if row.codebook == book.id]
    assert {row.bits for row in rows} == {16, 32, 64, 128} == set(book.rates.values())
    assert stored.recommended is not None
    assert stored.recommended.codebook == book.id


@pytest.mark.slow
def test_few_bits_cost_tiny_gpt2_as_little_as_stored(data_dir: Path, tmp_path: Path) -> None:
    """On a sixth of what was stored: the last windows of the held-out text."""
    bundle, stored = shipped("tiny-gpt2")
    text = (data_dir / "datasets/tinyshakespeare/input.txt").read_text(encoding="utf-8")
    held_out = tmp_path / "held-out.txt"
    held_out.write_text(text[-18_000:], encoding="utf-8")
    found = evaluate(bundle, held_out, EvalSettings(codecs=("vq",), rates=(16, 128), limit=32))
    by_bits = {row.bits_per_token: row for row in found.rows}
    wanted = {row.bits: row for row in stored.measured if row.peers == 4}
    for bits, row in by_bits.items():
        assert row.metrics["kl"] < 1.3 * wanted[bits].metrics["kl"]
        assert row.loss < 0.01, f"{bits} bits cost {row.loss:.2%}"
    assert by_bits[128].metrics["kl"] < 0.3 * by_bits[16].metrics["kl"]


@pytest.mark.slow
def test_64_bits_cost_vit_tiny_as_little_as_stored(data_dir: Path) -> None:
    bundle, stored = shipped("vit-tiny")
    test_set = data_dir / "datasets/cifar10_test_jpeg.zip"
    found = evaluate(bundle, test_set, EvalSettings(codecs=("vq",), rates=(64,), limit=100))
    (row,) = found.rows
    (wanted,) = (one for one in stored.measured if (one.bits, one.peers) == (64, 4))
    assert row.metrics["kl"] < 2 * wanted.metrics["kl"]
    assert row.metrics["agreement"] >= 0.93
