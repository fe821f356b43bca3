"""Codecs: what crosses a link for each token and block, and how a receiver makes K and V of it.

``vq``     codes of a K,V-metric codebook, decoded by table lookups or by one projection
``astra``  the published form: codes of the embedding, the receiver normalizes and projects it again
``fp32``, ``fp16``, ``int8``, ``int4``  the normalized embedding itself, in that precision
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from astra_mesh.errors import CodebookError, InputError, ProtocolError
from astra_mesh.families.block import Block
from astra_mesh.families.model import Model
from astra_mesh.quant.codebook import BlockBook, Codebook
from astra_mesh.wire.bits import pack, packed_bytes, unpack

CodeArray = npt.NDArray[Any]  # (T, columns), uint8 or uint16
PLAIN = ("fp32", "fp16", "int8", "int4")
VECTOR = ("vq", "astra")
INT4_GROUP = 32  # values that share one scale


class Codec(Protocol):
    """Stateless; one per model and codebook. Arrays have one row per token."""

    name: str
    stages: int
    first_block: int  # the first block whose input is sent

    def rate(self, stages: int) -> int:
        """Bits per token and block."""

    def encode(self, block: int, x: Tensor, stages: int) -> list[CodeArray]:
        """Codes of block input ``x`` (T, D), one array per stage."""

    def decode(self, block: int, codes: Sequence[CodeArray]) -> Tensor:
        """Raw keys and values (T, 2 kv_size) from the arrays of the first stages."""

    def pack(self, codes: CodeArray) -> bytes:
        """One stage's rows as bytes."""

    def packed_bytes(self, tokens: int) -> int:
        """Length of :meth:`pack` for so many rows of one stage."""

    def unpack(self, data: bytes, tokens: int) -> CodeArray:
        """Inverse of :meth:`pack`; ProtocolError where length or values cannot be."""


class PlainCodec:
    """The normalized embedding in fp32, fp16, int8 or int4; the receiver projects."""

    stages = 1
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

    def encode(self, block: int, x: Tensor, stages: int) -> list[CodeArray]:
        """See :class:`Codec`."""
        n = self._model.block(block).normalize(x).float()
        if self.name in ("fp32", "fp16"):
            kind = "<f4" if self.name == "fp32" else "<f2"
            rows = np.ascontiguousarray(n.numpy().astype(kind))
            return [rows.view(np.uint8).reshape(len(rows), self._row)]
        return [_to_int8(n) if self.name == "int8" else _to_int4(n, self._groups)]

    def decode(self, block: int, codes: Sequence[CodeArray]) -> Tensor:
        """See :class:`Codec`."""
        (rows,) = codes
        rows = np.ascontiguousarray(rows)
        if self.name in ("fp32", "fp16"):
            kind = "<f4" if self.name == "fp32" else "<f2"
            n = torch.from_numpy(rows.view(kind).astype(np.float32))
        elif self.name == "int8":
            n = _from_int8(rows)
        else:
            n = _from_int4(rows, self._model.spec.hidden_size)
        at = self._model.block(block)
        return F.linear(n.to(at.kv_weight.dtype), at.kv_weight, at.kv_bias)

    def pack(self, codes: CodeArray) -> bytes:
        """See :class:`Codec`."""
        return codes.tobytes()

    def packed_bytes(self, tokens: int) -> int:
        """See :class:`Codec`."""
        return tokens * self._row

    def unpack(self, data: bytes, tokens: int) -> CodeArray:
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


def nearest(y: Tensor, codewords: Tensor) -> npt.NDArray[np.int64]:
    """Index (G, T) of the nearest of ``codewords`` (G, K, W) to ``y`` (G, T, W).

    ``numpy.argmax`` is several times faster than ``torch.argmax`` on a CPU.
    """
    offset = codewords.square().sum(-1).mul_(-0.5).unsqueeze(1)  # (G, 1, K)
    scores = torch.baddbmm(offset, y, codewords.transpose(1, 2))
    found: npt.NDArray[np.int64] = scores.numpy().argmax(-1)
    return found


