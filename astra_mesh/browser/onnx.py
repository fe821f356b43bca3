"""The few messages of ONNX files that graphs need, written without ONNX's own package.

That package is 30 MB of compiled code with no ready-made file for several of the devices that serve
pages. Numbers of fields and types are those of ``onnx.proto`` (IR version 8, which came with
operator set 17); the encoding is Protocol Buffers'.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from astra_mesh.browser.tensors import Array, Entry

FLOAT: Final = 1  # TensorProto.DataType
INT8: Final = 3
INT64: Final = 7
FLOAT16: Final = 10

Shape = Sequence[int | str]  # a name stands for a size that differs from call to call
Attribute = float | int | Sequence[int]

_IR_VERSION: Final = 8
_EXTERNAL: Final = 1  # TensorProto.DataLocation
_KINDS: Final = {"float32": FLOAT, "int64": INT64}
_EXTERNAL_KINDS: Final = {"f2": FLOAT16, "f4": FLOAT, "i1": INT8}
_ATTRIBUTE_FLOAT, _ATTRIBUTE_INT, _ATTRIBUTE_INTS = 1, 2, 7  # AttributeProto.AttributeType


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # negative numbers take ten bytes
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _int(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _ints(field: int, values: Iterable[int]) -> bytes:
    return b"".join(_int(field, value) for value in values)


def tensor(name: str, values: Array) -> bytes:
    """A tensor whose numbers are part of the file: float32 or int64."""
    kind = values.dtype.name
    data = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    return _ints(1, values.shape) + _int(2, _KINDS[kind]) + _bytes(8, name) + _bytes(9, data)


def external(entry: Entry, location: str) -> bytes:
    """A tensor whose numbers lie in another file."""
    about = {"location": location, "offset": str(entry.offset), "length": str(entry.length)}
    pairs = (_bytes(13, _bytes(1, key) + _bytes(2, value)) for key, value in about.items())
    return b"".join(
        (
            _ints(1, entry.shape),
            _int(2, _EXTERNAL_KINDS[entry.dtype]),
            _bytes(8, entry.name),
            *pairs,
            _int(14, _EXTERNAL),
        )
    )


def value(name: str, kind: int, shape: Shape) -> bytes:
    """What an input or output is."""
    sizes = (_bytes(2, one) if isinstance(one, str) else _int(1, one) for one in shape)
    dims = b"".join(_bytes(1, size) for size in sizes)
    return _bytes(1, name) + _bytes(2, _bytes(1, _int(1, kind) + _bytes(2, dims)))


def node(
    kind: str, inputs: Sequence[str], outputs: Sequence[str], attributes: Mapping[str, Attribute]
) -> bytes:
    """One operation."""
    return b"".join(
        (
            *(_bytes(1, name) for name in inputs),
            *(_bytes(2, name) for name in outputs),
            _bytes(4, kind),
            *(_bytes(5, _attribute(name, one)) for name, one in sorted(attributes.items())),
        )
    )


def _attribute(name: str, given: Attribute) -> bytes:
    if isinstance(given, int):
        return _bytes(1, name) + _int(3, given) + _int(20, _ATTRIBUTE_INT)
    if isinstance(given, float):
        number = _varint(2 << 3 | 5) + struct.pack("<f", given)
        return _bytes(1, name) + number + _int(20, _ATTRIBUTE_FLOAT)
    return _bytes(1, name) + _ints(8, given) + _int(20, _ATTRIBUTE_INTS)


def model(
    nodes: Sequence[bytes],
    tensors: Sequence[bytes],
    inputs: Sequence[bytes],
    outputs: Sequence[bytes],
    operators: int,
) -> bytes:
    """A whole file; ``operators``: the version of ONNX's own operators."""
    graph = b"".join(
        (
            *(_bytes(1, one) for one in nodes),
            _bytes(2, "astra-mesh"),
            *(_bytes(5, one) for one in tensors),
            *(_bytes(11, one) for one in inputs),
            *(_bytes(12, one) for one in outputs),
        )
    )
    return _int(1, _IR_VERSION) + _bytes(7, graph) + _bytes(8, _bytes(1, "") + _int(2, operators))
