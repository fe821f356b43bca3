"""What is kept of one request, so that a shard can be computed once more."""

from __future__ import annotations

from collections.abc import Sequence

from astra_mesh import limits
from astra_mesh.quant.codes import CodeArray


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
