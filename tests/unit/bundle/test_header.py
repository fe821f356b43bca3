"""Safetensors headers: every lie that one can tell is refused before the file is mapped."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from astra_mesh import limits
from astra_mesh.bundle.header import ITEM_BYTES, TensorInfo, read_header
from astra_mesh.bundle.tensors import open_tensors
from astra_mesh.errors import BadBundleError
from tests.unit.bundle.making import entry, raw_safetensors

GOOD = save(
    {
        "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "b": torch.arange(5, dtype=torch.float16),
        "c": torch.zeros(0, 4),
        "d": torch.tensor(True),
    },
    {"made": "for a test"},
)
A = entry("F32", [2], 0, 8)


def test_a_good_header_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(GOOD)
    header = read_header(path)
    assert header.metadata == {"made": "for a test"}
    assert {name: (t.dtype, t.shape) for name, t in header.tensors.items()} == {
        "a": ("F32", (2, 3)),
        "b": ("F16", (5,)),
        "c": ("F32", (0, 4)),
        "d": ("BOOL", ()),
    }


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for length in range(len(GOOD)):
        path.write_bytes(GOOD[:length])
        with pytest.raises(BadBundleError, match=r"x\.safetensors.* copy or download it again"):
            open_tensors(path)


def test_bytes_after_the_last_tensor_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(GOOD + b"\0")
    with pytest.raises(BadBundleError, match="promises"):
        open_tensors(path)


BIG = 2**63
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "too few"),
    "seven bytes": (b"\0" * 7, "too few"),
    "no header": (bytes(8), "no JSON object"),
    "header longer than the file": (raw_safetensors({}, length=3), "the whole file"),
    "header of 2^64 - 1": (raw_safetensors({}, length=2**64 - 1), "no safetensors file"),
    "header over the cap": (
        raw_safetensors({}, length=limits.SAFETENSORS_HEADER_BYTES + 1),
        "no safetensors file",
    ),
    "header length one short": (raw_safetensors({"a": A}, bytes(8), length=20), "not valid JSON"),
    "not UTF-8": (raw_safetensors(b'{"\xff": 1}'), "not UTF-8"),
    "not JSON": (raw_safetensors(b"{a: 1}"), "not valid JSON"),
    "array": (raw_safetensors(b"[]"), "no JSON object"),
    "leading space": (raw_safetensors(b" {}"), "no JSON object"),
    "deep": (raw_safetensors(b'{"a":' + b"[" * 99_999 + b"]" * 99_999 + b"}"), "nests too deep"),
    "tensor twice": (
        raw_safetensors(b'{"a": %s, "a": %s}' % ((json.dumps(A).encode(),) * 2), bytes(8)),
        "has a key twice",
    ),
    "field twice": (
        raw_safetensors(
            b'{"a": {"dtype": "F32", "dtype": "I32", "shape": [2], "data_offsets": [0, 8]}}',
            bytes(8),
        ),
        "has a key twice",
    ),
    "metadata with a number": (raw_safetensors({"__metadata__": {"a": 1}}), "not all text"),
    "metadata as list": (raw_safetensors({"__metadata__": ["a"]}), "not all text"),
    "tensor is text": (raw_safetensors({"a": "F32"}), "other fields"),
    "field missing": (raw_safetensors({"a": {"dtype": "F32", "shape": [2]}}), "other fields"),
    "field too many": (raw_safetensors({"a": {**A, "x": 1}}, bytes(8)), "other fields"),
    "unknown dtype": (raw_safetensors({"a": entry("F31", [2], 0, 8)}, bytes(8)), "unknown dtype"),
    "dtype as list": (raw_safetensors({"a": entry(["F32"], [2], 0, 8)}, bytes(8)), "unknown dtype"),
    "wrong dtype": (raw_safetensors({"a": entry("F64", [2], 0, 8)}, bytes(8)), "it needs 16"),
    "negative shape": (raw_safetensors({"a": entry("F32", [-2], 0, 8)}, bytes(8)), "a shape"),
    "negative twice": (raw_safetensors({"a": entry("F32", [-1, -2], 0, 8)}, bytes(8)), "a shape"),
    "shape of floats": (raw_safetensors({"a": entry("F32", [2.0], 0, 8)}, bytes(8)), "a shape"),
    "shape of bools": (raw_safetensors({"a": entry("F32", [True], 0, 4)}, bytes(4)), "a shape"),
    "shape as number": (raw_safetensors({"a": entry("F32", 2, 0, 8)}, bytes(8)), "a shape"),
    "shape past 2^63": (raw_safetensors({"a": entry("F32", [0, BIG], 0, 0)}), "a shape"),
    "shape that wraps to 0": (
        raw_safetensors({"a": entry("U8", [2**32, 2**32], 0, 0)}),
        "it needs 18446744073709551616",
    ),
    "17 dimensions": (raw_safetensors({"a": entry("F32", [1] * 17, 0, 4)}, bytes(4)), "a shape"),
    "offsets swapped": (raw_safetensors({"a": entry("F32", [2], 8, 0)}, bytes(8)), "-8 bytes"),
    "offset negative": (raw_safetensors({"a": entry("F32", [2], -8, 0)}, bytes(8)), "offsets"),
    "offsets three": (
        raw_safetensors({"a": {**A, "data_offsets": [0, 4, 8]}}, bytes(8)),
        "offsets",
    ),
    "out of range": (raw_safetensors({"a": entry("F32", [4], 0, 16)}, bytes(8)), "promises 16"),
    "overlap": (
        raw_safetensors({"a": A, "b": entry("F32", [2], 4, 12)}, bytes(12)),
        "overlaps another",
    ),
    "same range": (raw_safetensors({"a": A, "b": A}, bytes(8)), "overlaps another"),
    "hole": (raw_safetensors({"a": A, "b": entry("F32", [1], 12, 16)}, bytes(16)), "a hole"),
    "hole at the start": (raw_safetensors({"a": entry("F32", [1], 4, 8)}, bytes(8)), "a hole"),
}


@pytest.mark.parametrize(("data", "problem"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_header_is_refused_by_name(tmp_path: Path, data: bytes, problem: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(BadBundleError, match=problem) as caught:
        open_tensors(path)
    assert caught.value.message.startswith(f"{tmp_path.name}/x.safetensors")
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < limits.REASON_CHARS


def test_hostile_names_are_shown_safely(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw_safetensors({"\x1b[31m" + "x" * 999: entry("F31", [], 0, 0)}))
    with pytest.raises(BadBundleError) as caught:
        open_tensors(path)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < limits.REASON_CHARS


def test_a_huge_sparse_file_with_a_huge_header_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes((limits.SAFETENSORS_HEADER_BYTES + 1).to_bytes(8, "little"))
    os.truncate(path, 2**40)
    with pytest.raises(BadBundleError, match="no safetensors file"):
        open_tensors(path)


@pytest.mark.parametrize("dtype", ITEM_BYTES)
def test_the_library_agrees_on_the_size_of_each_dtype(tmp_path: Path, dtype: str) -> None:
    size = ITEM_BYTES[dtype]
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw_safetensors({"a": entry(dtype, [3], 0, 3 * size)}, bytes(3 * size)))
    assert open_tensors(path)["a"].element_size() == size


def test_offsets_may_come_in_any_order_and_the_header_may_be_padded(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    header = {"a": entry("U8", [1], 1, 2), "b": entry("U8", [1], 0, 1)}
    path.write_bytes(raw_safetensors(json.dumps(header).encode() + b"   ", b"\1\2"))
    assert read_header(path).tensors["a"] == TensorInfo("U8", (1,), 1, 2)
    tensors = open_tensors(path)
    assert (tensors["a"].item(), tensors["b"].item()) == (2, 1)


MUTATION = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@MUTATION
@given(position=st.integers(0, len(GOOD) - 1), value=st.integers(0, 255))
def test_one_changed_byte_gives_a_named_error_or_tensors_that_the_library_gives_too(
    tmp_path: Path, position: int, value: int
) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(GOOD[:position] + bytes([value]) + GOOD[position + 1 :])
    try:
        mine: dict[str, Any] = dict(open_tensors(path))
    except BadBundleError:
        return
    assert mine.keys() == load_file(path).keys()
    assert all(len(t.shape) <= 2 for t in mine.values())
