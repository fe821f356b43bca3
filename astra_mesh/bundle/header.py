"""The header of a safetensors file, checked before anything maps or trusts the file.

Format: 8 bytes little-endian header length N, N bytes of JSON, then the tensors' bytes. The JSON
maps a name to ``{"dtype", "shape", "data_offsets": [begin, end]}``; the ranges fill the rest of the
file in some order, without holes or overlaps. ``__metadata__`` maps text to text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from astra_mesh import limits
from astra_mesh.bundle.configs import bad_file, file_size, parse_object
from astra_mesh.errors import BadBundleError

ITEM_BYTES: Final = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
    "C64": 8,
}
_DIMENSIONS: Final = 16  # weights have at most 4
_LARGEST: Final = 2**63 - 1  # torch's sizes are signed 64-bit numbers
_TRUNCATED: Final = "the file is cut short or altered: copy or download it again"


@dataclass(frozen=True)
class Header:
    """What a checked header says."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]


@dataclass(frozen=True)
class TensorInfo:
    """Type and place of one tensor; offsets count from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> Header:
    """Reads and checks the header of a safetensors file.

    Raises:
        BadBundleError: anything in it is wrong; says what, and what to do.
    """
    size = file_size(path)
    data = _header_bytes(path, size)
    try:
        content = parse_object(data)
        metadata = _metadata(content.pop("__metadata__", {}))
        tensors = {name: _info(name, value) for name, value in content.items()}
        _check_ranges(tensors, size - 8 - len(data))
    except ValueError as error:
        raise _bad(path, f"its header {error}") from error
    return Header(tensors, metadata)


def _bad(path: Path, problem: str) -> BadBundleError:
    return bad_file(path, problem, _TRUNCATED)


def _header_bytes(path: Path, size: int) -> bytes:
    if size < 8:
        raise _bad(path, f"has {size} bytes, too few for a safetensors file")
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > limits.SAFETENSORS_HEADER_BYTES:
                raise _bad(path, f"is no safetensors file (a header of {length} bytes)")
            if length > size - 8:
                raise _bad(path, f"its header has {length} bytes, the whole file {size}")
            data = stream.read(length)
    except OSError as error:
        raise bad_file(
            path, f"cannot be read ({error.strerror})", "check its permissions"
        ) from error
    if len(data) != length:
        raise _bad(path, "ends within its header")
    if not data.startswith(b"{"):
        raise _bad(path, "is no safetensors file (its header is no JSON object)")
    return data


def _metadata(value: Any) -> dict[str, str]:
    if isinstance(value, dict) and all(isinstance(text, str) for text in value.values()):
        return value
    raise ValueError("has a __metadata__ that is not all text")


def _numbers(value: Any) -> list[int] | None:
    """A list of whole numbers from 0 to 2^63 - 1, or None (true and 1.0 are none)."""
    if not isinstance(value, list):
        return None
    return value if all(type(n) is int and 0 <= n <= _LARGEST for n in value) else None


def _info(name: str, value: Any) -> TensorInfo:
    label = ascii(name[: limits.NAME_CHARS])
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(
            f"describes tensor {label} by other fields than dtype, shape, data_offsets"
        )
    dtype, shape = value["dtype"], _numbers(value["shape"])
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise ValueError(f"gives tensor {label} the unknown dtype {str(dtype)[:32]!a}")
    if shape is None or len(shape) > _DIMENSIONS:
        raise ValueError(f"gives tensor {label} a shape that is none")
    offsets = _numbers(value["data_offsets"])
    if offsets is None or len(offsets) != 2:
        raise ValueError(f"gives tensor {label} offsets that are none")
    needed = math.prod(shape) * ITEM_BYTES[dtype]
    if offsets[1] - offsets[0] != needed:
        raise ValueError(f"gives tensor {label} {offsets[1] - offsets[0]} bytes, it needs {needed}")
    return TensorInfo(dtype, tuple(shape), offsets[0], offsets[1])


def _check_ranges(tensors: dict[str, TensorInfo], data_bytes: int) -> None:
    """The tensors' ranges must fill the file: no hole, no overlap, nothing after the last."""
    position = 0
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != position:
            label = ascii(name[: limits.NAME_CHARS])
            fault = "overlaps another" if info.begin < position else "leaves a hole"
            raise ValueError(f"places tensor {label} where it {fault} (byte {info.begin})")
        position = info.end
    if position != data_bytes:
        raise ValueError(f"promises {position} bytes of tensors, the file has {data_bytes}")