class VectorCodec:
    """Codes of a codebook: ``vq`` or ``astra``.

    Args:
        model: the model whose block inputs are coded.
        codebook: of that model.
        decoder: "table" sums rows in which the K,V projection is already applied; "project"
            rebuilds the embedding and projects it. Both give the same keys and values up to
            rounding; ``astra`` can only project, because it quantizes before the norm.
    """

    def __init__(self, model: Model, codebook: Codebook, decoder: str = "table") -> None:
        self.name, self.stages = codebook.codec, codebook.stages
        self.first_block = codebook.first_block
        self.codebook, self._model = codebook, model
        self._decoder = decoder if codebook.codec == "vq" else "project"
        self._tables: dict[int, tuple[Tensor, Tensor]] = {}
        self._dtype = np.uint8 if codebook.code_bits <= 8 else np.uint16
        stage, group = torch.meshgrid(
            torch.arange(self.stages), torch.arange(codebook.groups), indexing="ij"
        )
        base = (stage * codebook.groups + group) * codebook.size
        self._base = base.reshape(-1).numpy().astype(np.int64)  # first row of each (stage, group)

    def rate(self, stages: int) -> int:
        """See :class:`Codec`."""
        return self.codebook.rate(stages)

    def encode(self, block: int, x: Tensor, stages: int) -> list[CodeArray]:
        """See :class:`Codec`."""
        book = self.codebook.book(block)
        y = x.float()
        if book.analysis is not None and book.center is not None:
            n = self._model.block(block).normalize(x).float()
            y = F.linear(n - book.center, book.analysis)
        y = y.view(len(x), self.codebook.groups, -1).transpose(0, 1).contiguous()  # (G, T, W)
        found = []
        for stage in range(stages):
            codes = nearest(y, book.codewords[stage])
            found.append(np.ascontiguousarray(codes.T.astype(self._dtype)))
            if stage + 1 < stages:
                y = y - _take(book.codewords[stage], torch.from_numpy(codes))
        return found

    def decode(self, block: int, codes: Sequence[CodeArray]) -> Tensor:
        """See :class:`Codec`."""
        rows = np.concatenate(codes, axis=1).astype(np.int64) + self._base[: _width(codes)]
        indices = torch.from_numpy(rows)  # (T, stages * G)
        if self._decoder == "table":
            table, offset = self._table(block)
            return F.embedding_bag(indices, table, mode="sum") + offset
        at = self._model.block(block)
        n = self.rebuild(block, codes).to(at.kv_weight.dtype)
        if self.codebook.codec == "astra":
            n = at.normalize(n)
        return F.linear(n, at.kv_weight, at.kv_bias)

    def rebuild(self, block: int, codes: Sequence[CodeArray]) -> Tensor:
        """What was quantized, rebuilt: (T, D)."""
        book = self.codebook.book(block)
        y = torch.zeros(book.codewords.shape[1], len(codes[0]), book.codewords.shape[3])
        for stage, rows in enumerate(codes):
            y += _take(book.codewords[stage], torch.from_numpy(rows.T.astype(np.int64)))
        y = y.transpose(0, 1).reshape(len(codes[0]), -1)
        if book.synthesis is None or book.center is None:
            return y
        return F.linear(y, book.synthesis) + book.center

    def _table(self, block: int) -> tuple[Tensor, Tensor]:
        """Rows (S * G * K, 2 kv_size) and the common offset (2 kv_size,), made once per block."""
        if block not in self._tables:
            at = self._model.block(block)
            self._tables[block] = make_table(self.codebook.book(block), at)
        return self._tables[block]

    def prepare(self) -> None:
        """Make all tables now rather than in the first request."""
        if self._decoder == "table":
            for block in range(self.first_block, self._model.spec.num_hidden_layers):
                self._table(block)

    def pack(self, codes: CodeArray) -> bytes:
        """See :class:`Codec`."""
        return pack(codes, self.codebook.code_bits)

    def packed_bytes(self, tokens: int) -> int:
        """See :class:`Codec`."""
        return packed_bytes(tokens, self.codebook.groups, self.codebook.code_bits)

    def unpack(self, data: bytes, tokens: int) -> CodeArray:
        """See :class:`Codec`."""
        codes = unpack(data, tokens, self.codebook.groups, self.codebook.code_bits)
        if codes.size and int(codes.max()) >= self.codebook.size:
            raise ProtocolError(f"a code beyond the {self.codebook.size} codewords of its group")
        return codes


def _width(codes: Sequence[CodeArray]) -> int:
    return sum(rows.shape[1] for rows in codes)


def _take(codewords: Tensor, codes: Tensor) -> Tensor:
    """Rows (G, T, W) of ``codewords`` (G, K, W) at ``codes`` (G, T)."""
    return codewords.gather(1, codes.unsqueeze(-1).expand(-1, -1, codewords.shape[-1]))


def make_table(book: BlockBook, block: Block) -> tuple[Tensor, Tensor]:
    """Every codeword's share of the raw keys and values, and what all tokens share.

    Returns:
        Rows (S * G * K, 2 kv_size) and the offset (2 kv_size,), in the block's dtype.
    """
    assert book.synthesis is not None
    assert book.center is not None
    weight = block.kv_weight.float()
    stages, groups, size, width = book.codewords.shape
    basis = (weight @ book.synthesis).view(-1, groups, width)  # (2 kv, G, W)
    rows = torch.einsum("sgkw,cgw->sgkc", book.codewords, basis)
    offset = weight @ book.center
    if block.kv_bias is not None:
        offset = offset + block.kv_bias.float()
    dtype = block.kv_weight.dtype
    return rows.reshape(stages * groups * size, -1).to(dtype).contiguous(), offset.to(dtype)


def make_codec(
    name: str, model: Model, codebook: Codebook | None = None, decoder: str = "table"
) -> PlainCodec | VectorCodec:
    """The codec of that name; InputError for an unknown one, CodebookError without its codebook."""
    if name in PLAIN:
        return PlainCodec(name, model)
    if name not in VECTOR:
        raise InputError(f"unknown codec {name!r}; known: {', '.join(PLAIN + VECTOR)}")
    if codebook is None or codebook.codec != name:
        raise CodebookError(
            f"the model has no {name} codebook; fit one (astra-mesh fit MODEL --codec {name}) or "
            f"use one of {', '.join(PLAIN)}"
        )
    if codebook.hidden_size != model.spec.hidden_size or (
        len(codebook.blocks) != model.spec.num_hidden_layers - codebook.first_block
    ):
        raise CodebookError("the codebook does not fit the model's blocks; fit it again")
    return VectorCodec(model, codebook, decoder)
