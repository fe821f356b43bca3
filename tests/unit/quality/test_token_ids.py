"""Token ids as data: the same windows as of a text, also without a tokenizer; or a named error."""

from __future__ import annotations

import random
import zipfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from astra_mesh.bundle import Bundle
from astra_mesh.bundle.text import TextTokenizer
from astra_mesh.errors import CalibrationError
from astra_mesh.quality import EvalSettings, FitOptions, Sample, evaluate, fit, load_samples
from astra_mesh.quality.data import check_labels, load_inputs, stream_samples
from astra_mesh.quality.finetuning import finetune
from astra_mesh.tune.options import TuneOptions
from tests.unit.families.making import VOCAB
from tests.unit.quality.making import toy_bundle, words, write

CONTEXT = 48  # of the toy models
QUICK = FitOptions(history=0, rates=(8,), groups=2, codewords=16, iterations=2)


def bare(folder: Path, kind: str) -> Bundle:
    """A model without a tokenizer."""
    bundle = toy_bundle(folder / f"bare-{kind}", kind)
    (bundle.path / "tokenizer.json").unlink()
    return bundle


@pytest.fixture
def gpt(tmp_path: Path) -> Bundle:
    return bare(tmp_path, "gpt2")


@pytest.fixture
def bert(tmp_path: Path) -> Bundle:
    return bare(tmp_path, "bert")


def saved(folder: Path, ids: object, dtype: str = "int32", name: str = "ids.npy") -> Path:
    np.save(folder / name, np.array(ids, dtype))
    return folder / name


def numbers(samples: list[Sample]) -> list[list[int]]:
    return [one.input.tokens.tolist() for one in samples if one.input.tokens is not None]


def some(count: int) -> list[int]:
    return [(i * i) % VOCAB for i in range(count)]


# --- what is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "int16", ">i4", "int64", "uint64"])
def test_one_dimension_is_a_text_in_windows(gpt: Bundle, tmp_path: Path, dtype: str) -> None:
    ids = some(CONTEXT * 2 + 14)
    found = numbers(load_samples(gpt, saved(tmp_path, ids, dtype), limit=99))
    assert [len(one) for one in found] == [CONTEXT, CONTEXT, 14]
    assert [i for one in found for i in one] == ids


def test_windows_are_those_of_the_text(gpt: Bundle, tmp_path: Path) -> None:
    """In every view, split and size; the ids serve a model with a tokenizer, too."""
    whole = toy_bundle(tmp_path / "whole", "gpt2")
    text = write(tmp_path, {"a.txt": words(501)}) / "a.txt"
    ids = saved(tmp_path, TextTokenizer.from_bundle(whole).encode(words(501)))
    for split in (None, "fit", "eval"):
        wanted = list(islice(stream_samples(whole, text, window=10, split=split), 150))
        for bundle in (gpt, whole):
            found = list(islice(stream_samples(bundle, ids, window=10, split=split), 150))
            assert numbers(found) == numbers(wanted)
    few = numbers(load_samples(gpt, ids, limit=99))
    assert few == numbers(load_samples(whole, text, limit=99))


@pytest.mark.parametrize("order", ["C", "F"])
def test_each_row_is_a_sequence(gpt: Bundle, tmp_path: Path, order: str) -> None:
    """Longer ones are cut as documents are: no window crosses from one to the next."""
    rows = [some(13), some(13)[::-1], [5] * 13]
    path = tmp_path / "x.NPY"
    with path.open("wb") as file:
        np.save(file, np.asarray(rows, "uint16", order=order))  # type: ignore[call-overload]
    assert numbers(load_samples(gpt, path, limit=99)) == rows
    cut = numbers(load_samples(gpt, path, limit=99, window=6))  # the 13th is left over
    assert cut == [piece for row in rows for piece in (row[:6], row[6:12])]
    shifted = numbers(list(islice(stream_samples(gpt, path, window=6), 3)))
    starts = [next(k for k in range(8) if row[k : k + 6] == one) for row, one in
              zip(rows[:2], shifted, strict=False)]  # fmt: skip
    assert all(starts)


