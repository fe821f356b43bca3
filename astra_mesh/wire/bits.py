"""Codes as a dense string of bits: code after code, token after token, lowest bit first.

Code ``i`` (row-major) takes the bits ``i * bits <= j < (i + 1) * bits``; bit ``j`` of the string is
bit ``j % 8`` of byte ``j // 8``. The last byte is filled up with zeros.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from astra_mesh.errors import ProtocolError

Codes = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

BITS_MAX: Final = 16


def packed_bytes(tokens: int, groups: int, bits: int) -> int:
    """Length of the packed codes of ``tokens`` x ``groups``."""
    _check_bits(bits)
    return (tokens * groups * bits + 7) // 8


def pack(codes: Codes, bits: int) -> bytes:
    """Pack codes ``(T, G) uint8 or uint16``, each below ``2**bits``.

    Raises:
        ValueError: A code does not fit.
    """
    _check_bits(bits)
    if codes.ndim != 2 or codes.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"codes must be (T, G) uint8 or uint16, not {codes.shape} {codes.dtype}")
    if codes.size and bits < 8 * codes.itemsize and int(codes.max()) >> bits:
        raise ValueError(f"a code does not fit into {bits} bits")
    if bits == 8:
        return codes.astype(np.uint8, copy=False).tobytes()
    if bits == 16:
        return codes.astype("<u2", copy=False).tobytes()
    width = 8 if bits < 8 else 16
    words = np.ascontiguousarray(codes, dtype="<u1" if width == 8 else "<u2").reshape(-1)
    table = np.unpackbits(words.view(np.uint8), bitorder="little").reshape(-1, width)
    return np.packbits(table[:, :bits], bitorder="little").tobytes()


def unpack(data: bytes | memoryview, tokens: int, groups: int, bits: int) -> Codes:
    """The codes ``(T, G)`` of packed bytes: uint8 up to 8 bits, uint16 above.

    Raises:
        ProtocolError: ``data`` has another length, or bits beyond the last code are set.
    """
    expected = packed_bytes(tokens, groups, bits)
    if len(data) != expected:
        raise ProtocolError(f"{len(data)} bytes of codes where {expected} are due")
    raw = np.frombuffer(data, dtype=np.uint8)
    if bits == 8:
        return raw.reshape(tokens, groups)
    if bits == 16:
        return raw.view("<u2").reshape(tokens, groups).astype(np.uint16, copy=False)
    count = tokens * groups
    width = 8 if bits < 8 else 16
    flat = np.unpackbits(raw, bitorder="little")
    if flat[count * bits :].any():
        raise ProtocolError("the bits behind the last code are not zero")
    table = np.zeros((count, width), dtype=np.uint8)
    table[:, :bits] = flat[: count * bits].reshape(count, bits)
    words = np.packbits(table.reshape(-1), bitorder="little").view("<u1" if width == 8 else "<u2")
    codes = words.reshape(tokens, groups)
    return codes.astype(np.uint8) if width == 8 else codes.astype(np.uint16, copy=False)


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= BITS_MAX:
        raise ValueError(f"bits must be 1 to {BITS_MAX}, not {bits}")
