"""Coding with a codebook: both ends agree, both decoders agree, and pieces make the whole."""

from __future__ import annotations

import platform
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from astra_mesh.families import Model
from astra_mesh.families.packed import can_pack
from astra_mesh.quant import coders, vector
from astra_mesh.quant.codebook import UNLIMITED, Codebook, load_codebook
from astra_mesh.quant.codecs import CodeArray, VectorCodec, make_codec
from astra_mesh.quant.coders import Memory, Nearest, has_quick_scores, is_precise, take
from astra_mesh.quant.vector import VectorReceiver, VectorSender
from tests.unit.engine.plans import HISTORIES, Rebuilt, deep_model, random_book, random_codec
from tests.unit.families.making import KINDS, make_model

TOKENS = 40
WINDOWS = (0, 1, 2, 5, UNLIMITED)
Coded = dict[int, list[CodeArray]]  # by block


def block_inputs(model: Model, tokens: int = TOKENS, seed: int = 1) -> list[Tensor]:
    """Block inputs (T, D) that resemble those of the block before, as real ones do."""
    generator = torch.Generator().manual_seed(seed)
    found, x = [], torch.zeros(tokens, model.spec.hidden_size)
    for _ in range(model.spec.num_hidden_layers):
        x = x + torch.randn(x.shape, generator=generator)
        found.append(x * 2 + 0.5)
    return found


def known_of(model: Model, inputs: Sequence[Tensor]) -> Tensor:
    return model.block(0).normalize(inputs[0])


def codes_of(
    codec: VectorCodec, inputs: Sequence[Tensor], stages: int
) -> dict[int, list[CodeArray]]:
    """Codes of all coded blocks, by block."""
    known = known_of(codec.model, inputs) if codec.first_block else None
    sender = codec.sender(stages, known)
    coded = range(codec.first_block, len(inputs))
    return {block: sender.encode(block, inputs[block]) for block in coded}


def decoded(
    codec: VectorCodec, known: Tensor | None, codes: Coded, stages: int
) -> dict[int, Tensor]:
    """Raw keys and values (T, 2 kv_size), by block."""
    receiver = codec.receiver(stages, known)
    return {block: receiver.decode(block, one) for block, one in codes.items()}


def assert_close(found: Tensor, wanted: Tensor, share: float = 1e-5) -> None:
    assert found.shape == wanted.shape
    assert (found - wanted).norm() <= share * wanted.norm()


# --- what codes are, and what they stand for ------------------------------------------------------


