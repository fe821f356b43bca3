"""Codebook files: what is saved comes back, and what is no codebook is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from astra_mesh.bundle.tensors import save_tensors
from astra_mesh.errors import CodebookError
from astra_mesh.quant.codebook import BlockBook, Codebook, load_codebook
from astra_mesh.wire.messages import ModelId
from tests.unit.engine.plans import random_codec
from tests.unit.families.making import make_model

MODEL = ModelId("a" * 64)
PINNED = "9ae4c20534d872d8750a1629b0e4f176faf903ff116689b5242468be87b5e9b9"
Parts = tuple[dict[str, Tensor], dict[str, str]]


@pytest.fixture(params=["vq", "astra"])
def book(request: pytest.FixtureRequest) -> Codebook:
    return random_codec(make_model("gpt2"), request.param, stages=2).codebook


def test_a_saved_codebook_comes_back(book: Codebook, tmp_path: Path) -> None:
    path = tmp_path / "codebook.safetensors"
    book.save(path)
    found = load_codebook(path, MODEL)
    assert found.id == book.id
    assert replace(found, blocks=()) == replace(book, blocks=())
    for ours, theirs in zip(found.blocks, book.blocks, strict=True):
        for name in ("codewords", "center", "analysis", "synthesis"):
            mine, saved = getattr(ours, name), getattr(theirs, name)
            assert (mine is None and saved is None) or torch.equal(mine, saved), name


def test_the_id_is_of_the_content_only(book: Codebook, tmp_path: Path) -> None:
    """Neither the order of tensors and metadata nor foreign metadata change it."""
    path = tmp_path / "other.safetensors"
    tensors = dict(reversed(list(book.tensors().items())))
    save_tensors(path, tensors, {"by": "me"} | dict(reversed(list(book.metadata().items()))))
    assert load_codebook(path).id == book.id


def test_the_id_is_the_same_on_every_machine() -> None:
    """Pinned: peers compare ids, so the canonical form may not change without a new version."""
    codewords = torch.arange(16.0).view(1, 2, 4, 2)
    frame = torch.tensor([0.5, -1, 0, 2]), torch.eye(4), torch.eye(4) / 3
    book = Codebook("vq", MODEL, 4, 1, 1, (BlockBook(codewords, *frame),))
    assert book.id == PINNED


def test_the_id_changes_with_every_part_of_the_content(book: Codebook) -> None:
    first = book.blocks[0]
    moved = first.codewords.clone()
    moved[0, 0, 0, 0] += 1
    swapped = (book.blocks[1], book.blocks[0])
    changed = [
        replace(book, model=ModelId("b" * 64)),
        replace(book, blocks=(replace(first, codewords=moved), *book.blocks[1:])),
        replace(book, blocks=(*swapped, *book.blocks[2:])),
    ]
    if first.center is not None:
        changed.append(
            replace(book, blocks=(replace(first, center=first.center + 1), *book.blocks[1:]))
        )
    ids = {book.id, *(one.id for one in changed)}
    assert len(ids) == len(changed) + 1
    assert all(len(one) == 64 for one in ids)


def test_a_codebook_of_other_weights(book: Codebook, tmp_path: Path) -> None:
    path = tmp_path / "codebook.safetensors"
    book.save(path)
    with pytest.raises(CodebookError, match=r"other weights .* fit one for these"):
        load_codebook(path, ModelId("b" * 64))


def test_truncated_files(book: Codebook, tmp_path: Path) -> None:
    path = tmp_path / "codebook.safetensors"
    book.save(path)
    whole = path.read_bytes()
    for size in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CodebookError, match="fit it again"):
            load_codebook(path)
    with pytest.raises(CodebookError):
        load_codebook(tmp_path / "absent.safetensors")


def test_weights_are_no_codebook(tmp_path: Path) -> None:
    path = tmp_path / "codebook.safetensors"
    save_tensors(path, {"w": torch.zeros(3)})
    with pytest.raises(CodebookError, match="no codebook of version 1"):
        load_codebook(path)


def _meta(**changes: str) -> Callable[[Parts], None]:
    return lambda parts: parts[1].update(changes)


def _drop(name: str) -> Callable[[Parts], None]:
    def drop(parts: Parts) -> None:
        for part in parts:
            part.pop(name, None)

    return drop


def _tensor(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Parts], None]:
    return lambda parts: parts[0].update({name: change(parts[0][name]).contiguous()})


HOSTILE = {
    "another version": _meta(version="2"),
    "an unknown codec": _meta(codec="zip"),
    "another codec": _meta(codec="astra"),
    "no blocks": _meta(blocks="0"),
    "negative blocks": _meta(blocks="-3"),
    "too many blocks": _meta(blocks="1000000000"),
    "no number": _meta(blocks="many"),
    "a huge number": _meta(blocks="9" * 5000),
    "another first block": _meta(first_block="2"),
    "no default": _meta(default_stages="0"),
    "more stages than there are": _meta(default_stages="3"),
    "another hidden size": _meta(hidden_size="33"),
    "no model": _drop("model"),
    "a block without codewords": _drop("2.codewords"),
    "a block without rotation": _drop("2.analysis"),
    "a block without center": _drop("1.center"),
    "codewords of two dimensions": _tensor("1.codewords", lambda t: t.flatten(1)),
    "one codeword": _tensor("1.codewords", lambda t: t[:, :, :1]),
    "no codewords": _tensor("1.codewords", lambda t: t[:, :, :0]),
    "blocks of different shapes": _tensor("2.codewords", lambda t: t[:1]),
    "NaN": _tensor("2.synthesis", lambda t: t * torch.nan),
    "infinity": _tensor("1.codewords", lambda t: t * torch.inf),
    "a turned rotation": _tensor("1.analysis", lambda t: t[:-1]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(name: str, tmp_path: Path) -> None:
    book = random_codec(make_model("gpt2"), "vq", stages=2).codebook
    parts = book.tensors(), book.metadata()
    HOSTILE[name](parts)
    path = tmp_path / "codebook.safetensors"
    save_tensors(path, *parts)
    with pytest.raises(CodebookError, match=r"fit (it|one)"):
        load_codebook(path)


def test_a_book_of_one_codeword_cannot_be_packed(tmp_path: Path) -> None:
    one = BlockBook(torch.zeros(1, 32, 1, 1))
    Codebook("astra", MODEL, 32, 0, 1, (one,)).save(tmp_path / "x.safetensors")
    with pytest.raises(CodebookError, match="wrong shape"):
        load_codebook(tmp_path / "x.safetensors")
