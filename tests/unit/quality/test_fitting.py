"""Fitting from files: the codebook lies in the bundle, whole, and the manifest knows it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from astra_mesh.bundle import Bundle, open_bundle, verify, write_manifest
from astra_mesh.bundle.tensors import open_tensors, read_metadata, save_tensors
from astra_mesh.errors import (
    AstraMeshError,
    BadBundleError,
    CalibrationError,
    CodebookError,
    InputError,
    ModelError,
    WrongTaskError,
)
from astra_mesh.quality import FitOptions, Fitted, fit
from astra_mesh.quant import block_fit as fit_module
from astra_mesh.quant.block_fit import FoundBlock
from astra_mesh.quant.codebook import load_codebook
from tests.unit.families.making import BLOCKS, make_tensors
from tests.unit.quality.full_disk import files_of_at_most
from tests.unit.quality.making import picture, toy_bundle, words, write

QUICK = FitOptions(codewords=16, rates=(4, 16), default_rate=16, iterations=2)
ASTRA = replace(QUICK, codec="astra", groups=8, history=0, rates=())
KINDS = {"all": QUICK, "none": replace(QUICK, history=0), "one": replace(QUICK, history=1)}
KINDS |= {"astra": ASTRA}
PIECES = {"all": 2 * (BLOCKS - 1), "none": BLOCKS - 1, "one": 2 * (BLOCKS - 1), "astra": BLOCKS}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return toy_bundle(tmp_path / "toy", "gpt2")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path, {"data.txt": words(600)}) / "data.txt"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- where it goes --------------------------------------------------------------------------------


def test_the_codebook_lies_in_the_bundle(bundle: Bundle, data: Path) -> None:
    steps: list[tuple[int, int, str]] = []
    found = fit(bundle, data, QUICK, lambda done, total, what: steps.append((done, total, what)))
    assert found.path == bundle.path / "codebook.safetensors"
    assert open_bundle(bundle.path).codebook_paths == {"": found.path}
    loaded = load_codebook(found.path, bundle.model_id)
    assert loaded.id == found.codebook.id
    assert loaded.rates == {1: 4, 3: 16}
    assert loaded.history == -1
    assert [what for _, _, what in steps][:2] == ["reading the model", "reading the data"]
    assert all(0 <= done <= total for done, total, _ in steps)
    assert steps[-1][0] == steps[-1][1]
    assert "codebook.safetensors" in verify(open_bundle(bundle.path))


def test_the_report_tells_what_was_read_and_how_well_it_is_coded(
    bundle: Bundle, data: Path
) -> None:
    found = fit(bundle, data, QUICK)
    assert found.resumed == 0
    assert (found.report.tokens, found.report.sequences) == (600, 13)  # windows of 48
    assert [(one.block, one.bits) for one in found.report.blocks] == [
        (1, 4),
        (2, 4),
        (1, 16),
        (2, 16),
    ]
    coarse, fine = found.report.blocks[:2], found.report.blocks[2:]
    for few, many in zip(coarse, fine, strict=True):
        assert 0 < many.left < few.left < few.predicted <= 1.01


@pytest.mark.parametrize(
    ("kind", "name"),
    [("none", "codebook-h0"), ("one", "codebook-h1"), ("astra", "codebook-astra-g8")],
)
def test_other_kinds_have_their_own_names(bundle: Bundle, data: Path, kind: str, name: str) -> None:
    assert fit(bundle, data, QUICK).path.name == "codebook.safetensors"
    assert fit(bundle, data, KINDS[kind]).path.name == f"{name}.safetensors"
    assert set(open_bundle(bundle.path).codebook_paths) == {"", name.removeprefix("codebook-")}


def test_the_manifest_is_renewed(bundle: Bundle, data: Path) -> None:
    write_manifest(bundle.path)
    first = fit(open_bundle(bundle.path), data, QUICK).path
    assert first.name in verify(open_bundle(bundle.path))
    fit(open_bundle(bundle.path), data, replace(QUICK, seed=5))
    assert first.name in verify(open_bundle(bundle.path))


def test_another_place_leaves_the_bundle_alone(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    write_manifest(bundle.path)
    before = contents(bundle.path)
    other = tmp_path / "other.safetensors"
    assert fit(open_bundle(bundle.path), data, QUICK, output=other).path == other
    assert load_codebook(other, bundle.model_id).groups == (1, 1, 2)
    assert contents(bundle.path) == before


# --- what it depends on ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_data_give_the_same_codebook(
    bundle: Bundle, data: Path, tmp_path: Path, kind: str
) -> None:
    options = KINDS[kind]
    ids = [
        fit(bundle, data, chosen, output=tmp_path / f"{number}.safetensors").codebook.id
        for number, chosen in enumerate((options, options, replace(options, seed=1)))
    ]
    assert ids[0] == ids[1] != ids[2]


def test_a_split_reads_other_data(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    ids = {
        fit(bundle, data, QUICK, output=tmp_path / "x", window=20, split=split).codebook.id
        for split in (None, "fit")
    }
    assert len(ids) == 2


def test_other_weights_have_another_codebook(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    """Which neither loads for the other, though all else is the same."""
    other = toy_bundle(tmp_path / "other", "gpt2")
    tensors = make_tensors("gpt2")
    tensors["transformer.h.2.mlp.c_proj.bias"] += 1e-3
    save_tensors(other.path / "model.safetensors", tensors)
    other = open_bundle(other.path)
    mine, theirs = fit(bundle, data, QUICK), fit(other, data, QUICK)
    assert mine.codebook.id != theirs.codebook.id
    for found, wrong in ((mine, other), (theirs, bundle)):
        with pytest.raises(CodebookError, match="was fitted for other weights"):
            load_codebook(found.path, wrong.model_id)


# --- interruptions --------------------------------------------------------------------------------


@contextmanager
def stopped_after(pieces: int) -> Iterator[list[int]]:
    """Fitting is killed when it begins another block; yields the blocks that it did."""
    plain, done = fit_module.BlockFit.run, list[int]()

    def run(self: fit_module.BlockFit, *arguments: object) -> FoundBlock:
        if len(done) == pieces:
            raise KeyboardInterrupt
        done.append(self.index)
        return plain(self, *arguments)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_module.BlockFit, "run", run)
        yield done


def interrupted(bundle: Bundle, data: Path, options: FitOptions, pieces: int) -> Path:
    """The hidden file that a killed run leaves."""
    with stopped_after(pieces), pytest.raises(KeyboardInterrupt):
        fit(bundle, data, options)
    (left,) = bundle.path.glob(".codebook*")
    return left


def resumed(bundle: Bundle, data: Path, options: FitOptions) -> tuple[Fitted, int]:
    """A run that is not stopped, and how many blocks it fitted itself."""
    with stopped_after(999) as done:
        return fit(bundle, data, options), len(done)


@pytest.mark.parametrize(
    ("kind", "pieces"), [(kind, pieces) for kind in KINDS for pieces in range(1, PIECES[kind])]
)
def test_a_run_that_was_killed_goes_on(
    bundle: Bundle, data: Path, tmp_path: Path, kind: str, pieces: int
) -> None:
    options = KINDS[kind]
    whole = fit(bundle, data, options, output=tmp_path / "whole.safetensors")
    interrupted(bundle, data, options, pieces)
    assert open_bundle(bundle.path).codebook_paths == {}  # a part is no codebook
    found, fitted = resumed(bundle, data, options)
    assert (found.resumed, fitted) == (pieces, PIECES[kind] - pieces)
    assert found.codebook.id == whole.codebook.id
    assert load_codebook(found.path).id == whole.codebook.id
    assert not [path for path in bundle.path.iterdir() if path.name.startswith(".")]


def test_a_part_of_something_else_is_not_used(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    """Of other options, data or weights: the outcome is that of a run of its own."""
    other = write(tmp_path, {"other.txt": words(600, start=1)}) / "other.txt"
    whole = fit(bundle, data, QUICK, output=tmp_path / "whole.safetensors").codebook.id
    part = interrupted(bundle, other, QUICK, 3)
    assert resumed(bundle, data, QUICK)[0].codebook.id == whole
    for options in (replace(QUICK, seed=1), replace(QUICK, rates=(4, 8), default_rate=8)):
        assert interrupted(bundle, data, options, 3) == part
        found, fitted = resumed(bundle, data, QUICK)
        assert (found.resumed, fitted) == (0, 4)
        assert found.codebook.id == whole
    kept = interrupted(bundle, data, QUICK, 3).read_bytes()
    tensors = make_tensors("gpt2", seed=1)
    save_tensors(bundle.path / "model.safetensors", tensors)
    part.write_bytes(kept)
    (bundle.path / "manifest.json").unlink()
    assert resumed(open_bundle(bundle.path), data, QUICK)[1] == 4


@pytest.mark.parametrize("damage", ["cut", "junk", "empty", "a tensor is gone"])
def test_a_damaged_part_is_not_used(
    bundle: Bundle, data: Path, tmp_path: Path, damage: str
) -> None:
    whole = fit(bundle, data, QUICK, output=tmp_path / "whole.safetensors").codebook.id
    part = interrupted(bundle, data, QUICK, 2)
    content = part.read_bytes()
    if damage == "a tensor is gone":
        tensors, meta = open_tensors(part), read_metadata(part)
        del tensors["1.1.codewords.0"]
        save_tensors(part, tensors, meta)
    else:
        part.write_bytes({"cut": content[:-40], "junk": b"x" * 999, "empty": b""}[damage])
    found, fitted = resumed(bundle, data, QUICK)
    assert (found.resumed, fitted) == (0, 4)
    assert found.codebook.id == whole
    assert not part.exists()


def test_one_run_at_a_time_writes_a_codebook(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    texts = []

    def progress(done: int, total: int, what: str) -> None:
        if what == "reading the data":
            with pytest.raises(ModelError) as caught:
                fit(bundle, data, QUICK)
            texts.append(caught.value.message)
            fit(bundle, data, QUICK, output=tmp_path / "other.safetensors")

    found = fit(bundle, data, QUICK, progress)
    assert texts == [
        f"another run is using {found.path} (process {os.getpid()}): wait for it, or stop it"
    ]
    assert not [path for path in bundle.path.iterdir() if path.name.startswith(".")]


# --- what goes wrong ------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_old_codebook(bundle: Bundle, data: Path) -> None:
    old = fit(bundle, data, replace(QUICK, seed=1))
    before = contents(bundle.path)
    with files_of_at_most(3000), pytest.raises(ModelError, match="cannot write toy/"):
        fit(open_bundle(bundle.path), data, QUICK)
    assert contents(bundle.path) == before
    assert load_codebook(old.path).id == old.codebook.id


def test_a_full_disk_loses_nothing_that_was_fitted(
    bundle: Bundle,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The library tells of it in words only."""
    plain = safetensors.torch.save_file
    full: list[Path] = []

    def save(tensors: dict[str, torch.Tensor], path: Path, **options: Any) -> None:
        if len(full) == 2:
            raise safetensors.SafetensorError("I/O error: No space left (os error 28)")
        full.append(path)
        plain(tensors, path, **options)

    monkeypatch.setattr(safetensors.torch, "save_file", save)
    part = bundle.path / ".codebook.partial.safetensors"
    wanted = rf"no space left to write {part}: make room.*; what was fitted before is kept there"
    with pytest.raises(ModelError, match=wanted):
        fit(bundle, data, QUICK)
    assert len(full) == 2
    assert list(bundle.path.glob(".*")) == [part]
    monkeypatch.setattr(safetensors.torch, "save_file", plain)
    kept = part.read_bytes()
    assert fit(bundle, data, QUICK).resumed == 2
    assert not list(bundle.path.glob(".*"))
    assert not caplog.records
    part.write_bytes(kept)
    assert fit(bundle, data, replace(QUICK, seed=3)).resumed == 0
    assert f"{part}: an interrupted run of another model, other options" in caplog.text


