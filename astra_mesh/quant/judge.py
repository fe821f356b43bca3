"""How far the codes of a sender are from what it should have sent for block inputs that are known.

Codes are not compared one by one: two devices compute in different formats, an input near the
middle between two codewords falls to either, and all later stages follow. What is compared is the
error of quantization. At a near tie both choices are about equally good, while codes of anything
else are as bad as no codes at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor

from astra_mesh.quant.codecs import PlainCodec
from astra_mesh.quant.codes import CodeArray
from astra_mesh.quant.vector import VectorCodec

_LEAST: Final = 1e-12  # energy


class Judge(Protocol):
    """For the tokens of one sender of one request. Blocks come in ascending order."""

    def excess(self, block: int, x: Tensor, codes: Sequence[CodeArray]) -> Tensor:
        """By how much codes are worse than the best ones for block input ``x`` (T, D): (T,).

        The energy of the error that is more than it need be, over the energy that a token has on
        average in what was quantized. 0: the best codes; about 1 and more: codes of something else.
        """


class VectorJudge:
    """Codes of a codebook; what earlier blocks sent is taken as it came."""

    def __init__(self, codec: VectorCodec, stages: int, known: Tensor | None) -> None:
        self._codec, self._stages, self._memory = codec, stages, codec.memory(known)

    def excess(self, block: int, x: Tensor, codes: Sequence[CodeArray]) -> Tensor:
        """See :class:`Judge`."""
        codec, rows = self._codec, slice(0, len(x))
        coder = codec.coder(block, self._stages)
        n = x.float()
        if coder.book.center is not None:
            n = codec.model.block(block).normalize(x).float()
        predicted = codec.predicted(self._memory, block, coder.book, rows)
        y = coder.coordinates(n if predicted is None else n - predicted)
        best = coder.decode(coder.encode_coordinates(y))
        came = coder.decode([one.T.astype(np.int64) for one in codes])
        if self._memory is not None and predicted is not None:
            added = codec.added(block, self._stages, codes)
            self._memory.keep(block, rows, predicted, added)
        return _excess(y, best, came, coder.middle)


class PlainJudge:
    """Embeddings in fp32, fp16, int8 or int4."""

    def __init__(self, codec: PlainCodec) -> None:
        self._codec = codec

    def excess(self, block: int, x: Tensor, codes: Sequence[CodeArray]) -> Tensor:
        """See :class:`Judge`."""
        codec = self._codec
        n = codec.normalized(block, x)
        return _excess(n, codec.rebuild(codec.encode(block, x)), codec.rebuild(codes))


def make_judge(codec: PlainCodec | VectorCodec, stages: int, known: Tensor | None) -> Judge:
    """The judge of a sender with the same arguments (:meth:`Codec.sender`)."""
    if isinstance(codec, PlainCodec):
        return PlainJudge(codec)
    return VectorJudge(codec, stages, known)


def _excess(wanted: Tensor, best: Tensor, came: Tensor, middle: Tensor | float = 0.0) -> Tensor:
    def energy(rows: Tensor) -> Tensor:
        return rows.double().square().sum(1)

    more = energy(wanted - came) - energy(wanted - best)
    usual = energy(wanted - middle).mean().clamp_min(_LEAST)
    return torch.nan_to_num(more / usual, nan=float("inf"))
