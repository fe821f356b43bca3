"""Codes as they come in: which stages a message has, and one shard's codes put together."""

from __future__ import annotations

import numpy as np

from astra_mesh.errors import ProtocolError
from astra_mesh.quant.codes import CodeArray, Codec
from astra_mesh.wire.messages import Codes


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
        """All stages, once all are there."""
        return [array for array in self.arrays if array is not None]


def split(codec: Codec, message: Codes, stages: int) -> list[tuple[int, bytes]]:
    """The stages that a message carries, at least one, and the data of each.

    Raises:
        ProtocolError: the data is no whole number of them.
    """
    found, at, data = [], 0, message.data
    for stage in range(message.stage, stages):
        size = codec.packed_bytes(stage, message.count)
        found.append((stage, data[at : at + size]))
        at += size
        if at >= len(data):
            break
    if at != len(data):
        raise ProtocolError(
            f"{len(data)} bytes of codes for {message.count} tokens from stage {message.stage}"
            f" of {stages} on: that is no whole number of stages"
        )
    return found


def stages_in(codec: Codec, message: Codes, most: int) -> int:
    """How many stages a message has where rates may fall: it has all of its tokens' stages.

    Raises:
        ProtocolError: it has not, or the codec cannot work with so many.
    """
    stages = len(split(codec, message, most))
    if message.stage or stages not in codec.able:
        raise ProtocolError(
            f"stages {message.stage} to {message.stage + stages - 1} of codes whose rate may fall:"
            " each message has the first stages, as many as the codec can do with"
        )
    return stages
