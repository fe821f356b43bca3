"""Token ids in a .npy file: data for models without a tokenizer, or tokenized elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.lib.format import MAGIC_PREFIX
from numpy.typing import NDArray

from astra_mesh.errors import CalibrationError

SUFFIX: Final = ".npy"
Ids = NDArray[np.integer[Any]]


def holds_ids(path: Path) -> bool:
    """Whether it is called as a file of token ids is."""
    return path.suffix.lower() == SUFFIX and not path.is_dir()


def pieces(path: Path, vocab: int, size: int) -> Iterator[tuple[list[int], bool]]:
    """Windows of ``size`` ids, and if each goes on where the one before ended.

    One dimension is one document, of two each row is one. What is left over is used if it has at
    least two ids.
    """
    for row in np.atleast_2d(_read(path, vocab)):
        for at in range(0, len(row), size):
            piece: list[int] = row[at : at + size].tolist()
            if len(piece) >= 2:
                yield piece, at > 0


def sequences(path: Path, vocab: int, size: int) -> Iterator[list[int]]:
    """Of two dimensions each row, cut after ``size`` ids; windows of one dimension."""
    ids = _read(path, vocab)
    if ids.ndim == 1:
        yield from (piece for piece, _ in pieces(path, vocab, size))
        return
    for row in ids:
        if row.size:
            yield row[:size].tolist()


def _read(path: Path, vocab: int) -> Ids:
    """All ids, (N,) or (sequences, N) integers in 0..``vocab`` - 1. They are read whole: a file
    that is mapped and written to meanwhile would end the process."""
    try:
        with path.open("rb") as file:
            whole = file.read(len(MAGIC_PREFIX)) == MAGIC_PREFIX
        if not whole:  # numpy would try it as an archive, or a pickle
            raise ValueError("no magic")
        found: Ids = np.load(path, allow_pickle=False)
    except OSError as error:
        raise CalibrationError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # a damaged header makes numpy raise many kinds
        raise CalibrationError(
            f"{path.name} is damaged, or no {SUFFIX} file of numbers: write one array of whole "
            "numbers with numpy.save"
        ) from error
    if found.dtype.kind not in "iu":
        raise CalibrationError(
            f"{path.name} holds {found.dtype} values; token ids are whole numbers, as int32"
        )
    if found.ndim not in (1, 2):
        raise CalibrationError(
            f"{path.name} has {found.ndim} dimensions: give one, the ids of a text, or two, a "
            "sequence in each row"
        )
    if found.size:
        low, high = int(found.min()), int(found.max())
        if low < 0 or high >= vocab:
            raise CalibrationError(
                f"{path.name} holds ids from {low} to {high}, and the model's go from 0 to "
                f"{vocab - 1}: they are another tokenizer's, or no token ids"
            )
    return found
