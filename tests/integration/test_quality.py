"""Real peers with stored quality: the default rate, the wanted loss, and the cost in the report."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch

import astra_mesh
from astra_mesh.bundle import open_bundle
from astra_mesh.bundle.quality import Measured, TaskQuality, save_quality
from astra_mesh.bundle.tensors import load_weights
from astra_mesh.families import ModelInput, build_model
from astra_mesh.peer import Peer
from astra_mesh.quant.codebook import UNLIMITED, Codebook
from astra_mesh.quant.fit import fit_codebook
from astra_mesh.quant.options import FitOptions
from tests.bundles import GPT2, gpt2_tensors, write_bundle
from tests.integration.mesh_fixtures import mesh_of

PROMPT = [(7 * i) % 64 for i in range(40)]
# By history and bits: the smallest within 2 % are 16 bits and 32 bits.
LOSSES = {(UNLIMITED, 8): 0.05, (UNLIMITED, 16): 0.01, (0, 8): 0.1, (0, 16): 0.03, (0, 32): 0.015}


def fit(folder: Path, history: int) -> Codebook:
    bundle = open_bundle(folder)
    model = build_model(bundle.config, load_weights(bundle))
    g = torch.Generator().manual_seed(1)
    inputs = [ModelInput(tokens=torch.randint(64, (48,), generator=g)) for _ in range(12)]
    options = FitOptions(
        history=history, rates=(8, 16, 32), default_rate=32, groups=2, codewords=16, iterations=3
    )
    book, _ = fit_codebook(model, bundle.model_id, inputs, options)
    book.save(folder / f"codebook-h{history + 1}.safetensors")
    return book


def stored(books: list[Codebook]) -> TaskQuality:
    rows = []
    for book in books:
        for stages, bits in book.rates.items():
            if (loss := LOSSES.get((book.history, bits))) is not None:
                metrics = {"nats_increase": loss}
                rows.append(Measured("vq", book.id, book.history, stages, bits, 4, metrics))
    return TaskQuality(
        data="valid.txt",
        sequences=9,
        tokens=900,
        class_token="none",
        shards="even",
        measure="perplexity",
        limit=0.02,
        baseline={},
        definitions={},
        measured=rows,
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_bundle(folder / "words", GPT2, gpt2_tensors(GPT2))
    books = [fit(folder / "words", history) for history in (UNLIMITED, 0)]
    save_quality(open_bundle(folder / "words"), "generate", stored(books))
    return folder


@pytest.fixture
async def two(models: Path) -> AsyncIterator[list[Peer]]:
    async with mesh_of(["left", "right"], models) as peers:
        yield peers


async def asked(peers: list[Peer], **options: object) -> astra_mesh.Generation:
    async with astra_mesh.connect(("127.0.0.1", peers[1].port)) as mesh:
        generation = mesh.generate("words", PROMPT, max_new_tokens=2, use="all", **options)  # type: ignore[arg-type]
        _ = [token async for token in generation]
    assert generation.report is not None
    return generation


async def test_the_default_is_the_fastest_rate_within_the_stored_limit(two: list[Peer]) -> None:
    generation = await asked(two)
    report, planned = generation.report, generation.planned
    assert report is not None
    assert planned is not None
    assert report.bits_per_token in (16, 32)
    assert report.expected == planned.expected is not None
    found = report.expected
    assert found is not None
    assert (found.measure, found.peers, found.data, found.sequences) == (
        "perplexity",
        4,
        "valid.txt",
        9,
    )
    assert found.loss in (pytest.approx(0.01005, rel=1e-3), pytest.approx(0.01511, rel=1e-3))
    for name in ("predictive 16 bits", "memoryless 32 bits", "would take"):
        assert name in planned.reason


async def test_a_wanted_loss_and_an_explicit_rate(two: list[Peer]) -> None:
    exact = (await asked(two, max_loss=0.012)).report
    assert exact is not None
    assert exact.bits_per_token == 16
    loose = (await asked(two, max_loss=0.5)).report
    assert loose is not None
    assert loose.bits_per_token == 8
    named = (await asked(two, rate=32)).report
    assert named is not None
    assert named.bits_per_token == 32
    assert named.expected is not None
    assert named.expected.loss == pytest.approx(0.01511, rel=1e-3)
    impossible = (await asked(two, max_loss=0.0001)).report
    assert impossible is not None
    assert any("no rate was measured to stay within" in note for note in impossible.notes)


async def test_every_peer_tells_what_its_codes_cost(two: list[Peer]) -> None:
    await asked(two)
    async with astra_mesh.connect(("127.0.0.1", two[1].port)) as mesh:
        infos = await mesh.peers()
    for info in infos:
        (offer,) = info.models
        assert len(offer.codebooks) == 2
        for book in offer.codebooks:
            assert len(book.encode_token_s) == len(book.decode_token_s) == len(book.rates)
            assert all(0 < value < 1 for value in book.encode_token_s + book.decode_token_s)


async def test_one_device_has_no_expected_cost(two: list[Peer]) -> None:
    async with astra_mesh.connect(("127.0.0.1", two[1].port)) as mesh:
        generation = mesh.generate("words", PROMPT, max_new_tokens=2, use="solo")
        _ = [token async for token in generation]
    assert generation.report is not None
    assert generation.report.expected is None