@pytest.mark.parametrize("place", ["in the model's folder", "elsewhere"])
def test_a_place_that_takes_no_files_is_named_before_any_work(
    bundle: Bundle, data: Path, tmp_path: Path, place: str
) -> None:
    output = tmp_path / "x" / "book.safetensors" if place == "elsewhere" else None
    if output is not None:
        output.parent.mkdir()
    before, steps = contents(bundle.path), []
    with files_of_at_most(0), pytest.raises(InputError, match=r"safetensors cannot be written"):
        fit(bundle, data, QUICK, lambda done, total, what: steps.append(what), output)
    assert steps == []
    assert contents(bundle.path) == before
    assert output is None or not any(output.parent.iterdir())


def test_a_disk_that_is_full_at_the_end_loses_no_work(
    bundle: Bundle, data: Path, tmp_path: Path
) -> None:
    whole = fit(bundle, data, QUICK, output=tmp_path / "whole.safetensors")
    old = fit(bundle, data, replace(QUICK, seed=1))
    kept = old.path.read_bytes()
    with ExitStack() as stack:

        def progress(done: int, total: int, what: str) -> None:
            if what == "done":
                stack.enter_context(files_of_at_most(3000))

        with pytest.raises(ModelError, match=r"cannot write toy/codebook\.safetensors"):
            fit(open_bundle(bundle.path), data, QUICK, progress)
    assert old.path.read_bytes() == kept
    assert "codebook.safetensors" in verify(open_bundle(bundle.path))
    found, fitted = resumed(open_bundle(bundle.path), data, QUICK)
    assert (found.resumed, fitted) == (4, 0)
    assert found.codebook.id == whole.codebook.id
    assert load_codebook(found.path).id == whole.codebook.id