@pytest.mark.parametrize("history", HISTORIES)
def test_codes_are_the_nearest_codewords_of_what_is_left(history: int) -> None:
    """Against a search in plain loops, coordinate by coordinate."""
    model = deep_model("gpt2")
    codec = random_codec(model, stages=3, history=history)
    inputs = block_inputs(model, 5)
    rebuilt = Rebuilt(codec.codebook, 3, known_of(model, inputs))
    for block, codes in codes_of(codec, inputs, 3).items():
        book = codec.codebook.book(block, 3)
        assert book.analysis is not None
        residual = model.block(block).normalize(inputs[block]) - rebuilt.predicted(block)
        for token in range(5):
            left = [*(book.analysis @ residual[token]).tolist(), 0.0]  # the last is the padding
            for words, order, chosen in zip(book.codewords, book.orders, codes, strict=True):
                places = order.view(words.shape[0], -1).tolist()
                for group, coordinates in enumerate(places):
                    part = torch.tensor([left[i] for i in coordinates])
                    distances = (part - words[group]).norm(dim=1)
                    code = int(chosen[token, group])
                    assert float(distances[code]) == pytest.approx(float(distances.min()), rel=1e-5)
                    for i, coordinate in enumerate(coordinates):
                        left[coordinate] -= float(words[group, code, i])
                    left[-1] = 0.0
        rebuilt.take(block, codes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("history", WINDOWS)
@pytest.mark.parametrize("stages", [1, 3])
def test_tables_projection_and_formulas_agree(kind: str, history: int, stages: int) -> None:
    """Blocks that look back to the known one, and (six blocks) such that have forgotten it."""
    model = deep_model(kind)
    table = random_codec(model, stages=3, history=history)
    project = VectorCodec(model, table.codebook, "project")
    assert (table.decoder, project.decoder) == ("table", "project")
    inputs = block_inputs(model)
    known, codes = known_of(model, inputs), codes_of(table, inputs, stages)
    found = decoded(table, known, codes, stages)
    wanted = decoded(project, known, codes, stages)
    rebuilt = Rebuilt(table.codebook, stages, known)
    for block, one in codes.items():
        assert len(one) == stages
        assert_close(found[block], wanted[block])
        at = model.block(block)
        plain = F.linear(rebuilt.take(block, one), at.kv_weight, at.kv_bias)
        assert_close(wanted[block], plain)
        assert wanted[block].std() > 0.1


@pytest.mark.parametrize("history", WINDOWS)
def test_without_any_tables_codes_and_what_they_stand_for_are_the_same(history: int) -> None:
    model = deep_model("gpt2")
    usual = random_codec(model, stages=3, history=history)
    lean = VectorCodec(model, usual.codebook, lean=True)
    assert lean.decoder == "project"
    assert lean.projecting() is lean
    inputs = block_inputs(model)
    known, codes = known_of(model, inputs), codes_of(usual, inputs, 3)
    for block, one in codes_of(lean, inputs, 3).items():
        assert all(map(np.array_equal, one, codes[block]))
    found, wanted = decoded(lean, known, codes, 3), decoded(usual, known, codes, 3)
    for block in codes:
        assert_close(found[block], wanted[block])
        assert lean.coder(block, 3)._rows is None
    lean.prepare(3)
    assert not lean._tables


# --- roughly, as peers do without history ---------------------------------------------------------


def rough_pair(model: Model, stages: int = 3) -> tuple[VectorCodec, VectorCodec]:
    """Two codecs of one codebook: as peers run it, and exact."""
    exact = random_codec(model, stages=stages, history=0)
    rough = make_codec("vq", model, exact.codebook)
    assert isinstance(rough, VectorCodec)
    return rough, exact


@pytest.mark.parametrize("history", WINDOWS)
def test_peers_code_roughly_where_codes_have_no_history(history: int) -> None:
    model = deep_model("gpt2")
    codec = make_codec("vq", model, random_book(model, history=history))
    assert isinstance(codec, VectorCodec)
    assert codec.rough == (history == 0)
    rows = codec.table(2, 2).rows
    assert rows.dtype == (torch.uint8 if history == 0 else torch.float32)


@pytest.fixture(params=["8 bits", "bfloat16"])
def _product(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both products that coordinates may come from, whichever is faster here."""
    half = request.param == "bfloat16"
    if half and not can_pack(torch.bfloat16):
        pytest.skip("no products of bfloat16 numbers on this processor")
    monkeypatch.setattr("astra_mesh.quant.coders.halves_are_quicker", lambda *_: half)


@pytest.mark.parametrize(("tiles", "hidden_size"), [(False, 768), (True, 255)])
def test_products_of_bfloat16_are_taken_only_where_they_are_known_to_be_quicker(
    tiles: bool, hidden_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles, raising=False)
    assert not coders.halves_are_quicker(hidden_size)


@pytest.mark.usefixtures("_product")
@pytest.mark.parametrize("kind", KINDS)
def test_rough_codes_are_about_as_near(kind: str) -> None:
    """Some fall to the second nearest codeword, where that is nearly as near."""
    model = deep_model(kind)
    rough, exact = rough_pair(model)
    inputs = block_inputs(model, 200)
    for block, x in list(enumerate(inputs))[1:]:
        both = [one.coder(block, 3) for one in (rough, exact)]
        center = both[1].book.center
        assert center is not None
        n = model.block(block).normalize(x) - center
        near, y = (coder.coordinates(n) for coder in both)
        assert 0 < float((near - y).norm()) < 0.02 * float(y.norm())
        errors = [float((y - one.decode(one.encode(n))).square().sum()) for one in both]
        assert errors[0] == pytest.approx(errors[1], rel=0.01)


@pytest.mark.usefixtures("_product")
def test_rough_codes_do_not_depend_on_the_tokens_beside() -> None:
    model = deep_model("gpt2")
    rough, _ = rough_pair(model)
    x = block_inputs(model, 50)[2] * torch.logspace(-2, 2, 50).unsqueeze(1)
    sender = rough.sender(3, None)
    whole = sender.encode(2, x)
    for start, stop in pairwise([0, 1, 7, 30, 50]):
        for part, one in zip(sender.encode(2, x[start:stop]), whole, strict=True):
            np.testing.assert_array_equal(part, one[start:stop])


# --- codewords compared in bfloat16 ---------------------------------------------------------------


def cloud(groups: int, rows: int, width: int, spread: float, seed: int) -> Tensor:
    """(groups, rows, width); the first coordinate of the last group is ``spread`` as large."""
    found = torch.randn(groups, rows, width, generator=torch.Generator().manual_seed(seed))
    found[-1, :, 0] *= spread
    return found


@pytest.mark.parametrize(("groups", "width", "spread"), [(16, 34, 1), (4, 130, 1), (8, 16, 300)])
def test_codewords_compared_quickly_are_as_near(groups: int, width: int, spread: float) -> None:
    codewords = cloud(groups, 256, width, spread, 3)
    y = cloud(groups, 500, width, spread, 4)
    found, quick = Nearest(codewords)(y), Nearest(codewords, quick=True)(y)
    assert 0.95 < (found == quick).mean() < 1.0
    errors = [
        (y - take(codewords, torch.from_numpy(one))).square().sum((1, 2)) for one in (found, quick)
    ]
    assert bool((errors[1] <= 1.001 * errors[0]).all())
    for start, stop in pairwise([0, 1, 7, 64, 500]):  # whatever is beside
        part = Nearest(codewords, quick=True)(y[:, start:stop])
        np.testing.assert_array_equal(part, quick[:, start:stop])


@pytest.mark.parametrize(("width", "spread"), [(1, 1), (34, 100)])
def test_codewords_that_lie_closely_are_compared_exactly(width: int, spread: float) -> None:
    """Along a line 256 codewords are nearer to each other than bfloat16 can tell."""
    codewords, y = cloud(3, 256, width, spread, 5), cloud(3, 200, width, spread, 6)
    assert is_precise(codewords).tolist() == [width > 1, width > 1, False]
    assert is_precise(codewords[:1, :2]).tolist() == [True]
    assert is_precise(torch.full((1, 4, 3), torch.nan)).tolist() == [False]
    assert is_precise(codewords[:1].repeat(1, 2, 1)).tolist() == [width > 1]  # each there twice
    many = torch.randn(1, 65_536, 2, generator=torch.Generator().manual_seed(1))
    assert is_precise(many).tolist() == [False]  # in little memory and time
    exact, found = Nearest(codewords)(y), Nearest(codewords, quick=True)(y)
    np.testing.assert_array_equal(found[-1], exact[-1])


def test_a_dense_cluster_beside_far_codewords_is_compared_exactly() -> None:
    """Most rows lie in it, though the others' distances outweigh it by far."""
    codewords = cloud(1, 256, 8, 1, 7)
    codewords[:, :200] = 1.0 + 0.003 * codewords[:, :200]
    codewords[:, 200:] *= 5.0
    assert is_precise(codewords).tolist() == [False]


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_bfloat16_is_used_where_it_is_known_to_be_faster(
    machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert has_quick_scores() is (machine == "x86_64" and torch.backends.mkldnn.is_available())
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")  # an older torch
    assert not has_quick_scores()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rough_tables_agree_with_exact_ones(dtype: torch.dtype) -> None:
    model = deep_model("gpt2", dtype=dtype)
    rough, exact = rough_pair(model)
    inputs = block_inputs(model)
    known, codes = known_of(model, inputs), codes_of(exact, inputs, 3)
    found, wanted = decoded(rough, known, codes, 3), decoded(exact, known, codes, 3)
    for block in codes:
        assert found[block].dtype == wanted[block].dtype == dtype
        assert_close(found[block], wanted[block], 0.01)


def test_rough_tables_hold_large_keys_too() -> None:
    model = deep_model("gpt2")
    rough, exact = rough_pair(model)
    for block in range(model.spec.num_hidden_layers):
        model.block(block).qkv.weight.data *= 1e6
    inputs = block_inputs(model)
    known, codes = known_of(model, inputs), codes_of(exact, inputs, 3)
    found, wanted = decoded(rough, known, codes, 3), decoded(exact, known, codes, 3)
    for block in codes:
        assert wanted[block].abs().max() > 65_504  # of float16
        assert_close(found[block], wanted[block], 0.01)


@pytest.mark.parametrize("kind", ["gpt2", "qwen3", "bert"])
def test_the_published_codec_normalizes_and_projects_again(kind: str) -> None:
    model = make_model(kind)
    codec = random_codec(model, "astra")
    assert (codec.decoder, codec.first_block, codec.able) == ("project", 0, (1,))
    inputs = block_inputs(model)
    codes = codes_of(codec, inputs, 1)
    assert list(codes) == [0, 1, 2]
    found = decoded(codec, None, codes, 1)
    rebuilt = Rebuilt(codec.codebook, 1, inputs[0])
    for block, one in codes.items():
        at = model.block(block)
        n = at.normalize(rebuilt.take(block, one))
        assert_close(found[block], F.linear(n, at.kv_weight, at.kv_bias))
        # 32 groups of 1,024 in 768 dimensions would take 100 MB a block in rows of all dimensions
        assert codec.coder(block, 1)._rows is None


def test_a_prefix_of_memoryless_stages_is_a_code_of_its_own() -> None:
    model = deep_model("gpt2")
    inputs = block_inputs(model)
    codec = random_codec(model, stages=3)
    for few in (1, 2):
        short, long = (codes_of(codec, inputs, stages) for stages in (few, 3))
        for block in short:
            for one, other in zip(short[block], long[block], strict=False):
                np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("history", [1, 2, UNLIMITED])
def test_what_was_sent_before_matters_as_far_back_as_the_history(history: int) -> None:
    """Other codes in block 1 change the keys and values of the blocks that look back to it."""
    model = deep_model("gpt2")
    inputs = block_inputs(model)
    known = known_of(model, inputs)
    for decoder in ("table", "project"):
        codec = VectorCodec(model, random_book(model, history=history), decoder)
        codes = codes_of(codec, inputs, 2)
        other = codes | {1: [np.roll(part, 1, axis=0) for part in codes[1]]}
        first, second = (decoded(codec, known, one, 2) for one in (codes, other))
        reached = 5 if history == UNLIMITED else 1 + history
        for block in codes:
            moved = float((first[block] - second[block]).norm() / first[block].norm())
            assert (moved > 1e-3) is (block <= reached), (block, moved)


def test_coordinates_that_no_group_holds_are_never_coded() -> None:
    model = make_model("gpt2")
    book = random_book(model, stages=1)
    width = book.levels[1][0].codewords[0].shape[2]
    books = []
    for one in book.levels[1]:
        order = one.orders[0].clone()
        order[:width] = 32  # the first group holds padding only
        books.append(replace(one, orders=(order,)))
    codec = VectorCodec(model, replace(book, levels={1: tuple(books)}))
    inputs = block_inputs(model)
    known, codes = known_of(model, inputs), codes_of(codec, inputs, 1)
    project = VectorCodec(model, codec.codebook, "project")
    assert_close(decoded(codec, known, codes, 1)[1], decoded(project, known, codes, 1)[1])
    other = [codes[1][0].copy()]
    other[0][:, 0] = (other[0][:, 0] + 1) % 16
    first, second = (project.receiver(1, known).rebuild(1, one) for one in (codes[1], other))
    assert torch.equal(first, second)


# --- both ends ------------------------------------------------------------------------------------


def held(end: VectorSender | VectorReceiver) -> Memory:
    assert end._memory is not None
    return end._memory


@pytest.mark.parametrize("kind", ["gpt2", "qwen3", "bert"])
@pytest.mark.parametrize("history", [1, 2, 5, UNLIMITED])
def test_sender_and_receiver_remember_the_same_bits(kind: str, history: int) -> None:
    model = deep_model(kind)
    codec = VectorCodec(model, random_book(model, stages=3, history=history), "project")
    inputs = block_inputs(model)
    known = known_of(model, inputs)
    for stages in codec.able:
        sender, receiver = codec.sender(stages, known), codec.receiver(stages, known)
        for block in range(1, len(inputs)):
            receiver.decode(block, sender.encode(block, inputs[block]))
            ours, theirs = held(sender)._past, held(receiver)._past
            assert list(ours) == list(theirs)
            assert all(torch.equal(ours[b], theirs[b]) for b in ours)


def pieces(tokens: int, rng: random.Random) -> list[slice]:
    """Some cuts, in any order."""
    edges = sorted({0, tokens, *(rng.randrange(tokens) for _ in range(3))})
    found = [slice(a, b) for a, b in pairwise(edges)]
    rng.shuffle(found)
    return found


@pytest.mark.parametrize("decoder", ["table", "project"])
@pytest.mark.parametrize("history", WINDOWS)
@pytest.mark.parametrize("seed", [0, 1])
def test_pieces_in_any_order_make_the_whole(decoder: str, history: int, seed: int) -> None:
    """Sender and receiver each cut as they like, in every block anew."""
    model = deep_model("llama")
    codec = VectorCodec(model, random_book(model, history=history), decoder)
    inputs, rng = block_inputs(model), random.Random(seed)
    known, whole = known_of(model, inputs), codes_of(codec, inputs, 2)
    wanted = decoded(codec, known, whole, 2)
    sender, receiver = codec.sender(2, known), codec.receiver(2, known)
    for block in range(1, len(inputs)):
        codes = [np.zeros_like(part) for part in whole[block]]
        for at in pieces(TOKENS, rng):
            for part, some in zip(
                codes, sender.encode(block, inputs[block][at], at.start), strict=True
            ):
                part[at] = some
        for part, one in zip(codes, whole[block], strict=True):
            np.testing.assert_array_equal(part, one)
        found = torch.zeros_like(wanted[block])
        for at in pieces(TOKENS, rng):
            found[at] = receiver.decode(block, [part[at] for part in codes], at.start)
        assert_close(found, wanted[block], 1e-6)


@pytest.mark.parametrize("history", HISTORIES)
def test_one_token_and_none(history: int) -> None:
    model = make_model("gpt2")
    for decoder in ("table", "project"):
        codec = VectorCodec(model, random_book(model, history=history), decoder)
        for tokens in (0, 1):
            inputs = block_inputs(model, tokens)
            codes = codes_of(codec, inputs, 2)
            found = decoded(codec, known_of(model, inputs), codes, 2)
            assert [one.shape for one in found.values()] == [(tokens, 64)] * 2


def test_requests_do_not_share_memory() -> None:
    model = deep_model("gpt2")
    codec = random_codec(model, history=UNLIMITED)
    inputs = [block_inputs(model, seed=seed) for seed in (1, 2)]
    alone = [codes_of(codec, one, 2) for one in inputs]
    senders = [codec.sender(2, known_of(model, one)) for one in inputs]
    for block in range(1, 6):
        for sender, one, wanted in zip(senders, inputs, alone, strict=True):
            for part, other in zip(sender.encode(block, one[block]), wanted[block], strict=True):
                np.testing.assert_array_equal(part, other)


def test_a_history_needs_the_first_block() -> None:
    codec = random_codec(make_model("gpt2"), history=1)
    for end in (codec.sender, codec.receiver):
        with pytest.raises(ValueError, match="first block's input"):
            end(1, None)


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("history", [1, 2, 5])
@pytest.mark.parametrize("decoder", ["table", "project"])
def test_only_the_window_is_held(history: int, decoder: str) -> None:
    """Twelve blocks: what is held stops growing once the window is full."""
    model = deep_model("bert", 4)
    codec = VectorCodec(model, random_book(model, history=history), decoder)
    inputs = block_inputs(model)
    known = known_of(model, inputs)
    sender, receiver = codec.sender(2, known), codec.receiver(2, known)
    sizes = []
    for block in range(1, len(inputs)):
        receiver.decode(block, sender.encode(block, inputs[block]))
        window = list(range(max(0, block - history), block + 1))
        assert sorted(held(sender)._past) == sorted({0, *window})
        if decoder == "project":
            assert sorted(held(receiver)._past) == sorted({0, *window})
            assert receiver._codes == {}
        else:
            assert sorted(receiver._codes) == [b for b in window if b]
        tensors = [*held(sender)._past.values(), *held(receiver)._past.values()]
        bytes_ = sum(one.untyped_storage().nbytes() for one in tensors)
        sizes.append(bytes_ + sum(one.nbytes for one in receiver._codes.values()))
    assert len(set(sizes[history + 1 :])) == 1


def test_an_unlimited_history_holds_the_block_before() -> None:
    """And what was known, which is no copy. A receiver that looks up holds the codes of all."""
    model = deep_model("gpt2", 4)
    book = random_book(model, history=UNLIMITED)
    inputs = block_inputs(model)
    known = known_of(model, inputs)
    for decoder in ("table", "project"):
        codec = VectorCodec(model, book, decoder)
        sender, receiver = codec.sender(2, known), codec.receiver(2, known)
        for block in range(1, len(inputs)):
            receiver.decode(block, sender.encode(block, inputs[block]))
            assert sorted(held(sender)._past) == sorted({0, block - 1, block})
        assert sorted(receiver._codes) == (list(range(1, 12)) if decoder == "table" else [])


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3"])
@pytest.mark.parametrize("history", WINDOWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tables_are_as_large_as_stated(kind: str, history: int, dtype: torch.dtype) -> None:
    model = deep_model(kind, dtype=dtype)
    codec = random_codec(model, stages=3, history=history)
    for stages in codec.able:
        total = 0
        for block in range(1, 6):
            table = codec.table(block, stages)
            rows = codec.table_rows(block, stages)
            assert len(table.rows) == rows * codec.codebook.size
            parts = [one for one in (table.rows, table.offset, table.known) if one is not None]
            total += sum(one.numel() * one.element_size() for one in parts)
        assert total == codec.table_bytes(stages)


@pytest.mark.parametrize(
    ("history", "rows"),
    [
        (0, [9, 9, 9, 9, 9]),
        (1, [9, 18, 18, 18, 18]),
        (2, [9, 18, 27, 27, 27]),
        (5, [9, 18, 27, 36, 45]),
        (UNLIMITED, [9, 18, 27, 36, 45]),
    ],
)
def test_rows_that_a_token_costs(history: int, rows: list[int]) -> None:
    """Nine codes in two stages, for this block and those that it is predicted from."""
    codec = random_codec(deep_model("gpt2"), history=history)
    assert [codec.table_rows(block, 2) for block in range(1, 6)] == rows


def test_tables_that_would_be_too_large_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    model = deep_model("gpt2")
    book = random_book(model, stages=3, history=UNLIMITED)
    size = VectorCodec(model, book).table_bytes(3)
    monkeypatch.setattr(vector, "TABLE_BYTES", size)
    assert VectorCodec(model, book).decoder == "table"
    monkeypatch.setattr(vector, "TABLE_BYTES", size - 1)
    assert VectorCodec(model, book).decoder == "project"
    assert VectorCodec(model, random_book(model)).decoder == "table"


@pytest.mark.parametrize("decoder", ["table", "project"])
def test_preparing_leaves_nothing_for_the_first_request(
    decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = deep_model("gpt2")
    codec = VectorCodec(model, random_book(model, history=2), decoder)
    codec.prepare(2)
    inputs = block_inputs(model)
    codes = codes_of(codec, inputs, 2)
    for name in ("_make_table", "BlockCoder"):
        where = codec if name == "_make_table" else vector
        monkeypatch.setattr(where, name, lambda *_: pytest.fail("made in a request"))
    codes_of(codec, inputs, 2)
    decoded(codec, known_of(model, inputs), codes, 2)


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", ["table", "project"])
@pytest.mark.parametrize("history", WINDOWS)
def test_a_saved_codebook_gives_the_same_answers(
    decoder: str, history: int, tmp_path: Path
) -> None:
    model = deep_model("gpt2")
    book = random_book(model, stages=3, history=history)
    book.save(tmp_path / "codebook.safetensors")
    saved: Codebook = load_codebook(tmp_path / "codebook.safetensors", book.model)
    assert saved.id == book.id
    inputs = block_inputs(model)
    known = known_of(model, inputs)
    ours, theirs = (VectorCodec(model, one, decoder) for one in (book, saved))
    for stages in book.able:
        codes, same = (codes_of(codec, inputs, stages) for codec in (ours, theirs))
        for block, parts in codes.items():
            for part, other in zip(parts, same[block], strict=True):
                np.testing.assert_array_equal(part, other)
        found, wanted = (decoded(codec, known, codes, stages) for codec in (theirs, ours))
        assert all(torch.equal(found[block], wanted[block]) for block in codes)
