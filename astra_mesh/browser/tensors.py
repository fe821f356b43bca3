"""Named tensors in one string of bytes, as a tab fetches them: a block's weights, or its codebook.

Little-endian, each tensor at a multiple of :data:`_ALIGNMENT` bytes. Graphs refer to them by
offset, as ONNX *external data*.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_ALIGNMENT: Final = 64
_KINDS: Final = {"float16": "f2", "float32": "f4", "int32": "i4", "int8": "i1"}


@dataclass(frozen=True)
class Entry:
    """One tensor within the bytes."""

    name: str
    dtype: str  # "f2", "f4", "i4" or "i1"
    shape: tuple[int, ...]
    offset: int
    length: int  # in bytes

    def described(self) -> dict[str, Any]:
        """As a manifest says it."""
        return {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "offset": self.offset,
        }


class Packed:
    """Tensors in one string of bytes."""

    def __init__(self, tensors: Mapping[str, Array]) -> None:
        parts: list[bytes] = []
        entries, at = {}, 0
        for name, tensor in tensors.items():
            kind = _KINDS[tensor.dtype.name]
            data = np.ascontiguousarray(tensor).astype(f"<{kind}", copy=False).tobytes()
            padding = -at % _ALIGNMENT
            parts += [bytes(padding), data]
            entries[name] = Entry(name, kind, tensor.shape, at + padding, len(data))
            at += padding + len(data)
        self.data = b"".join(parts)
        self.entries: Mapping[str, Entry] = entries

    @cached_property
    def sha256(self) -> str:
        """Of the bytes, hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()

    def described(self) -> dict[str, Any]:
        """As a manifest says it: hash, length, tensors."""
        return {
            "sha256": self.sha256,
            "bytes": len(self.data),
            "tensors": [entry.described() for entry in self.entries.values()],
        }
