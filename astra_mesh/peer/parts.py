"""Codes of others as they come in: put together, and kept where a request is checked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from astra_mesh import limits
from astra_mesh.errors import ProtocolError
from astra_mesh.quant.codes import CodeArray


class Part:
    """The codes of one shard for one block, while they come in."""

    def __init__(self, stages: int, tokens: int) -> None:
        self.arrays: list[CodeArray | None] = [None] * stages
        self.here = np.zeros((stages, tokens), dtype=bool)

    def put(self, stage: int, first: int, rows: CodeArray) -> bool:
        """Keep rows; True once all are there. ProtocolError if some came before."""
        at = slice(first, first + len(rows))
        if self.here[stage, at].any():
            raise ProtocolError("codes that were sent before")
        self.here[stage, at] = True
        array = self.arrays[stage]
        if array is None:
            array = np.empty((self.here.shape[1], rows.shape[1]), dtype=rows.dtype)
            self.arrays[stage] = array
        array[at] = rows
        return bool(self.here.all())

    def complete(self) -> list[CodeArray]:
        """One array per stage, once all are there."""
        return [array for array in self.arrays if array is not None]


class Kept:
    """What is kept of one request to compute ``shard`` of it once more: all codes that came here,
    and those that went from here to that shard. Too much of it is not kept at all.
    """

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.is_full = False
        self.codes: dict[tuple[int, int], Sequence[CodeArray]] = {}  # by block and sender
        self._bytes = 0

    def put(self, block: int, sender: int, arrays: Sequence[CodeArray]) -> None:
        """Keep one shard's codes of a block."""
        self._bytes += sum(array.nbytes for array in arrays)
        if self._bytes > limits.SPOT_CHECK_BYTES:
            self.is_full = True
            self.codes.clear()
        if not self.is_full:
            self.codes[block, sender] = arrays
