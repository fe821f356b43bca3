"""Whether a GGUF file is whole: its layout, read without the package ``gguf``.

That package trusts a file's own counts: of one that was cut short it makes empty arrays, and may
count to the length of a list that is not there. So the layout is walked once before it is opened.
(Layout: docs/gguf.md of ggml. Little-endian: magic, version, counts; metadata as name, kind, value;
tensors as name, dimensions, kind, offset; then the tensors' data, aligned.)
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from astra_mesh.bundle.configs import about_file, bad_file, file_size
from astra_mesh.errors import BadBundleError, InputError, UnsupportedModelError

AGAIN: Final = "download or convert it again"
_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_ALIGNMENT: Final = 32  # unless general.alignment says otherwise
_DIMENSIONS: Final = 4  # ggml has no more
# Kinds of values by number: bytes of one; texts and lists are of any length.
_SIZES: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_TEXT, _LIST, _UINT32 = 8, 9, 4


def check_whole(path: Path, blocks: Mapping[int, tuple[int, int]]) -> None:
    """Raise an error that says what is wrong with a file, if anything is.

    Args:
        path: of the file.
        blocks: by the number of a tensor's kind: weights of a block, and its bytes.

    Raises:
        InputError: it is no GGUF file.
        BadBundleError: it is damaged, or ends too early.
        UnsupportedModelError: it is for big-endian machines, of an unknown version, or has tensors
            of an unknown kind.
    """
    size = file_size(path)
    if size == 0:
        raise _no_gguf(path, "is empty")
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        _Walk(path, data, blocks).run()


def _no_gguf(path: Path, problem: str) -> InputError:
    return InputError(f"{about_file(path, problem)}; {AGAIN}")


class _Walk:
    """One pass over a file's metadata and its list of tensors."""

    def __init__(self, path: Path, data: mmap.mmap, blocks: Mapping[int, tuple[int, int]]) -> None:
        self._path, self._data, self._blocks = path, data, blocks
        self._at = 0
        self._alignment = _ALIGNMENT

    def run(self) -> None:
        if self._data[: len(_MAGIC)] != _MAGIC:
            problem = "is no GGUF file: it does not begin with the word GGUF"
            raise _no_gguf(self._path, problem)
        self._at = len(_MAGIC)
        self._check_version(self._whole(4))
        tensors, values = self._whole(8), self._whole(8)
        for _ in range(values):
            self._value()
        ends = [self._tensor() for _ in range(tensors)]
        begin = -(-self._at // self._alignment) * self._alignment
        for name, end in ends:
            if begin + end > len(self._data):
                raise self._bad(
                    f"ends too early: it has {len(self._data)} bytes, and its tensor {name!a} "
                    f"would end at byte {begin + end}"
                )

    def _check_version(self, version: int) -> None:
        if version in _VERSIONS:
            return
        if version & 0xFFFF == 0:
            raise UnsupportedModelError(
                f"{self._path.name} is a GGUF file for big-endian machines, which astra-mesh does "
                "not read: get the usual, little-endian one"
            )
        raise UnsupportedModelError(
            f"{self._path.name} is a GGUF file of version {version}; astra-mesh reads versions "
            f"{' and '.join(map(str, _VERSIONS))}: get it in one of these, or convert it again "
            "with the llama.cpp of today"
        )

    def _value(self) -> None:
        name, kind = self._text(), self._whole(4)
        if name == b"general.alignment" and kind == _UINT32:
            self._alignment = self._whole(4)
            if self._alignment == 0 or self._alignment & (self._alignment - 1):
                raise self._bad(f"its alignment is {self._alignment}, no power of two")
            return
        if kind != _LIST:
            self._skip(name, kind, 1)
            return
        kind, count = self._whole(4), self._whole(8)
        self._skip(name, kind, count)

    def _skip(self, name: bytes, kind: int, count: int) -> None:
        """Go past so many values of one kind."""
        if kind in _SIZES:
            self._go(count * _SIZES[kind])
        elif kind == _TEXT:
            for _ in range(count):
                self._go(self._whole(8))
        else:
            raise self._bad(f"its value {_shown(name)} is of the unknown kind {kind}")

    def _tensor(self) -> tuple[str, int]:
        """Name, and where its data end, bytes from where those of the first begin."""
        name, count = _shown(self._text()), self._whole(4)
        if not 0 < count <= _DIMENSIONS:
            raise self._bad(f"its tensor {name!a} has {count} dimensions")
        shape = [self._whole(8) for _ in range(count)]
        kind, offset = self._whole(4), self._whole(8)
        if 0 in shape:
            raise self._bad(f"its tensor {name!a} is empty")
        if kind not in self._blocks:
            raise UnsupportedModelError(
                f"{self._path.name}: its tensor {name!a} is of kind {kind}, which the installed "
                "package gguf does not know: update that, or get the model as Q8_0, Q4_0 or F16"
            )
        weights, size = self._blocks[kind]
        if shape[0] % weights:
            raise self._bad(
                f"its tensor {name!a} has rows of {shape[0]} weights, no whole number of the "
                f"blocks of {weights} that its kind has"
            )
        return name, offset + math.prod(shape) // weights * size

    def _text(self) -> bytes:
        size = self._whole(8)
        begin = self._at
        self._go(size)
        return self._data[begin : self._at]

    def _whole(self, size: int) -> int:
        begin = self._at
        self._go(size)
        code = "<I" if size == 4 else "<Q"
        return int(struct.unpack_from(code, self._data, begin)[0])

    def _go(self, size: int) -> None:
        self._at += size
        if self._at > len(self._data):
            raise self._bad(
                f"ends too early: its {len(self._data)} bytes do not hold its metadata and the "
                "list of its tensors"
            )

    def _bad(self, problem: str) -> BadBundleError:
        return bad_file(self._path, problem, AGAIN)


def _shown(name: bytes) -> str:
    return name[:64].decode("utf-8", "replace")
