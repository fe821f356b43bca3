"""Bit packing of codes."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra_mesh.errors import ProtocolError
from astra_mesh.wire.bits import Codes, pack, packed_bytes, unpack


def random_codes(tokens: int, groups: int, bits: int, seed: int = 0) -> Codes:
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (tokens, groups))
    return codes.astype(np.uint8) if bits <= 8 else codes.astype(np.uint16)


def reference(codes: Codes, bits: int) -> bytes:
    """Packing by the definition: one big integer."""
    value = sum(code << i * bits for i, code in enumerate(codes.reshape(-1).tolist()))
    tokens, groups = codes.shape
    return int(value).to_bytes(packed_bytes(tokens, groups, bits), "little")


@given(st.integers(0, 9), st.integers(1, 5), st.integers(1, 16), st.integers(0, 2**32 - 1))
def test_inverse_pair(tokens: int, groups: int, bits: int, seed: int) -> None:
    codes = random_codes(tokens, groups, bits, seed)
    data = pack(codes, bits)
    assert data == reference(codes, bits)
    back = unpack(data, tokens, groups, bits)
    assert back.dtype == (np.uint8 if bits <= 8 else np.uint16)
    assert back.shape == (tokens, groups)
    assert np.array_equal(back, codes)


def test_example_of_the_document() -> None:
    codes = np.array([[0x001, 0x3FF, 0x200]], dtype=np.uint16)
    assert pack(codes, 10).hex() == "01fc0f20"


@pytest.mark.parametrize("bits", range(1, 17))
def test_wrong_lengths(bits: int) -> None:
    data = pack(random_codes(3, 5, bits), bits)
    for wrong in (data[:-1], data + b"\0", b""):
        with pytest.raises(ProtocolError, match="bytes of codes"):
            unpack(wrong, 3, 5, bits)


@pytest.mark.parametrize("bits", [1, 3, 5, 7, 9, 10, 15])
def test_padding_must_be_zero(bits: int) -> None:
    data = bytearray(pack(random_codes(1, 3, bits), bits))
    assert 3 * bits % 8
    data[-1] |= 0x80
    with pytest.raises(ProtocolError, match="not zero"):
        unpack(bytes(data), 1, 3, bits)


@pytest.mark.parametrize(("bits", "dtype"), [(4, np.uint8), (7, np.uint8), (10, np.uint16)])
def test_codes_that_do_not_fit(bits: int, dtype: type) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        pack(np.array([[1 << bits]], dtype=dtype), bits)


@pytest.mark.parametrize("bits", [0, 17, -1])
def test_impossible_widths(bits: int) -> None:
    with pytest.raises(ValueError, match="bits must be"):
        pack(random_codes(1, 1, 8), bits)
    with pytest.raises(ValueError, match="bits must be"):
        unpack(b"", 1, 1, bits)


def test_other_arrays() -> None:
    with pytest.raises(ValueError, match="must be"):
        pack(np.zeros((2, 2), dtype=np.int64), 8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be"):
        pack(np.zeros(4, dtype=np.uint8), 8)
    wide = np.array([[3, 255]], dtype=np.uint16)  # also where 8 bits are enough
    assert pack(wide, 8) == b"\x03\xff"
    columns = random_codes(6, 4, 10).T  # not contiguous
    assert np.array_equal(unpack(pack(columns, 10), 4, 6, 10), columns)


def test_a_memoryview_of_a_frame() -> None:
    codes = random_codes(4, 4, 10)
    frame = b"head" + pack(codes, 10)
    assert np.array_equal(unpack(memoryview(frame)[4:], 4, 4, 10), codes)


def test_ten_bits_are_fast() -> None:
    codes = random_codes(1024, 32, 10)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        unpack(pack(codes, 10), 1024, 32, 10)
        best = min(best, time.perf_counter() - began)
    assert best < 0.004
