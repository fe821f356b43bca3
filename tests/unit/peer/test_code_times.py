"""What a device measures of a codebook is usable for planning, its decoder is a possible one."""

from __future__ import annotations

import math

import pytest
import torch

from astra_mesh.families import Model, ModelInput
from astra_mesh.peer import code_times as module
from astra_mesh.peer.code_times import CodeTimes, measure_codebook
from astra_mesh.quant import vector
from astra_mesh.quant.codebook import UNLIMITED, Codebook
from astra_mesh.quant.fit import fit_codebook
from astra_mesh.quant.options import FitOptions
from astra_mesh.wire.messages import ModelId
from tests.unit.peer.fakes import small_model


def inputs(model: Model) -> list[ModelInput]:
    g = torch.Generator().manual_seed(1)
    if model.spec.vocab_size:
        shape = (48,)
        return [
            ModelInput(tokens=torch.randint(model.spec.vocab_size, shape, generator=g))
            for _ in range(12)
        ]
    return [ModelInput(pixels=torch.randn(3, 32, 32, generator=g)) for _ in range(24)]


def fitted(model: Model, history: int = 0, codec: str = "vq", seed: int = 0) -> Codebook:
    options = FitOptions(
        codec=codec,
        history=history,
        rates=(8, 16, 32),
        groups=4 if codec == "astra" else 1,
        codewords=16,
        iterations=2,
        sensitivity=0.0,
        seed=seed,
    )
    return fit_codebook(model, ModelId("a" * 64), inputs(model), options)[0]


def check(book: Codebook, found: CodeTimes) -> None:
    for times in (found.encode_s, found.decode_s):
        assert tuple(times) == book.able
        assert all(0 < value < math.inf for value in times.values())
        assert list(times.values()) == sorted(times.values())
    assert set(found.decoder) == set(book.able)


@pytest.mark.parametrize("kind", ["gpt2", "vit", "bert"])
@pytest.mark.parametrize("history", [0, 1, 2, UNLIMITED])
def test_every_rate_has_costs_and_a_decoder(kind: str, history: int) -> None:
    model = small_model(kind)
    book = fitted(model, history)
    found = measure_codebook(model, book)
    check(book, found)
    assert set(found.decoder.values()) <= {"table", "project"}


def test_the_published_form_can_only_project() -> None:
    model = small_model()
    book = fitted(model, codec="astra")
    found = measure_codebook(model, book)
    check(book, found)
    assert found.decoder == {1: "project"}


def test_tables_that_are_too_large_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector, "TABLE_BYTES", 0)
    model = small_model()
    assert set(measure_codebook(model, fitted(model)).decoder.values()) == {"project"}


@pytest.mark.parametrize(
    ("project", "table", "wanted"), [(1.0, 2.0, "project"), (3.0, 2.0, "table")]
)
def test_the_faster_decoder_is_taken(
    monkeypatch: pytest.MonkeyPatch, project: float, table: float, wanted: str
) -> None:
    model = small_model()
    point = module._Point(1.0, project, table)
    monkeypatch.setattr(module, "_measure", lambda *arguments: point)
    book = fitted(model)
    found = measure_codebook(model, book)
    assert set(found.decoder.values()) == {wanted}
    assert set(found.decode_s.values()) == {min(project, table)}


def test_rates_in_between_are_interpolated_by_their_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """And where the larger rate was measured to be faster, that is noise."""
    model = small_model()
    book = fitted(model)  # 4, 8, 16, 32 bits
    assert list(book.rates.values()) == [4, 8, 16, 32]
    points = {1: module._Point(1.0, 9.0, 1.0), 4: module._Point(8.0, 5.0, 15.0)}
    monkeypatch.setattr(module, "_measure", lambda model, codec, stages: points[stages])
    found = measure_codebook(model, book)
    assert list(found.encode_s.values()) == pytest.approx([1.0, 2.0, 4.0, 8.0])
    assert list(found.decode_s.values()) == pytest.approx([1.0, 3.0, 7.0, 9.0])
    assert list(found.decoder.values()) == ["table", "table", "table", "project"]


def test_made_up_tables_have_the_shape_of_real_ones() -> None:
    model = small_model()
    for history in (0, 1, UNLIMITED):
        book = fitted(model, history)
        real = vector.VectorCodec(model, book, rough=True)
        made = module._MadeUp(model, book, tables=True)
        for block in (1, 2):
            one, other = real.table(block, book.stages), made.table(block, book.stages)
            assert one.blocks == other.blocks
            assert one.rows.shape == other.rows.shape
            assert one.offset.shape == other.offset.shape
            assert (one.known is None) == (other.known is None)
            if one.known is not None and other.known is not None:
                assert one.known.shape == other.known.shape
