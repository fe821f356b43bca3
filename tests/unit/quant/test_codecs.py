"""Codecs: inverse pairs with bounded errors, and payloads that a peer may not send."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from astra_mesh.errors import CodebookError, InputError, ProtocolError
from astra_mesh.families import Model
from astra_mesh.quant import codecs
from astra_mesh.quant.codebook import UNLIMITED, BlockBook, Codebook
from astra_mesh.quant.codecs import PLAIN, CodeArray, PlainCodec, VectorCodec, make_codec
from astra_mesh.wire.messages import ModelId
from tests.unit.engine.plans import HISTORIES, random_codec
from tests.unit.families.making import make_model

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
    (codes,) = codec.sender(1, None).encode(1, x)
    found = codec.receiver(1, None).decode(1, [codes])[:, :32]
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
    found = codec.decode(1, codec.encode(1, zeros))
    torch.testing.assert_close(found, key_value(model, zeros))


def codec_of(model: Model, name: str) -> PlainCodec | VectorCodec:
    """A codec by name; "vq+" remembers."""
    if name in PLAIN:
        return PlainCodec(name, model)
    history = UNLIMITED if name == "vq+" else 0
    return random_codec(model, name.rstrip("+"), stages=3, history=history)


def encoded(model: Model, codec: PlainCodec | VectorCodec, tokens: int = TOKENS) -> list[CodeArray]:
    """Codes of block 1 at the largest number of stages."""
    sender = codec.sender(codec.stages, torch.zeros(tokens, model.spec.hidden_size))
    return sender.encode(1, block_input(model, tokens))


@pytest.mark.parametrize("name", [*PLAIN, "vq", "vq+", "astra"])
@pytest.mark.parametrize("tokens", [0, 1, 7])
def test_packing_is_undone_by_unpacking(name: str, tokens: int) -> None:
    model = make_model("llama")
    codec = codec_of(model, name)
    bits = 0
    for stage, whole in enumerate(encoded(model, codec)):
        codes = whole[:tokens]
        data = codec.pack(stage, codes)
        assert len(data) == codec.packed_bytes(stage, tokens)
        more = codec.rate(stage + 1) - (codec.rate(stage) if stage else 0)
        assert 8 * len(data) - tokens * more in range(8)
        np.testing.assert_array_equal(codec.unpack(stage, data, tokens), codes)
        assert codec.unpack(stage, data, tokens).dtype == codes.dtype
        bits += more
    assert bits == codec.rate(codec.stages)


@pytest.mark.parametrize("name", [*PLAIN, "vq", "vq+", "astra"])
def test_payloads_of_a_wrong_length(name: str) -> None:
    model = make_model("llama")
    codec = codec_of(model, name)
    for stage, codes in enumerate(encoded(model, codec, 6)):
        data = codec.pack(stage, codes)
        for wrong in (b"", data[:-1], data + b"\0", data * 2):
            with pytest.raises(ProtocolError, match="bytes"):
                codec.unpack(stage, wrong, 6)
        for tokens in (0, 3, 12):
            with pytest.raises(ProtocolError, match="bytes"):
                codec.unpack(stage, data, tokens)


def test_a_stage_does_not_read_what_another_packed() -> None:
    """Stages have different numbers of groups: 4, 5 and 3 codes of 4 bits for each token."""
    codec = codec_of(make_model("gpt2"), "vq")
    assert [codec.packed_bytes(stage, 6) for stage in range(3)] == [12, 15, 9]
    for stage in range(3):
        with pytest.raises(ProtocolError, match="bytes"):
            codec.unpack(stage, bytes(codec.packed_bytes((stage + 1) % 3, 6)), 6)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite(name: str, value: float) -> None:
    """In the values of a float codec, in the scales of an integer one."""
    model = make_model("llama")
    codec = PlainCodec(name, model)
    data = bytearray(codec.pack(0, codec.encode(1, block_input(model, 3))[0]))
    kind = "<f4" if name in ("fp32", "int8") else "<f2"
    poison = np.array([value], kind).tobytes()
    data[-len(poison) :] = poison
    with pytest.raises(ProtocolError, match="not finite"):
        codec.unpack(0, bytes(data), 3)


@pytest.mark.parametrize("size", [5, 300])
def test_codes_beyond_the_codebook(size: int) -> None:
    """A code that fits its bits but names no codeword."""
    model = make_model("gpt2")
    frame = (torch.zeros(32), torch.zeros(32, 32), torch.zeros(32, 32))
    one = BlockBook((torch.zeros(2, size, 16),), (torch.arange(32),), *frame)
    book = Codebook("vq", ModelId("a" * 64), 32, 1, 0, (2,), size, 1, {1: (one, one)})
    codec = make_codec("vq", model, book)
    assert isinstance(codec, VectorCodec)
    kind = np.uint8 if size <= 256 else np.uint16
    assert codec.dtype == kind
    good = np.array([[0, size - 1], [size - 1, 0]], kind)
    assert codec.unpack(0, codec.pack(0, good), 2).tolist() == good.tolist()
    with pytest.raises(ProtocolError, match=f"beyond the {size} codewords"):
        codec.unpack(0, codec.pack(0, (good + 1).astype(kind)), 2)


def test_names_and_codebooks_must_fit() -> None:
    model = make_model("gpt2")
    book = random_codec(model).codebook
    with pytest.raises(InputError, match="unknown codec 'zip'"):
        make_codec("zip", model)
    with pytest.raises(CodebookError, match="no vq codebook; fit one"):
        make_codec("vq", model)
    with pytest.raises(CodebookError, match="no astra codebook"):
        make_codec("astra", model, book)
    short = replace(book, levels={2: book.levels[2][:1]})
    with pytest.raises(CodebookError, match="does not fit the model's blocks"):
        make_codec("vq", model, short)
    with pytest.raises(CodebookError, match="does not fit"):
        make_codec("vq", model, replace(book, hidden_size=64))


def test_rates_are_bits_per_token_and_block() -> None:
    model = make_model("gpt2")
    assert [PlainCodec(name, model).rate(1) for name in PLAIN] == [1024, 512, 288, 144]
    assert [PlainCodec(name, model).able for name in PLAIN] == [(1,)] * 4
    for history in HISTORIES:
        codec = random_codec(model, stages=3, history=history)
        assert codec.able == (1, 2, 3)
        assert [codec.rate(stages) for stages in codec.able] == [16, 36, 48]


def test_plain_codecs_remember_nothing() -> None:
    """One object serves all requests: blocks in any order, pieces of any size."""
    model = make_model("gpt2")
    codec, x = PlainCodec("fp16", model), block_input(model)
    (whole,) = codec.sender(1, None).encode(1, x)
    parts = [codec.sender(1, None).encode(1, part, at)[0] for at, part in ((0, x[:7]), (7, x[7:]))]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