def test_encoders_read_a_sequence_per_row(bert: Bundle, tmp_path: Path) -> None:
    rows = [some(60), some(60)[::-1]]
    path = saved(tmp_path, rows)
    assert numbers(load_samples(bert, path, limit=9)) == [row[:CONTEXT] for row in rows]
    assert numbers(load_samples(bert, path, limit=9, window=7)) == [row[:7] for row in rows]
    assert numbers(load_samples(bert, saved(tmp_path, [[3], [4]]), limit=9)) == [[3], [4]]
    flat = numbers(load_samples(bert, saved(tmp_path, some(100)), limit=9))
    assert [len(one) for one in flat] == [CONTEXT, CONTEXT, 4]
    assert {one.label for one in load_samples(bert, path, limit=9, classes={0: "no"})} == {None}
    check_labels(bert, path, {0: "no"})


def test_a_large_file_stays_on_the_disk(gpt: Bundle, tmp_path: Path) -> None:
    """A gigabyte of zeros, which takes none on the disk either; only what is wanted is kept."""
    path = tmp_path / "large.npy"
    np.lib.format.open_memmap(path, "w+", "uint8", (1 << 30,)).flush()
    found = load_inputs(gpt, path, limit_tokens=CONTEXT * 3)
    assert len(found) == 3


# --- what cannot be used --------------------------------------------------------------------------

BAD: dict[str, tuple[NDArray[np.generic], str]] = {
    "floats": (np.ones(99, "float32"), r"holds float32 values; token ids are whole numbers"),
    "truth values": (np.ones(99, "bool"), "holds bool values"),
    "words": (np.array(["w1", "w2"]), "holds <U2 values"),
    "records": (np.zeros(9, [("id", "i4")]), "values; token ids are whole"),
    "a number": (np.array(3), r"has 0 dimensions: give one, .* or two"),
    "a cube": (np.ones((3, 3, 3), "int32"), "has 3 dimensions"),
    "too large": (np.array([1, VOCAB, 2]), rf"ids from 1 to {VOCAB}, .* from 0 to {VOCAB - 1}:"),
    "negative": (np.array([[1, 2], [-100, 2]]), "ids from -100 to 2, "),
    "beyond int64": (np.array([1, 2**64 - 1], "uint64"), f"ids from 1 to {2**64 - 1}, "),
    "nothing": (np.zeros(0, "int32"), "too little: at least a text of 2 tokens is needed"),
    "no rows": (np.zeros((0, 9), "int32"), "too little"),
    "empty rows": (np.zeros((9, 0), "int32"), "too little"),
    "one id": (np.array([1]), "too little"),
    "rows of one": (np.ones((9, 1), "int32"), "too little"),
}


@pytest.mark.parametrize("name", BAD)
def test_ids_that_cannot_be_used(gpt: Bundle, tmp_path: Path, name: str) -> None:
    ids, text = BAD[name]
    np.save(tmp_path / "x.npy", ids)
    with pytest.raises(CalibrationError, match=rf"^x\.npy .*{text}"):
        load_samples(gpt, tmp_path / "x.npy", limit=5)


def test_encoders_refuse_empty_sequences(bert: Bundle, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="too little: at least a sentence is needed"):
        load_samples(bert, saved(tmp_path, np.zeros((3, 0))), limit=5)


def test_a_wrong_id_is_told_before_any_window(gpt: Bundle, tmp_path: Path) -> None:
    path = saved(tmp_path, [*some(4000), VOCAB])
    with pytest.raises(CalibrationError, match="ids from 0 to"):
        next(stream_samples(gpt, path))


def test_too_few_for_a_split(gpt: Bundle, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="at least 10 windows of text are needed"):
        load_samples(gpt, saved(tmp_path, some(90)), limit=5, window=10, split="eval")


