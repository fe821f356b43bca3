"""What tells the files of one run from those of another, without reading all of its data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from astra_mesh.errors import CalibrationError
from astra_mesh.quality.pictures import LABELS, SUFFIXES

LOOKED_BYTES: Final = 64 << 20  # of all files' contents; some 0.2 s
LOOKED_FILES: Final = 1024  # whose contents are looked at; of the others name and size
PIECE_BYTES: Final = 1 << 16
_TEXTS: Final = (".txt", ".tsv")


def data_fingerprint(path: Path) -> str:
    """SHA-256 of the names and sizes of a data file or folder, and of contents.

    Up to ``LOOKED_FILES`` files and ``LOOKED_BYTES`` that is all of them, beyond that pieces that
    lie evenly.

    Raises:
        CalibrationError: there is no such file, or it cannot be read.
    """
    if not path.exists():
        raise CalibrationError(f"there is no file or folder {path}")
    digest = hashlib.sha256(path.name.encode("utf-8", "replace"))
    try:
        files = sorted((one.relative_to(path).as_posix(), one) for one in _files(path))
        every = -(-len(files) // LOOKED_FILES) or 1
        share = LOOKED_BYTES // max(1, len(files[::every]))
        for number, (name, file) in enumerate(files):
            size = file.stat().st_size
            digest.update(f"\0{name}\0{size}\0".encode("utf-8", "replace"))
            if number % every == 0:
                with file.open("rb") as stream:
                    for piece in _pieces(stream, size, share):
                        digest.update(piece)
    except OSError as error:
        raise CalibrationError(f"{path} cannot be read ({error.strerror})") from error
    return digest.hexdigest()


def _files(path: Path) -> Iterator[Path]:
    """Those that may be data: the work of a run in the same folder is none."""
    if not path.is_dir():
        yield path
        return
    for one in path.rglob("*"):
        kind = one.suffix.lower() in (*_TEXTS, *SUFFIXES) or one.name == LABELS
        if kind and one.is_file():
            yield one


def _pieces(stream: BinaryIO, size: int, share: int) -> Iterator[bytes]:
    """The contents, or ``share`` bytes of them: the first and last piece, and others between."""
    if size <= share:
        while piece := stream.read(PIECE_BYTES):
            yield piece
        return
    count = max(2, share // PIECE_BYTES)
    for number in range(count):
        stream.seek((size - PIECE_BYTES) * number // (count - 1))
        yield stream.read(PIECE_BYTES)
