"""Fitting from files: the codebook lies in the bundle, whole, and the manifest knows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from astra_mesh.bundle import Bundle, open_bundle, verify, write_manifest
from astra_mesh.errors import CalibrationError
from astra_mesh.quality import FitOptions, fit
from astra_mesh.quant.codebook import load_codebook
from tests.unit.quality.making import toy_bundle, words, write

QUICK = FitOptions(groups=4, stages=2, codewords=16, iterations=2)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return toy_bundle(tmp_path / "toy", "gpt2")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path, {"data.txt": words(600)}) / "data.txt"


def test_the_codebook_lies_in_the_bundle(bundle: Bundle, data: Path) -> None:
    steps: list[tuple[int, int, str]] = []
    path = fit(bundle, data, QUICK, lambda done, total, what: steps.append((done, total, what)))
    assert path == bundle.path / "codebook.safetensors"
    assert open_bundle(bundle.path).codebook_paths == {"": path}
    assert load_codebook(path, bundle.model_id).stages == 2
    assert [what for _, _, what in steps][:2] == ["reading the model", "reading the data"]
    assert all(0 <= done <= total for done, total, _ in steps)
    assert "codebook.safetensors" in verify(open_bundle(bundle.path))


def test_the_published_form_has_its_own_name(bundle: Bundle, data: Path) -> None:
    options = FitOptions("astra", groups=8, stages=1, codewords=16, iterations=2)
    assert fit(bundle, data, options).name == "codebook-astra-g8.safetensors"
    assert set(open_bundle(bundle.path).codebook_paths) == {"astra-g8"}


def test_the_manifest_is_renewed(bundle: Bundle, data: Path) -> None:
    write_manifest(bundle.path)
    first = fit(open_bundle(bundle.path), data, QUICK)
    assert first.name in verify(open_bundle(bundle.path))
    fit(open_bundle(bundle.path), data, FitOptions(**vars(QUICK) | {"seed": 5}))
    assert first.name in verify(open_bundle(bundle.path))


def test_another_place_leaves_the_bundle_alone(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    write_manifest(bundle.path)
    before = {path.name: path.read_bytes() for path in bundle.path.iterdir()}
    other = tmp_path / "other.safetensors"
    assert fit(open_bundle(bundle.path), data, QUICK, output=other) == other
    assert load_codebook(other, bundle.model_id).groups == 4
    assert {path.name: path.read_bytes() for path in bundle.path.iterdir()} == before


def test_a_split_reads_other_data(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    ids = {
        load_codebook(fit(bundle, data, QUICK, output=tmp_path / "x", window=20, split=split)).id
        for split in (None, "fit")
    }
    assert len(ids) == 2


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (FitOptions(**vars(QUICK) | {"codewords": 256}), "too few for 256"),
        (FitOptions(**vars(QUICK) | {"groups": 99}), "groups"),
    ],
)
def test_failures_leave_no_file(bundle: Bundle, data: Path, options: FitOptions, text: str) -> None:
    with pytest.raises(CalibrationError, match=text):
        fit(bundle, data, options)
    assert open_bundle(bundle.path).codebook_paths == {}