TOO_LITTLE = (
    r"600 calibration tokens are too few for 256 codewords: give at least 2560 tokens "
    r"\(more text or pictures\), or fewer codewords"
)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (replace(QUICK, codewords=256, rates=(8,)), TOO_LITTLE),
        (replace(QUICK, groups=99), "groups must lie in 1..32"),
        (replace(QUICK, rates=()), "no rate"),
        (replace(QUICK, rates=(6,)), "a rate of 6 bits cannot be"),
        (replace(QUICK, max_tokens=100), "16 codewords need at least 160"),
        (replace(ASTRA, groups=5), "groups that divide"),
    ],
)
def test_failures_leave_no_file(bundle: Bundle, data: Path, options: FitOptions, text: str) -> None:
    before = contents(bundle.path)
    with pytest.raises(CalibrationError, match=text):
        fit(bundle, data, options)
    assert contents(bundle.path) == before


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_named(bundle: Bundle, data: Path, value: float) -> None:
    tensors = make_tensors("gpt2")
    tensors["transformer.h.1.attn.c_attn.weight"][3, 4] = value
    save_tensors(bundle.path / "model.safetensors", tensors)
    with pytest.raises(BadBundleError, match=r"NaN or Inf in 'transformer\.h\.1\.attn"):
        fit(open_bundle(bundle.path), data, QUICK)
    assert open_bundle(bundle.path).codebook_paths == {}