class Trap:
    """Says if it was ever unpickled."""

    sprung = False

    def __reduce__(self) -> tuple[object, tuple[type, str, bool]]:
        return setattr, (Trap, "sprung", True)


def test_objects_are_never_unpickled(gpt: Bundle, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(CalibrationError, match=r"x\.npy is damaged, or no \.npy file of numbers"):
        load_samples(gpt, tmp_path / "x.npy", limit=5)
    assert not Trap.sprung


def test_files_that_are_no_arrays(gpt: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"")
    for content in (
        path.read_bytes(),
        b"",
        b"junk",
        b"PK\x03\x04",
        b"\x93NUMPY",
        b"\x93NUMPY\x09\x00" + bytes(99),
    ):
        path.write_bytes(content)
        with pytest.raises(CalibrationError, match=r"x\.npy is damaged"):
            load_samples(gpt, path, limit=5)
    with pytest.raises(CalibrationError, match="no file or folder"):
        load_samples(gpt, tmp_path / "absent.npy", limit=5)
    (tmp_path / "folder.npy").mkdir()
    saved(tmp_path / "folder.npy", [1, 2])
    with pytest.raises(CalibrationError, match=r"token ids come as one \.npy file"):
        load_samples(toy_bundle(tmp_path / "whole", "gpt2"), tmp_path / "folder.npy", limit=5)


@pytest.mark.filterwarnings("ignore:Reading `.npy`")
def test_damage_anywhere_is_named(gpt: Bundle, tmp_path: Path) -> None:
    """Or makes other ids of the data, which nobody can tell."""
    whole = saved(tmp_path, some(40), "uint8").read_bytes()
    path = tmp_path / "x.npy"
    drawn = random.Random(5)
    for length in range(0, len(whole), 3):
        path.write_bytes(whole[:length])
        with pytest.raises(CalibrationError, match="is damaged"):
            load_samples(gpt, path, limit=5)
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(drawn.choice((1, 1, 3))):
            content[drawn.randrange(80)] = drawn.choice(b"\x00\xff0123456789'(),{}: \n<>OfU")
        path.write_bytes(content)
        try:
            assert load_samples(gpt, path, limit=5)
        except CalibrationError as error:
            assert error.message.startswith("x.npy ")  # noqa: PT017


def test_models_of_pictures_read_no_ids(tmp_path: Path) -> None:
    vit = toy_bundle(tmp_path / "vit", "vit")
    with pytest.raises(CalibrationError, match=r"reads pictures: give .*, not ids\.npy"):
        load_samples(vit, saved(tmp_path, [1, 2]), limit=5)


# --- what is done with them -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
def test_models_without_tokenizer_are_fitted_and_measured(tmp_path: Path, kind: str) -> None:
    """As one with its tokenizer is on the text of the same ids."""
    whole, path = toy_bundle(tmp_path / "whole", kind), tmp_path / "a.txt"
    lines = [words(20, 20, start) for start in range(30)]
    path.write_text("<|endoftext|>\n".join(lines) if kind != "bert" else "".join(lines))
    tokenizer = TextTokenizer.from_bundle(whole)
    ids = saved(tmp_path, [tokenizer.encode(line) for line in lines])
    bundle = bare(tmp_path, kind)
    assert fit(bundle, ids, QUICK).codebook.id == fit(whole, path, QUICK).codebook.id
    settings = EvalSettings(codecs=("vq",), limit=9)
    found, wanted = evaluate(bundle, ids, settings), evaluate(whole, path, settings)
    assert found.rows == wanted.rows
    assert (found.data, found.sequences) == ("ids.npy", 9)


def test_models_without_tokenizer_are_finetuned(gpt: Bundle, tmp_path: Path) -> None:
    ids = saved(tmp_path, some(CONTEXT * 40))
    options = TuneOptions(steps=2, batch=2, check=2, held_out=2, patience=0)
    made = finetune(gpt, ids, QUICK, options, tmp_path / "tuned")
    assert made is not None
    assert made.tuned.steps == 2
