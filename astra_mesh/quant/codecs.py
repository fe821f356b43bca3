"""The codecs: how block inputs become codes, and keys and values again.

``vq``     codes of a codebook, decoded by table lookups or by projection
``astra``  the published form: codes of the embedding, the receiver normalizes and projects it again
``fp32``, ``fp16``, ``int8``, ``int4``  the normalized embedding itself, in that precision
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from astra_mesh.errors import CodebookError, CodecError, ProtocolError
from astra_mesh.families.model import Model
from astra_mesh.quant.codebook import Codebook
from astra_mesh.quant.codes import CodeArray, Codec
from astra_mesh.quant.vector import VectorCodec

__all__ = ["PLAIN", "VECTOR", "CodeArray", "Codec", "PlainCodec", "VectorCodec", "make_codec"]

PLAIN = ("fp32", "fp16", "int8", "int4")
VECTOR = ("vq", "astra")
INT4_GROUP = 32  # values that share one scale


class PlainCodec:
    """The normalized embedding in fp32, fp16, int8 or int4; the receiver projects."""

    stages = 1
    able: tuple[int, ...] = (1,)
    first_block = 1

    def __init__(self, name: str, model: Model) -> None:
        self.name = name
        self._model = model
        size = model.spec.hidden_size
        self._groups = -(-size // INT4_GROUP)
        self._row = {
            "fp32": 4 * size,
            "fp16": 2 * size,
            "int8": size + 4,
            "int4": self._groups * (INT4_GROUP // 2 + 2),
        }[name]

    def rate(self, stages: int) -> int:
        """See :class:`Codec`."""
        return 8 * self._row

    def sender(self, stages: int, known: Tensor | None) -> PlainCodec:
        """See :class:`Codec`; nothing is remembered."""
        return self

    def receiver(self, stages: int, known: Tensor | None) -> PlainReceiver:
        """See :class:`Codec`."""
        return PlainReceiver(self, known)

    def fork(self) -> PlainCodec:
        """See :class:`Sender`."""
        return self

    def encode(
        self, block: int, x: Tensor, first: int = 0, stages: int | None = None
    ) -> list[CodeArray]:
        """See :class:`Sender`."""
        n = self.normalized(block, x)
        if self.name in ("fp32", "fp16"):
            kind = "<f4" if self.name == "fp32" else "<f2"
            rows = np.ascontiguousarray(n.numpy().astype(kind))
            return [rows.view(np.uint8).reshape(len(rows), self._row)]
        return [_to_int8(n) if self.name == "int8" else _to_int4(n, self._groups)]

    def normalized(self, block: int, x: Tensor) -> Tensor:
        """What is sent of a block's input: (T, D) float32."""
        return self._model.block(block).normalize(x).float()

    def decode(self, block: int, codes: Sequence[CodeArray], first: int = 0) -> Tensor:
        """See :class:`Receiver`."""
        return self.project(block, self.rebuild(codes))

    def project(self, block: int, n: Tensor) -> Tensor:
        """Raw keys and values (T, 2 kv_size) of normalized inputs (T, D)."""
        return self._model.block(block).project_key_value(n)

    def rebuild(self, codes: Sequence[CodeArray]) -> Tensor:
        """The normalized input (T, D) that was sent."""
        (rows,) = codes
        rows = np.ascontiguousarray(rows)
        if self.name in ("fp32", "fp16"):
            kind = "<f4" if self.name == "fp32" else "<f2"
            n = torch.from_numpy(rows.view(kind).astype(np.float32))
        elif self.name == "int8":
            n = _from_int8(rows)
        else:
            n = _from_int4(rows, self._model.spec.hidden_size)
        return n

    def pack(self, stage: int, codes: CodeArray) -> bytes:
        """See :class:`Codec`."""
        return codes.tobytes()

    def packed_bytes(self, stage: int, tokens: int) -> int:
        """See :class:`Codec`."""
        return tokens * self._row

    def unpack(self, stage: int, data: bytes, tokens: int) -> CodeArray:
        """See :class:`Codec`."""
        if len(data) != tokens * self._row:
            raise ProtocolError(
                f"{len(data)} bytes of {self.name} for {tokens} tokens, not {tokens * self._row}"
            )
        rows = np.frombuffer(data, np.uint8).reshape(tokens, self._row)
        if not self._finite(rows):
            raise ProtocolError(f"{self.name} codes with numbers that are not finite")
        return rows

    def _finite(self, rows: CodeArray) -> bool:
        if self.name in ("fp32", "fp16"):
            return bool(np.isfinite(rows.view("<f4" if self.name == "fp32" else "<f2")).all())
        scales = rows[:, -4:] if self.name == "int8" else rows[:, -2 * self._groups :]
        kind = "<f4" if self.name == "int8" else "<f2"
        return bool(np.isfinite(np.ascontiguousarray(scales).view(kind)).all())


