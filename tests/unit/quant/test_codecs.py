"""Codecs: inverse pairs with bounded errors, and payloads that a peer may not send."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from astra_mesh.errors import CodebookError, InputError, ProtocolError
from astra_mesh.families import Model
from astra_mesh.quant import codecs
from astra_mesh.quant.codebook import BlockBook, Codebook
from astra_mesh.quant.codecs import PLAIN, PlainCodec, VectorCodec, make_codec
from astra_mesh.wire.messages import ModelId
from tests.unit.engine.plans import random_codec
from tests.unit.families.making import KINDS, make_model

TOKENS = 40


def block_input(model: Model, tokens: int = TOKENS) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(tokens, model.spec.hidden_size, generator=generator) * 2 + 0.5


def key_value(model: Model, n: Tensor) -> Tensor:
    at = model.block(1)
    return F.linear(n, at.kv_weight, at.kv_bias)


def largest_error(name: str, n: Tensor) -> Tensor:
    """The most that a value of ``n`` may be off."""
    if name == "fp32":
        return torch.zeros_like(n)
    if name == "fp16":
        return n.abs() * 2**-11 + 1e-7
    if name == "int8":  # half a step of the row's scale
        return (n.abs().amax(1, keepdim=True) / 127 * 0.501).expand_as(n)
    groups = n.view(len(n), -1, 32)
    scale = groups.abs().amax(2, keepdim=True) / 7
    return (scale * 0.51).expand_as(groups).reshape(n.shape)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_plain_codecs_are_within_their_rounding(name: str, kind: str) -> None:
    model = make_model(kind)
    codec, x = PlainCodec(name, model), block_input(model)
    n = model.block(1).normalize(x)
    identity = torch.eye(32)
    model.block(1).qkv.weight[32:64] = identity  # the keys are then the embedding itself
    bias = model.block(1).qkv.bias
    assert bias is not None
    bias.zero_()
    (codes,) = codec.encode(1, x, 1)
    found = codec.decode(1, [codes])[:, :32]
    assert ((found - n).abs() <= largest_error(name, n) + 1e-6 * (name != "fp32")).all()


@pytest.mark.parametrize("size", [1, 31, 33, 70])
def test_integers_of_sizes_that_no_group_fits(size: int) -> None:
    """int4 pads to groups of 32; nothing of the padding comes back."""
    n = torch.randn(5, size)
    rows = codecs._to_int4(n, -(-size // 32))
    assert rows.shape == (5, -(-size // 32) * 18)
    found = codecs._from_int4(rows, size)
    assert found.shape == n.shape
    assert (found - n).abs().max() <= n.abs().max() / 7 * 0.51
    assert (codecs._from_int8(codecs._to_int8(n)) - n).abs().max() <= n.abs().max() / 127 * 0.51


@pytest.mark.parametrize("name", PLAIN)
def test_rows_of_zeros_stay_zeros(name: str) -> None:
    model = make_model("bert")
    codec = PlainCodec(name, model)
    zeros = torch.zeros(3, 32)
    found = codec.decode(1, codec.encode(1, zeros, 1))
    torch.testing.assert_close(found, key_value(model, zeros))


@pytest.mark.parametrize("name", [*PLAIN, "vq", "astra"])
@pytest.mark.parametrize("tokens", [0, 1, 7])
def test_packing_is_undone_by_unpacking(name: str, tokens: int) -> None:
    model = make_model("llama")
    codec = PlainCodec(name, model) if name in PLAIN else random_codec(model, name, stages=1)
    codes = codec.encode(1, block_input(model), 1)[0][:tokens]
    data = codec.pack(codes)
    assert len(data) == codec.packed_bytes(tokens)
    assert 8 * len(data) - tokens * codec.rate(1) in range(8)
    np.testing.assert_array_equal(codec.unpack(data, tokens), codes)


@pytest.mark.parametrize("name", [*PLAIN, "vq", "astra"])
def test_payloads_of_a_wrong_length(name: str) -> None:
    model = make_model("llama")
    codec = PlainCodec(name, model) if name in PLAIN else random_codec(model, name, stages=1)
    data = codec.pack(codec.encode(1, block_input(model, 6), 1)[0])
    for wrong in (b"", data[:-1], data + b"\0", data * 2):
        with pytest.raises(ProtocolError, match="bytes"):
            codec.unpack(wrong, 6)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite(name: str, value: float) -> None:
    """In the values of a float codec, in the scales of an integer one."""
    model = make_model("llama")
    codec = PlainCodec(name, model)
    data = bytearray(codec.pack(codec.encode(1, block_input(model, 3), 1)[0]))
    kind = "<f4" if name in ("fp32", "int8") else "<f2"
    poison = np.array([value], kind).tobytes()
    data[-len(poison) :] = poison
    with pytest.raises(ProtocolError, match="not finite"):
        codec.unpack(bytes(data), 3)


@pytest.mark.parametrize("size", [5, 300])
def test_codes_beyond_the_codebook(size: int) -> None:
    """A code that fits its bits but names no codeword."""
    model = make_model("gpt2")
    words = torch.zeros(1, 2, size, 16)
    frame = (torch.zeros(32), torch.zeros(32, 32), torch.zeros(32, 32))
    blocks = tuple(BlockBook(words, *frame) for _ in range(2))
    codec = make_codec("vq", model, Codebook("vq", ModelId("a" * 64), 32, 1, 1, blocks))
    assert isinstance(codec, VectorCodec)
    kind = np.uint8 if size <= 256 else np.uint16
    good = np.array([[0, size - 1], [size - 1, 0]], kind)
    assert codec.unpack(codec.pack(good), 2).tolist() == good.tolist()
    with pytest.raises(ProtocolError, match=f"beyond the {size} codewords"):
        codec.unpack(codec.pack((good + 1).astype(kind)), 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stages", [1, 3])
def test_tables_equal_the_projection(kind: str, stages: int) -> None:
    model = make_model(kind)
    table = random_codec(model, stages=3)
    project = VectorCodec(model, table.codebook, "project")
    codes = table.encode(1, block_input(model), stages)
    found, wanted = table.decode(1, codes), project.decode(1, codes)
    assert (found - wanted).norm() <= 1e-5 * wanted.norm()
    assert wanted.std() > 0.1
    torch.testing.assert_close(wanted, key_value(model, table.rebuild(1, codes)))


def test_codes_are_the_nearest_codewords_of_what_is_left() -> None:
    """Against a search in plain loops."""
    model = make_model("gpt2")
    codec = random_codec(model, stages=2)
    book = codec.codebook.book(1)
    assert book.analysis is not None
    assert book.center is not None
    x = block_input(model, 5)
    codes = codec.encode(1, x, 2)
    for token in range(5):
        y = book.analysis @ (model.block(1).normalize(x[token : token + 1])[0] - book.center)
        for group, left in enumerate(y.view(codec.codebook.groups, -1)):
            part = left
            for stage in range(2):
                words = book.codewords[stage, group]
                distances = [float((part - word).norm()) for word in words]
                chosen = int(codes[stage][token, group])
                assert distances[chosen] == pytest.approx(min(distances), rel=1e-5)
                part = part - words[chosen]


def test_a_prefix_of_the_stages_is_a_code_of_its_own() -> None:
    codec = random_codec(make_model("gpt2"), stages=3)
    x = block_input(make_model("gpt2"))
    for short, long in zip(codec.encode(1, x, 2), codec.encode(1, x, 3), strict=False):
        np.testing.assert_array_equal(short, long)


def test_names_and_codebooks_must_fit() -> None:
    model = make_model("gpt2")
    book = random_codec(model).codebook
    with pytest.raises(InputError, match="unknown codec 'zip'"):
        make_codec("zip", model)
    with pytest.raises(CodebookError, match="no vq codebook; fit one"):
        make_codec("vq", model)
    with pytest.raises(CodebookError, match="no astra codebook"):
        make_codec("astra", model, book)
    short = Codebook("vq", book.model, 32, 1, 1, book.blocks[:1])
    with pytest.raises(CodebookError, match="does not fit the model's blocks"):
        make_codec("vq", model, short)
    with pytest.raises(CodebookError, match="does not fit"):
        make_codec("vq", model, Codebook("vq", book.model, 64, 1, 1, book.blocks))


def test_rates_are_bits_per_token_and_block() -> None:
    model = make_model("gpt2")
    assert [PlainCodec(name, model).rate(1) for name in PLAIN] == [1024, 512, 288, 144]
    assert [random_codec(model, stages=3).rate(s) for s in (1, 2, 3)] == [16, 32, 48]
