"""GGUF files that are damaged, cut short or not what they say: each is refused by a sentence."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from astra_mesh.bundle.gguf import GgufFile
from astra_mesh.bundle.gguf_text import make_tokenizer
from astra_mesh.errors import AstraMeshError, BadBundleError, InputError, UnsupportedModelError
from tests.unit.bundle.test_gguf import D, make, write

AGAIN = "download or convert it again"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("gguf") / "m.gguf", "llama", make("llama"))


def said(path: Path) -> str:
    """What is said of a file that must be refused."""
    with pytest.raises((BadBundleError, InputError, UnsupportedModelError)) as error:
        GgufFile(path)
    message = error.value.message
    assert path.name in message
    assert "bundle" not in message  # there is none yet
    return message


def after(data: bytes, name: str, skip: int, new: bytes) -> bytes:
    """With other bytes so many past the end of a name."""
    at = data.index(struct.pack("<Q", len(name)) + name.encode()) + 8 + len(name) + skip
    return data[:at] + new + data[at + len(new) :]


def u32(number: int) -> bytes:
    return struct.pack("<I", number)


def u64(number: int) -> bytes:
    return struct.pack("<Q", number)


TOKENS, ALONE = "tokenizer.ggml.tokens", "token_embd.weight"
# What is done to the bytes of a whole file, and what is said.
BYTES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", f"broken.gguf is empty; {AGAIN}"),
    "another": (lambda data: b"\x89PNG" + data[4:], "does not begin with the word GGUF"),
    "short": (lambda data: data[:3], "does not begin with the word GGUF"),
    "counts": (lambda data: data[:20], "its 20 bytes do not hold its metadata"),
    "metadata": (lambda data: data[:700], "its 700 bytes do not hold its metadata"),
    "data": (lambda data: data[:-1000], "ends too early: it has"),
    "first version": (lambda data: data[:4] + u32(1) + data[8:], "of version 1; astra-mesh reads"),
    "next version": (lambda data: data[:4] + u32(9) + data[8:], "of version 9; astra-mesh reads"),
    "big-endian": (lambda data: data[:4] + u32(3)[::-1] + data[8:], "big-endian machines"),
    "many values": (lambda data: data[:16] + u64(2**60) + data[24:], "broken.gguf"),
    "many tensors": (lambda data: data[:8] + u64(2**60) + data[16:], "broken.gguf"),
    "long list": (lambda data: after(data, TOKENS, 8, u64(2**60)), "do not hold its metadata"),
    "long numbers": (
        lambda data: after(data, "tokenizer.ggml.token_type", 8, u64(2**60)),
        "do not hold its metadata",
    ),
    "kind of value": (lambda data: after(data, TOKENS, 4, u32(77)), "of the unknown kind 77"),
    "kind of tensor": (lambda data: after(data, ALONE, 20, u32(999)), "of kind 999, which"),
    "blocks": (lambda data: after(data, ALONE, 20, u32(14)), "rows of 64 weights"),
    "dimensions": (lambda data: after(data, ALONE, 0, u32(9)), "has 9 dimensions"),
    "no rows": (lambda data: after(data, ALONE, 12, u64(0)), "token_embd.weight' is empty"),
    "offset": (lambda data: after(data, ALONE, 24, u64(2**40)), "would end at byte"),
    "heads": (
        lambda data: after(data, "llama.attention.head_count", 4, u32(0)),
        "its llama.attention.head_count is '0', where there must be some",
    ),
    "no number": (
        lambda data: after(data, "llama.context_length", 0, u32(6)),  # now a float
        "no whole number",
    ),
    "blocks of the model": (
        lambda data: after(data, "llama.block_count", 4, u32(10**6)),
        "has 1000000 blocks; at most",
    ),
    "positions": (
        lambda data: after(data, "llama.rope.freq_base", 4, struct.pack("<f", 0.0)),
        "rope_theta must be above zero",
    ),
    "infinite": (
        lambda data: after(data, "llama.rope.freq_base", 4, struct.pack("<f", float("inf"))),
        "its llama.rope.freq_base is 'inf', no number",
    ),
}


@pytest.mark.parametrize("case", BYTES)
def test_damaged_bytes(case: str, whole: Path, tmp_path: Path) -> None:
    change, text = BYTES[case]
    path = tmp_path / "broken.gguf"
    path.write_bytes(change(whole.read_bytes()))
    assert text in said(path)


def test_a_file_is_refused_wherever_it_ends(whole: Path, tmp_path: Path) -> None:
    data = whole.read_bytes()
    broken = tmp_path / "broken.gguf"
    for size in [*range(0, 4000, 97), *range(4000, len(data), 9973), len(data) - 1]:
        broken.write_bytes(data[:size])
        assert said(broken)


# --- shapes ---------------------------------------------------------------------------------------


def without(name: str) -> dict[str, torch.Tensor]:
    tensors = make("llama")
    del tensors[name]
    return tensors


def shaped(name: str, *shape: int) -> dict[str, torch.Tensor]:
    return make("llama") | {name: torch.zeros(shape)}


AT = "model.layers.1."
TENSORS: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "queries": (
        shaped(f"{AT}self_attn.q_proj.weight", 48, D),
        "its tensor blk.1.attn_q.weight is 48 x 64 where its metadata say 64 x 64",
    ),
    "vector": (
        shaped(f"{AT}mlp.up_proj.weight", D),
        "its tensor blk.1.ffn_up.weight is 64 where its metadata say 96 x 64",
    ),
    "norm": (shaped("model.norm.weight", 65), "output_norm.weight is 65 where"),
    "embedding": (shaped("model.embed_tokens.weight", 96, 63), "token_embd.weight is 96 x 63"),
    "head": (shaped("lm_head.weight", 95, D), "output.weight is 95 x 64 where"),
    "no block": (without(f"{AT}mlp.up_proj.weight"), "has no tensor blk.1.ffn_up.weight"),
    "no embedding": (without("model.embed_tokens.weight"), "has no tensor token_embd.weight"),
    "no norm": (without("model.norm.weight"), "has no tensor output_norm.weight"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_the_metadata_do_not_describe(case: str, tmp_path: Path) -> None:
    tensors, text = TENSORS[case]
    message = said(write(tmp_path / "m.gguf", "llama", tensors))
    assert text in message
    assert message.endswith(AGAIN)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"add_string": ("llama.attention.key_length", "wide")}, "is 'wide', no whole number"),
        ({"add_array": ("llama.attention.key_length", [8, 16])}, "of its own for each block"),
        ({"add_string": ("llama.rope.dimension_count", "all")}, "is 'all', no whole number"),
        ({"add_tensor": ("blk.x.ffn_up.weight", np.zeros((2, D), np.float32))}, "unknown here"),
    ],
)
def test_metadata_of_another_kind(more: dict[str, Any], text: str, tmp_path: Path) -> None:
    assert text in said(write(tmp_path / "m.gguf", "llama", make("llama"), **more))


# --- tokenizers -----------------------------------------------------------------------------------

GPT2 = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a", "b"]}


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"tokenizer.ggml.model": "gpt2"}, "its tokenizer lacks 'tokenizer.ggml.tokens'"),
        (GPT2 | {"tokenizer.ggml.merges": ["a c"]}, "its tokenizer cannot be"),
        (GPT2 | {"tokenizer.ggml.tokens": 3}, "its tokenizer cannot be"),
        (
            GPT2 | {"tokenizer.ggml.bos_token_id": 9, "tokenizer.ggml.add_bos_token": True},
            "its tokenizer cannot be",
        ),
        ({"tokenizer.ggml.model": "rwkv"}, "a tokenizer of the kind 'rwkv', unknown here"),
    ],
)
def test_tokenizers_that_cannot_be(fields: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(AstraMeshError) as error:
        make_tokenizer(fields, tmp_path / "m.gguf")
    assert text in error.value.message
    assert f"put the model's tokenizer.json beside it, in {tmp_path.name}/" in error.value.message


def test_a_big_endian_file_of_the_package_itself(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "be.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_block_count(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "big-endian" in said(tmp_path / "be.gguf")


def test_a_file_without_its_folder_in_the_path(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copyfile(whole, tmp_path / "m.gguf")
    monkeypatch.chdir(tmp_path)
    assert GgufFile(Path("m.gguf")).path == tmp_path / "m.gguf"