class PlainReceiver:
    """The receiving end of a :class:`PlainCodec`: knows the last block's input."""

    def __init__(self, codec: PlainCodec, known: Tensor | None) -> None:
        self._codec, self._last = codec, known

    def decode(self, block: int, codes: Sequence[CodeArray], first: int = 0) -> Tensor:
        """See :class:`astra_mesh.quant.codes.Receiver`."""
        self._last = self._codec.rebuild(codes)
        return self._codec.project(block, self._last)

    def stand_in(self, block: int) -> Tensor:
        """See :class:`astra_mesh.quant.codes.Receiver`."""
        assert self._last is not None
        return self._codec.project(block, self._last)


def _to_int8(n: Tensor) -> CodeArray:
    """(T, D) to (T, D + 4): one scale per token, little-endian float32 at the end."""
    scale = n.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
    values = (n / scale).round().to(torch.int8).numpy().view(np.uint8)
    return np.concatenate([values, scale.numpy().astype("<f4").view(np.uint8)], axis=1)


def _from_int8(rows: CodeArray) -> Tensor:
    scale = np.ascontiguousarray(rows[:, -4:]).view("<f4").astype(np.float32)
    return torch.from_numpy(rows[:, :-4].view(np.int8).astype(np.float32) * scale)


def _to_int4(n: Tensor, groups: int) -> CodeArray:
    """(T, D) to nibbles of groups of 32 (low nibble first), then one float16 scale per group."""
    wide = F.pad(n, (0, groups * INT4_GROUP - n.shape[1])).view(len(n), groups, INT4_GROUP)
    scale = (wide.abs().amax(2, keepdim=True) / 7).half().clamp_min(6e-8)
    values = (wide / scale.float()).round().clamp(-7, 7).to(torch.int8).numpy() + 8
    nibbles = values.astype(np.uint8).reshape(len(n), -1, 2)
    packed = nibbles[:, :, 0] | nibbles[:, :, 1] << 4
    return np.concatenate([packed, scale[:, :, 0].numpy().astype("<f2").view(np.uint8)], axis=1)


def _from_int4(rows: CodeArray, hidden: int) -> Tensor:
    groups = rows.shape[1] // (INT4_GROUP // 2 + 2)
    packed = rows[:, : groups * INT4_GROUP // 2]
    scale = np.ascontiguousarray(rows[:, groups * INT4_GROUP // 2 :]).view("<f2")
    values = np.stack([packed & 15, packed >> 4], axis=2).astype(np.float32) - 8
    wide = values.reshape(len(rows), groups, INT4_GROUP) * scale.astype(np.float32)[:, :, None]
    return torch.from_numpy(wide.reshape(len(rows), -1)[:, :hidden])


def make_codec(
    name: str,
    model: Model,
    codebook: Codebook | None = None,
    decoder: str = "table",
    *,
    lean: bool = False,
    rough: bool = True,
) -> PlainCodec | VectorCodec:
    """The codec of that name, by default as peers run it; the rest as for :class:`VectorCodec`.

    Raises:
        CodecError: an unknown one.
        CodebookError: it needs a codebook, which is missing or is not the model's.
    """
    if name in PLAIN:
        return PlainCodec(name, model)
    if name not in VECTOR:
        raise CodecError(f"unknown codec {name!r}; known: {', '.join(PLAIN + VECTOR)}")
    if codebook is None or codebook.codec != name:
        raise CodebookError(
            f"the model has no {name} codebook; fit one (astra-mesh fit MODEL --codec {name}) or "
            f"use one of {', '.join(PLAIN)}"
        )
    if codebook.hidden_size != model.spec.hidden_size or (
        codebook.blocks != model.spec.num_hidden_layers - codebook.first_block
    ):
        raise CodebookError("the codebook does not fit the model's blocks; fit it again")
    return VectorCodec(model, codebook, decoder, lean, rough)
