"""Loading a model with codebooks: their costs are offered, broken quality is left out."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from pathlib import Path

import pytest

from astra_mesh.bundle import open_bundle, write_manifest
from astra_mesh.engine.compute import ComputeThread
from astra_mesh.peer.loaded import Loaded
from astra_mesh.peer.models import ModelHost
from astra_mesh.quant.codebook import UNLIMITED, Codebook
from astra_mesh.wire.messages import ModelOffer
from tests.bundles import GPT2, gpt2_tensors, write_bundle
from tests.unit.peer.fakes import small_model
from tests.unit.peer.test_code_times import fitted


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "words", GPT2, gpt2_tensors(GPT2))


def add_codebook(folder: Path, name: str, history: int) -> Codebook:
    model_id = open_bundle(folder).model_id
    book = dataclasses.replace(fitted(small_model(), history), model=model_id)
    book.save(folder / name)
    return book


async def load(folder: Path, compute: ComputeThread) -> tuple[Loaded, ModelOffer]:
    host = ModelHost((str(folder),), compute)
    await host.start()
    (before,) = host.offers()
    assert all(book.encode_token_s == [] for book in before.codebooks)
    loaded = await host.load(before.id)
    return loaded, host.offers()[0]


async def test_the_costs_of_every_codebook_are_offered(
    folder: Path, compute: ComputeThread
) -> None:
    books = [
        await asyncio.to_thread(add_codebook, folder, "codebook.safetensors", UNLIMITED),
        await asyncio.to_thread(add_codebook, folder, "codebook-h0.safetensors", 0),
    ]
    loaded, offer = await load(folder, compute)
    assert {one.id for one in offer.codebooks} == {book.id for book in books} == set(loaded.times)
    for one in offer.codebooks:
        assert one.encode_token_s == list(loaded.times[one.id].encode_s.values())
        assert one.decode_token_s == list(loaded.times[one.id].decode_s.values())
        assert one.project_token_s == list(loaded.times[one.id].project_s.values())
    assert loaded.quality is None


@pytest.mark.parametrize("data", ["{", '{"format": "astra-mesh-quality/1"}', '{"format": "x"}'])
async def test_broken_quality_is_logged_and_left_out(
    folder: Path, compute: ComputeThread, caplog: pytest.LogCaptureFixture, data: str
) -> None:
    (folder / "quality.json").write_text(data)
    with caplog.at_level(logging.WARNING):
        loaded, _ = await load(folder, compute)
    assert loaded.quality is None
    assert any("quality.json" in record.getMessage() for record in caplog.records)


async def test_a_codebook_that_does_not_fit_is_left_out(
    folder: Path, compute: ComputeThread
) -> None:
    """Its file is a codebook of these weights, but one block is missing."""
    whole = await asyncio.to_thread(add_codebook, folder, "codebook.safetensors", 0)
    levels = {stages: books[:-1] for stages, books in whole.levels.items()}
    cut = dataclasses.replace(whole, levels=levels)
    await asyncio.to_thread(cut.save, folder / "codebook-cut.safetensors")
    await asyncio.to_thread(write_manifest, folder)
    loaded, offer = await load(folder, compute)
    assert list(loaded.codebooks) == [whole.id] == [one.id for one in offer.codebooks]
    assert "does not fit" in loaded.problems[0]
