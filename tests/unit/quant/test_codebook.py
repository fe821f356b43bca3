"""Codebook files: what is saved comes back, and what is no codebook is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from astra_mesh.bundle.tensors import save_tensors
from astra_mesh.errors import CodebookError
from astra_mesh.quant import codebook as module
from astra_mesh.quant.codebook import (
    UNLIMITED,
    BlockBook,
    Codebook,
    as_stored,
    check,
    load_codebook,
    stage_groups,
)
from astra_mesh.wire.messages import ModelId
from tests.unit.engine.plans import random_book
from tests.unit.families.making import make_model

MODEL = ModelId("a" * 64)
PINNED = "4789a37330da6b268de5e445021f9b729e56c78c8560d0f7c62af53278825278"
PINNED_HISTORY = "a47739b32f2ba825cbb476f67866156734e4d225faf49534e20d56d506fe180b"
Parts = tuple[dict[str, Tensor], dict[str, str]]
NAMES = ("codewords", "orders", "center", "analysis", "synthesis", "predict")


@pytest.fixture(params=["vq", "vq 1", "vq 2", "vq unlimited", "astra"])
def book(request: pytest.FixtureRequest) -> Codebook:
    codec, _, history = request.param.partition(" ")
    depth = UNLIMITED if history == "unlimited" else int(history or 0)
    return random_book(make_model("gpt2"), codec, history=depth)


def same(ours: BlockBook, theirs: BlockBook) -> bool:
    """Every bit of every tensor."""
    mine, others = ours.tensors(), theirs.tensors()
    return list(mine) == list(others) and all(torch.equal(mine[k], others[k]) for k in mine)


def changed(book: Codebook, block: int, stages: int, **parts: Any) -> Codebook:
    """The book with other tensors in one of its blocks."""
    books = list(book.levels[stages])
    books[block - book.first_block] = replace(books[block - book.first_block], **parts)
    return replace(book, levels={**book.levels, stages: tuple(books)})


def test_a_saved_codebook_comes_back(book: Codebook, tmp_path: Path) -> None:
    path = tmp_path / "codebook.safetensors"
    book.save(path)
    found = load_codebook(path, MODEL)
    assert found.id == book.id
    assert replace(found, levels={}) == replace(book, levels={})
    assert found.able == book.able
    assert found.rates == book.rates
    for stages in book.able:
        for block in range(book.first_block, book.first_block + book.blocks):
            assert same(found.book(block, stages), book.book(block, stages))


def test_a_file_that_is_replaced_while_it_is_read_is_refused(
    book: Codebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = tmp_path / "codebook.safetensors", tmp_path / "other"
    book.save(path)
    book.save(other)

    def swapping(found: Codebook) -> None:
        check(found)
        other.replace(path)

    monkeypatch.setattr(module, "check", swapping)
    with pytest.raises(CodebookError, match="changed while it was read"):
        load_codebook(path, MODEL)


def test_what_nobody_uses_stays_as_it_is_stored(book: Codebook, tmp_path: Path) -> None:
    path = tmp_path / "codebook.safetensors"
    book.save(path)
    found = load_codebook(path, MODEL)
    for books in found.levels.values():
        for one in books:
            large = [*one.codewords, one.analysis, one.synthesis, one.predict]
            assert {t.dtype for t in large if t is not None} == {torch.float16}
    one = found.book(1, found.stages)
    large = [*one.codewords, one.analysis, one.synthesis, one.predict]
    assert {t.dtype for t in large if t is not None} == {torch.float32}


def test_fitting_sees_what_the_file_will_have(book: Codebook) -> None:
    for books in book.levels.values():
        for one in books:
            for name in NAMES:
                mine, stored = getattr(one, name), getattr(as_stored(one), name)
                if isinstance(mine, tuple):
                    assert all(map(torch.equal, mine, stored))
                else:
                    assert (mine is None and stored is None) or torch.equal(mine, stored), name


def test_the_numbers_of_stages_that_can_be_used() -> None:
    """Without history all prefixes; with history those that were fitted."""
    plain = random_book(make_model("gpt2"), stages=3)
    assert (plain.able, plain.stages, list(plain.levels)) == ((1, 2, 3), 3, [3])
    assert plain.rates == {1: 16, 2: 36, 3: 48}  # 4, 5 and 3 groups of 4 bits
    assert same(plain.book(2, 1), plain.book(2, 3).first(1))
    assert len(plain.book(2, 1).codewords) == len(plain.book(2, 1).orders) == 1
    whole = random_book(make_model("gpt2"), stages=3, history=1)
    some = replace(whole, levels={s: whole.levels[s] for s in (3, 1)})
    assert (some.able, some.stages, some.rates) == ((1, 3), 3, {1: 16, 3: 48})
    with pytest.raises(KeyError):
        some.book(1, 2)


def test_levels_that_leave_some_out_come_back(tmp_path: Path) -> None:
    whole = random_book(make_model("gpt2"), stages=3, history=UNLIMITED)
    some = replace(whole, levels={s: whole.levels[s] for s in (3, 1)}, default_stages=1)
    some.save(tmp_path / "codebook.safetensors")
    found = load_codebook(tmp_path / "codebook.safetensors")
    assert found.id == some.id != whole.id
    assert (found.able, found.default_stages) == ((1, 3), 1)


def test_the_id_is_of_the_content_only(book: Codebook, tmp_path: Path) -> None:
    """Neither the order of tensors and metadata nor foreign metadata change it."""
    path = tmp_path / "other.safetensors"
    tensors = dict(reversed(list(book.tensors().items())))
    save_tensors(path, tensors, {"by": "me"} | dict(reversed(list(book.metadata().items()))))
    assert load_codebook(path).id == book.id


def test_the_id_is_the_same_on_every_machine() -> None:
    """Pinned: peers compare ids, so the canonical form may not change without a new version."""
    codewords = torch.arange(16.0).view(2, 4, 2), torch.arange(4.0).view(1, 4, 1) / 4
    orders = torch.tensor([3, 1, 0, 2]), torch.tensor([2])
    frame = torch.tensor([0.5, -1, 0, 2]), torch.eye(4), torch.eye(4) / 3
    first = BlockBook(codewords[:1], orders[:1], *frame)
    book = Codebook("vq", MODEL, 4, 1, 0, (2,), 4, 1, {1: (first,)})
    assert book.id == PINNED
    both = BlockBook(codewords, orders, *frame, torch.eye(4).unsqueeze(0) / 2)
    levels = {1: (replace(first, predict=both.predict),), 2: (both,)}
    assert Codebook("vq", MODEL, 4, 1, -1, (2, 1), 4, 2, levels).id == PINNED_HISTORY


def test_the_id_changes_with_every_part_of_the_content(book: Codebook) -> None:
    stages, block = book.stages, book.first_block + 1
    books = book.levels[stages]
    one = book.book(block, stages)
    others = [replace(book, model=ModelId("b" * 64)), replace(book, class_token="distributed")]
    others.append(replace(book, levels={**book.levels, stages: tuple(reversed(books))}))
    for name in NAMES:
        part = getattr(one, name)
        if isinstance(part, tuple):
            for at, tensor in enumerate(part):
                moved = tensor.clone()
                moved.view(-1)[-1] += 1
                both = (*part[:at], moved, *part[at + 1 :])
                others.append(changed(book, block, stages, **{name: both}))
        elif part is not None:
            others.append(changed(book, block, stages, **{name: part + 1}))
    if book.history:
        others.append(changed(book, block, 1, predict=one.predict * 0))  # type: ignore[operator]
    ids = {book.id, *(one.id for one in others)}
    assert len(ids) == len(others) + 1
    assert all(len(one) == 64 for one in ids)
    assert replace(book, default_stages=1).id == book.id  # what is default is no content


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
    with pytest.raises(CodebookError, match="no codebook of version 2"):
        load_codebook(path)


def _meta(**changes: str) -> Callable[[Parts], object]:
    return lambda parts: parts[1].update(changes)


def _drop(name: str) -> Callable[[Parts], None]:
    def drop(parts: Parts) -> None:
        for part in parts:
            part.pop(name, None)

    return drop


def _tensor(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Parts], None]:
    return lambda parts: parts[0].update({name: change(parts[0][name]).contiguous()})


def _same_order(t: Tensor) -> Tensor:
    """One coordinate twice."""
    t = t.clone()
    t[t == 5] = 6
    return t


def _order(value: int) -> Callable[[Tensor], Tensor]:
    """An order whose place 3 is something else."""

    def change(t: Tensor) -> Tensor:
        t = t.clone()
        t[3] = value
        return t

    return change


def _add(name: str, tensor: Tensor) -> Callable[[Parts], None]:
    return lambda parts: parts[0].update({name: tensor})


HOSTILE = {
    "another version": _meta(version="1"),
    "an unknown codec": _meta(codec="zip"),
    "another codec": _meta(codec="astra"),
    "no blocks": _meta(blocks="0"),
    "negative blocks": _meta(blocks="-3"),
    "too many blocks": _meta(blocks="1000000000"),
    "more blocks than there are": _meta(blocks="3"),
    "no number": _meta(blocks="many"),
    "a huge number": _meta(blocks="9" * 5000),
    "another first block": _meta(first_block="2"),
    "the first block too": _meta(first_block="0"),
    "no default": _meta(default_stages="0"),
    "a default beyond the stages": _meta(default_stages="3"),
    "another hidden size": _meta(hidden_size="33"),
    "a hidden size of nothing": _meta(hidden_size="0"),
    "no model": _drop("model"),
    "no groups": _meta(groups=""),
    "other groups": _meta(groups="5,4"),
    "fewer groups than stages": _meta(groups="4"),
    "more groups than stages": _meta(groups="4,5,1"),
    "groups of nothing": _meta(groups="4,0"),
    "far too many groups": _meta(groups=",".join(["1"] * 5000)),
    "more stages than there are": _meta(stages="3"),
    "no stages": _meta(stages=""),
    "zero stages": _meta(stages="0"),
    "a negative number of stages": _meta(stages="-1,2"),
    "another number of codewords": _meta(size="17"),
    "one codeword": _meta(size="1"),
    "codewords beyond 16 bits": _meta(size="65537"),
    "a block without codewords": _drop("2.2.codewords.1"),
    "a block without order": _drop("2.2.order.1"),
    "a block without orders": lambda parts: [_drop(f"2.2.order.{i}")(parts) for i in (0, 1)],
    "a block without rotation": _drop("2.2.analysis"),
    "a block without a way back": _drop("2.2.synthesis"),
    "a block without center": _drop("2.1.center"),
    "codewords of two dimensions": _tensor("2.1.codewords.0", lambda t: t.flatten(1)),
    "too few codewords": _tensor("2.1.codewords.0", lambda t: t[:, :1]),
    "no codewords": _tensor("2.1.codewords.0", lambda t: t[:, :0]),
    "codewords without width": _tensor("2.1.codewords.0", lambda t: t[:, :, :0]),
    "codewords of another width": _tensor("2.1.codewords.0", lambda t: t[:, :, :-1]),
    "groups of different number": _tensor("2.2.codewords.1", lambda t: t[:1]),
    "NaN in the codewords": _tensor("2.1.codewords.1", lambda t: t * torch.nan),
    "NaN": _tensor("2.2.synthesis", lambda t: t * torch.nan),
    "a center of NaN": _tensor("2.2.center", lambda t: t * torch.nan),
    "infinity": _tensor("2.1.codewords.0", lambda t: t * torch.inf),
    "a rotation that lacks a row": _tensor("2.1.analysis", lambda t: t[:-1]),
    "a rotation of one dimension": _tensor("2.1.analysis", lambda t: t.flatten()),
    "a rotation of none": _tensor("2.1.analysis", lambda t: t.sum()),
    "a center of another size": _tensor("2.1.center", lambda t: t[:-1]),
    "an order with a negative place": _tensor("2.1.order.0", _order(-1)),
    "an order beyond the coordinates": _tensor("2.1.order.1", _order(33)),
    "an order beyond all bounds": _tensor("2.1.order.1", _order(2**31 - 1)),
    "an order with one place twice": _tensor("2.2.order.0", _same_order),
    "an order that is too short": _tensor("2.1.order.0", lambda t: t[:-1]),
    "an order that is too long": _tensor("2.1.order.0", lambda t: torch.cat([t, t[:1]])),
    "an order of two dimensions": _tensor("2.1.order.0", lambda t: t.view(4, -1)),
    "an order of no dimension": _tensor("2.1.order.0", lambda t: t.sum()),
    "a prediction without history": _add("2.1.predict", torch.zeros(1, 32, 32).half()),
    "a history without prediction": _meta(history="1", stages="2"),
    "an unknown history": _meta(history="-2"),
    "no history": _drop("history"),
    "levels without history": lambda parts: _levels(parts),
    "an unknown class token": _meta(class_token="none"),
    "no class token": _drop("class_token"),
}


def _levels(parts: Parts) -> object:
    for name in list(parts[0]):
        parts[0]["1" + name[1:]] = parts[0][name]
    return parts[1].update(stages="1,2")


def hostile(book: Codebook, spoil: Callable[[Parts], object], path: Path) -> None:
    parts = book.tensors(), book.metadata()
    spoil(parts)
    save_tensors(path, *parts)
    with pytest.raises(CodebookError, match=r"fit (it|one)"):
        load_codebook(path)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(name: str, tmp_path: Path) -> None:
    book = random_book(make_model("gpt2"))
    book.save(tmp_path / "good.safetensors")
    load_codebook(tmp_path / "good.safetensors")
    hostile(book, HOSTILE[name], tmp_path / "codebook.safetensors")


HOSTILE_HISTORY = {
    "no prediction at all": _drop("2.2.predict"),
    "no prediction at one rate": _drop("1.2.predict"),
    "no prediction from the known block": _drop("2.1.predict"),
    "one matrix too many": _tensor("2.2.predict", lambda t: torch.cat([t, t[:1]])),
    "one matrix too few": _tensor("2.2.predict", lambda t: t[:-1]),
    "a matrix that is not square": _tensor("2.2.predict", lambda t: t[:, :-1]),
    "matrices of other rows": _tensor("2.2.predict", lambda t: t[:, :, :-1]),
    "one matrix without its dimension": _tensor("2.1.predict", lambda t: t[0]),
    "NaN in the prediction": _tensor("1.2.predict", lambda t: t * torch.nan),
    "infinity in the prediction": _tensor("2.1.predict", lambda t: t * torch.inf),
    "no history": _meta(history="0"),
    "a first block that is not known": _meta(first_block="0"),
    "a rate that lacks a block": _drop("1.2.codewords.0"),
    "a rate that is not there": _meta(stages="1,2,3"),
    "only the lower rate": _meta(stages="1"),
    "a default that was left out": _meta(stages="2", default_stages="1"),
    "astra": _meta(codec="astra"),
}


@pytest.mark.parametrize("name", HOSTILE_HISTORY)
def test_hostile_files_with_history(name: str, tmp_path: Path) -> None:
    """Three blocks and a window of two: the predictions are from one block and from two."""
    book = random_book(make_model("gpt2"), history=2)
    book.save(tmp_path / "good.safetensors")
    load_codebook(tmp_path / "good.safetensors")
    hostile(book, HOSTILE_HISTORY[name], tmp_path / "codebook.safetensors")


def test_an_unlimited_history_has_one_matrix_for_each_block(tmp_path: Path) -> None:
    book = random_book(make_model("gpt2"), history=UNLIMITED)
    path = tmp_path / "codebook.safetensors"
    for block in (1, 2):
        twice = _tensor(f"2.{block}.predict", lambda t: torch.cat([t, t]))
        hostile(book, twice, path)
        hostile(book, _drop(f"2.{block}.predict"), path)
    parts = book.tensors(), book.metadata()
    _meta(first_block="0", blocks="3")(parts)
    for name in list(parts[0]):
        if ".1." in name:  # block 0 in the shape of block 1, predicted from nothing that exists
            parts[0][name.replace(".1.", ".0.")] = parts[0][name]
    save_tensors(path, *parts)
    with pytest.raises(CodebookError, match="first block that is known"):
        load_codebook(path)


HOSTILE_ASTRA = {
    "a history": _meta(history="1"),
    "an unlimited history": _meta(history="-1"),
    "two stages": _meta(stages="1,2"),
    "groups that do not tile": _tensor("1.1.codewords.0", lambda t: t[:, :, :-1]),
    "an order": _add("1.1.order.0", torch.full((32,), 99, dtype=torch.int32)),
    "a center": _add("1.1.center", torch.zeros(32)),
    "a prediction": _add("1.1.predict", torch.zeros(1, 32, 32).half()),
}


@pytest.mark.parametrize("name", HOSTILE_ASTRA)
def test_hostile_files_of_astra(name: str, tmp_path: Path) -> None:
    book = random_book(make_model("gpt2"), "astra")
    hostile(book, HOSTILE_ASTRA[name], tmp_path / "codebook.safetensors")


def test_a_book_of_one_codeword_cannot_be_packed(tmp_path: Path) -> None:
    one = BlockBook((torch.zeros(1, 1, 32),))
    book = Codebook("astra", MODEL, 32, 0, 0, (1,), 1, 1, {1: (one,)})
    book.save(tmp_path / "x.safetensors")
    with pytest.raises(CodebookError, match="sizes out of range"):
        load_codebook(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("wanted", "first", "groups"),
    [
        ([1, 2, 4, 8], 1, (1, 1, 2, 4)),
        ([4, 12], 1, (1, 1, 2, 4, 4)),
        ([8], 8, (8,)),
        ([8, 4], 4, (4, 4)),
        ([2, 3, 16], 2, (2, 1, 3, 6, 4)),
        ([1], 1, (1,)),
    ],
)
def test_stages_whose_prefixes_have_the_wanted_numbers(
    wanted: list[int], first: int, groups: tuple[int, ...]
) -> None:
    assert stage_groups(wanted, first) == groups
    sums = [sum(groups[:stages]) for stages in range(1, len(groups) + 1)]
    assert set(wanted) <= set(sums)
