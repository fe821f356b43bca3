"""A codebook's header says what the whole file says, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from astra_mesh.bundle.books import read_book_header
from astra_mesh.bundle.tensors import open_tensors, read_metadata, save_tensors
from astra_mesh.errors import CodebookError
from astra_mesh.quant.codebook import UNLIMITED, load_codebook
from astra_mesh.wire.messages import ModelId
from tests.unit.peer.fakes import small_model
from tests.unit.peer.test_code_times import fitted

MODEL = ModelId("a" * 64)


@pytest.mark.parametrize(
    ("codec", "history"), [("vq", 0), ("vq", UNLIMITED), ("vq", 1), ("astra", 0)]
)
def test_the_header_says_the_same(tmp_path: Path, codec: str, history: int) -> None:
    path = tmp_path / "codebook.safetensors"
    fitted(small_model("gpt2"), history, codec).save(path)
    book, header = load_codebook(path, MODEL), read_book_header(path, MODEL)
    assert (header.codec, header.rates) == (book.codec, book.rates)


@pytest.mark.parametrize(
    "changed",
    [
        {"format": "none"},
        {"version": "1"},
        {"model": "b" * 64},
        {"codec": "zip"},
        {"size": "1"},
        {"size": "x"},
        {"size": "8"},
        {"groups": "1,2"},
        {"groups": ""},
        {"stages": "0"},
        {"stages": "99"},
        {"blocks": "600"},
        {"blocks": "9"},
        {"first_block": "2"},
        {"history": "no"},
    ],
)
def test_what_is_wrong_is_an_error_of_both(tmp_path: Path, changed: dict[str, Any]) -> None:
    path = tmp_path / "codebook.safetensors"
    fitted(small_model("gpt2")).save(path)
    save_tensors(path, dict(open_tensors(path)), {**read_metadata(path), **changed})
    for read in (load_codebook, read_book_header):
        with pytest.raises(CodebookError):
            read(path, MODEL)


def test_what_is_no_file_of_tensors_is_no_codebook(tmp_path: Path) -> None:
    path = tmp_path / "codebook.safetensors"
    path.write_bytes(b"no")
    with pytest.raises(CodebookError, match="fit it again: astra-mesh fit"):
        read_book_header(path)