WRONG_DATA: dict[str, tuple[str, str, str]] = {
    "pictures for a text model": ("gpt2", "x.png", r"a \.txt file, or .* \(\.npy\), not x\.png"),
    "text for a picture model": ("vit", "x.txt", r"reads pictures: give a folder or \.zip"),
    "pictures for an encoder": ("bert", "x.png", r"a \.tsv or \.txt file, or .* not x\.png"),
    "nothing": ("gpt2", "absent.txt", "there is no file or folder"),
}


@pytest.mark.parametrize("name", WRONG_DATA)
def test_data_of_the_wrong_kind_are_named(tmp_path: Path, name: str) -> None:
    kind, file, text = WRONG_DATA[name]
    write(tmp_path, {"x.png": picture(1), "x.txt": words(600)})
    bundle = toy_bundle(tmp_path / "toy", kind)
    with pytest.raises(CalibrationError, match=text):
        fit(bundle, tmp_path / file, QUICK)
    assert open_bundle(bundle.path).codebook_paths == {}


def test_a_task_that_the_model_cannot_do_is_named(bundle: Bundle, data: Path) -> None:
    with pytest.raises(WrongTaskError, match="cannot classify; it can generate"):
        fit(bundle, data, QUICK, task="classify")


def test_all_errors_are_of_the_package(bundle: Bundle, tmp_path: Path) -> None:
    """So that the command line shows a line and no traceback."""
    with pytest.raises(AstraMeshError) as caught:
        fit(bundle, tmp_path / "no" / "such", QUICK)
    assert "no file or folder" in caught.value.message
