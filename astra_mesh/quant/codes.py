"""What crosses a link for each token and block: the interfaces that all codecs have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy.typing as npt
from torch import Tensor

CodeArray = npt.NDArray[Any]  # (T, columns), uint8 or uint16


class Sender(Protocol):
    """The sending end for some tokens of one request. Blocks come in ascending order."""

    def encode(
        self, block: int, x: Tensor, first: int = 0, stages: int | None = None
    ) -> list[CodeArray]:
        """Codes of block input ``x`` (T, D), one array per stage.

        ``first`` is the place of the first row among the sender's tokens; pieces may come in any
        order, each once per block. ``stages``: of this block; the sender's own number by default.
        """

    def fork(self) -> Sender:
        """Another one with the same past, between two blocks: they may go on differently."""


class Receiver(Protocol):
    """The receiving end of the same tokens."""

    def decode(self, block: int, codes: Sequence[CodeArray], first: int = 0) -> Tensor:
        """Raw keys and values (T, 2 kv_size) from the arrays of all stages.

        A codec that projects also takes blocks with fewer stages than the receiver's.
        """

    def stand_in(self, block: int) -> Tensor:
        """Raw keys and values of all tokens for a block whose codes did not come: from what is
        known of earlier blocks. Needs ``known``, or an earlier block, and a codec that projects.
        """


class Codec(Protocol):
    """One per model and codebook; shared by all requests. Arrays have one row per token."""

    name: str
    stages: int  # the largest number of stages
    able: tuple[int, ...]  # the numbers of stages that can be asked for, ascending
    first_block: int  # the first block whose input is sent

    def rate(self, stages: int) -> int:
        """Bits per token and block."""

    def sender(self, stages: int, known: Tensor | None) -> Sender:
        """The sending end at a number of stages.

        ``known`` (T, D) is the normalized input of the first block, which both ends know exactly;
        None where the first block is coded too.
        """

    def receiver(self, stages: int, known: Tensor | None) -> Receiver:
        """The receiving end; ``known`` as for :meth:`sender`."""

    def pack(self, stage: int, codes: CodeArray) -> bytes:
        """One stage's rows as bytes."""

    def packed_bytes(self, stage: int, tokens: int) -> int:
        """Length of :meth:`pack` for so many rows of one stage."""

    def unpack(self, stage: int, data: bytes, tokens: int) -> CodeArray:
        """Inverse of :meth:`pack`; ProtocolError where length or values cannot be."""
