"""Coding with a codebook: ``vq`` and ``astra``.

Both ends of a link hold the same memory of each coded token (see
:mod:`astra_mesh.quant.codebook`): the sender decodes what it sends. Everything is row by row, so
that tokens coded in several pieces give the codes that they give in one.

Keys and values come from codes in two ways, equal up to rounding. ``project`` rebuilds ``n^`` and
projects it: of D x D matrices, one product for the prediction and two for the projection. ``table``
sums rows in which all these products are already applied, one row for each code of this block and
of those that it is predicted from, plus (with history) one product pair for the first block.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from astra_mesh.errors import ProtocolError
from astra_mesh.families.block import Block
from astra_mesh.families.model import Model
from astra_mesh.quant import cost
from astra_mesh.quant.codebook import UNLIMITED, BlockBook, Codebook, sources
from astra_mesh.quant.coders import BlockCoder, Memory, has_quick_scores
from astra_mesh.quant.codes import CodeArray
from astra_mesh.wire.bits import pack, packed_bytes, unpack

TABLE_BYTES = 1 << 30  # of one codec's tables; where they would be larger, receivers project


class VectorSender:
    """The sending end for some tokens of one request, at one number of stages."""

    def __init__(self, codec: VectorCodec, stages: int, known: Tensor | None) -> None:
        self._codec, self._stages, self._memory = codec, stages, codec.memory(known)

    def fork(self) -> VectorSender:
        """See :class:`astra_mesh.quant.codes.Sender`."""
        other = copy.copy(self)
        if self._memory is not None:
            other._memory = self._memory.fork()
        return other

    def encode(
        self, block: int, x: Tensor, first: int = 0, stages: int | None = None
    ) -> list[CodeArray]:
        """See :class:`astra_mesh.quant.codes.Sender`."""
        codec, stages = self._codec, stages or self._stages
        coder = codec.coder(block, stages)
        n = x.float()
        if coder.book.center is not None:
            n = codec.model.block(block).normalize(x).float()
        rows = slice(first, first + len(x))
        predicted = codec.predicted(self._memory, block, coder.book, rows)
        codes = coder.encode(n if predicted is None else n - predicted)
        found = [np.ascontiguousarray(one.T.astype(codec.dtype)) for one in codes]
        if self._memory is not None and predicted is not None:
            added = codec.added(block, stages, found)
            self._memory.keep(block, rows, predicted, added)
        return found


class VectorReceiver:
    """The receiving end of a :class:`VectorSender`."""

    def __init__(self, codec: VectorCodec, stages: int, known: Tensor | None) -> None:
        self._codec, self._stages, self._memory = codec, stages, codec.memory(known)
        self._known = known
        self._last = known  # what a codec without memory knows of all tokens
        self._codes: dict[int, npt.NDArray[np.int64]] = {}  # row indices (T, codes) by block

    def rebuild(self, block: int, codes: Sequence[CodeArray], first: int = 0) -> Tensor:
        """What was quantized, rebuilt: n^ (T, D), or the embedding for ``astra``."""
        codec = self._codec
        book = codec.coder(block, len(codes)).book
        added = codec.added(block, len(codes), codes)
        rows = slice(first, first + len(added))
        predicted = codec.predicted(self._memory, block, book, rows)
        if self._memory is not None and predicted is not None:
            self._memory.keep(block, rows, predicted, added)
        found = added if predicted is None else predicted + added
        self._last = found
        return found

    def stand_in(self, block: int) -> Tensor:
        """See :class:`astra_mesh.quant.codes.Receiver`."""
        codec, memory, n = self._codec, self._memory, self._last
        assert n is not None
        if memory is not None:
            book = codec.coder(block, self._stages).book
            rows = slice(0, len(memory.known))
            n = memory.predict(block, book, rows)
            memory.keep(block, rows, n, torch.zeros_like(n))
        at = codec.model.block(block)
        return at.project_key_value(at.normalize(n) if codec.name == "astra" else n)

    def decode(self, block: int, codes: Sequence[CodeArray], first: int = 0) -> Tensor:
        """See :class:`astra_mesh.quant.codes.Receiver`."""
        codec = self._codec
        if codec.decoder == "table":
            return self._look_up(block, codes, first)
        at = codec.model.block(block)
        n = self.rebuild(block, codes, first)
        return at.project_key_value(at.normalize(n) if codec.name == "astra" else n)

    def _look_up(self, block: int, codes: Sequence[CodeArray], first: int) -> Tensor:
        table = self._codec.table(block, self._stages)
        own = self._codec.indices(self._stages, codes)
        rows = slice(first, first + len(own))
        if not self._codec.codebook.history:
            return table.sum(own) + table.offset
        assert self._known is not None
        if block not in self._codes:
            depth = self._codec.codebook.history
            if depth != UNLIMITED:
                self._codes = {b: held for b, held in self._codes.items() if b >= block - depth}
            self._codes[block] = np.empty((len(self._known), own.shape[1]), dtype=np.int64)
        self._codes[block][rows] = own
        step = len(table.rows) // len(table.blocks)
        wide = [self._codes[b][rows] + i * step for i, b in enumerate(table.blocks)]
        found = table.sum(np.concatenate(wide, axis=1))
        if table.known is None:
            return found + table.offset
        known = self._known[rows].to(table.known.dtype)
        return found + torch.addmm(table.offset, known, table.known)


@dataclass(frozen=True)
class Table:
    """Decoding of one block: raw keys and values are offset + known part + a sum of rows."""

    blocks: tuple[int, ...]  # whose codes are looked up; rows of each in turn
    rows: Tensor  # (blocks * codewords, 2 kv_size), or as :func:`to_bytes` makes them
    offset: Tensor  # (2 kv_size,)
    known: Tensor | None  # (D, 2 kv_size): what n of the first block is multiplied by

    def sum(self, indices: npt.NDArray[np.int64]) -> Tensor:
        """The sums (T, 2 kv_size) of rows (T, codes)."""
        if self.rows.dtype != torch.uint8:
            return F.embedding_bag(torch.from_numpy(indices), self.rows, mode="sum")
        ends = torch.arange(0, indices.size + 1, indices.shape[1])
        found: Tensor = torch.ops.quantized.embedding_bag_byte_rowwise_offsets(
            self.rows, torch.from_numpy(indices).flatten(), ends, include_last_offset=True
        )
        return found.to(self.offset.dtype)


def to_bytes(rows: Tensor) -> Tensor:
    """Rows (N, W) float32 in 8 bits a number, each with its own scale: (N, W + 8) uint8."""
    found: Tensor = torch.ops.quantized.embedding_bag_byte_prepack(rows)
    return found


class VectorCodec:
    """Codes of a codebook.

    Args:
        model: the model whose block inputs are coded.
        codebook: of that model.
        decoder: "table" or "project", see the module. ``astra`` can only project, because it
            quantizes before the norm; so do tables above :data:`TABLE_BYTES`.
        lean: without any tables, so with one product more; "project" only.
        rough: ``vq`` compares codewords in bfloat16 where that is faster. Where codes have no
            history, the coordinates come from a product of 8-bit numbers, and tables have 8 bits
            for a number: both are most of the work there, and what rounding costs is far below
            what codes lose. With history the two ways of decoding must agree closely, as senders
            follow one of them, and other work counts for more.
    """

    def __init__(
        self,
        model: Model,
        codebook: Codebook,
        decoder: str = "table",
        lean: bool = False,
        rough: bool = False,
    ) -> None:
        self.name, self.codebook, self.model = codebook.codec, codebook, model
        self.stages, self.able = codebook.stages, codebook.able
        self.first_block = codebook.first_block
        self.dtype = np.uint8 if codebook.code_bits <= 8 else np.uint16
        self.lean = lean
        self.rough = rough and codebook.codec == "vq" and not codebook.history
        self._quick = rough and codebook.codec == "vq" and has_quick_scores()
        possible = codebook.codec == "vq" and not lean and self._table_bytes() <= TABLE_BYTES
        self.decoder = decoder if possible else "project"
        self._coders: dict[tuple[int, int], BlockCoder] = {}
        self._tables: dict[tuple[int, int], Table] = {}
        self._base = np.arange(sum(codebook.groups), dtype=np.int64) * codebook.size

    def rate(self, stages: int) -> int:
        """See :class:`Codec`."""
        return self.codebook.rate(stages)

    def sender(self, stages: int, known: Tensor | None) -> VectorSender:
        """See :class:`Codec`."""
        return VectorSender(self, stages, known)

    def receiver(self, stages: int, known: Tensor | None) -> VectorReceiver:
        """See :class:`Codec`."""
        return VectorReceiver(self, stages, known)

    def projecting(self) -> VectorCodec:
        """The same, decoding by projection."""
        if self.decoder == "project":
            return self
        other = copy.copy(self)  # its coders are those of this one
        other.decoder = "project"
        return other

    def memory(self, known: Tensor | None) -> Memory | None:
        """A memory for tokens whose first block's n is ``known`` (T, D); None without history."""
        if not self.codebook.history:
            return None
        if known is None:
            raise ValueError("a codebook with history needs the first block's input")
        return Memory(self.codebook.history, known.float())

    def coder(self, block: int, stages: int) -> BlockCoder:
        """The quantizer of a block; made once."""
        key = block, stages
        if key not in self._coders:
            dtype = self.model.block(block).kv_dtype
            book = self.codebook.book(block, stages)
            self._coders[key] = BlockCoder(book, dtype, self.rough, self._quick)
        return self._coders[key]

    def predicted(
        self, memory: Memory | None, block: int, book: BlockBook, rows: slice
    ) -> Tensor | None:
        """What the codes are added to; None for ``astra``, which has no coordinates."""
        return book.center if memory is None else memory.predict(block, book, rows)

    def indices(self, stages: int, codes: Sequence[CodeArray]) -> npt.NDArray[np.int64]:
        """Row of each code in the rows of its block: (T, codes) int64."""
        wide = np.concatenate(codes, axis=1).astype(np.int64)
        return wide + self._base[: wide.shape[1]]

    def added(self, block: int, stages: int, codes: Sequence[CodeArray]) -> Tensor:
        """What codes add to the prediction: q (T, D)."""
        coder = self.coder(block, stages)
        if self.lean or not coder.turns:  # rows would be too many, or wide and nearly all zeros
            found, synthesis = (
                coder.decode([one.T.astype(np.int64) for one in codes]),
                coder.synthesis,
            )
            return found if synthesis is None else found @ synthesis.T
        rows = torch.from_numpy(self.indices(stages, codes))
        return F.embedding_bag(rows, coder.rows, mode="sum")

    def unmade(self, stages: int) -> list[int]:
        """The blocks whose tables for so many stages are still to be made; none if it projects."""
        blocks = range(self.first_block, self.model.spec.num_hidden_layers)
        made = self._tables if self.decoder == "table" else {(block, stages) for block in blocks}
        return [block for block in blocks if (block, stages) not in made]

    def table(self, block: int, stages: int) -> Table:
        """The table of a block; made once."""
        key = block, stages
        if key not in self._tables:
            self._tables[key] = self._make_table(block, stages)
        return self._tables[key]

    def _make_table(self, block: int, stages: int) -> Table:
        at = self.model.block(block)
        blocks, reach, offset = reaches(self.codebook, block, stages, at)
        rows = [self.coder(b, stages).rows_through(reach[b]) for b in blocks]
        dtype = at.kv_dtype
        known = reach.get(0) if self.first_block else None
        return Table(
            blocks,
            to_bytes(torch.cat(rows)) if self.rough else torch.cat(rows).to(dtype).contiguous(),
            offset.to(dtype),
            None if known is None else known.to(dtype).contiguous(),
        )

    @property
    def row_form(self) -> tuple[int, torch.dtype]:
        """Columns of a table's rows, and of what."""
        width = 2 * self.model.spec.kv_size
        if self.rough:
            return width + cost.ROUGH_BYTES, torch.uint8
        return width, self.model.block(0).kv_dtype

    def prepare(self, stages: int) -> None:
        """Make all tables for so many stages now rather than in the first request."""
        for block in range(self.first_block, self.model.spec.num_hidden_layers):
            self.table(block, stages) if self.decoder == "table" else self.coder(block, stages)

    def table_rows(self, block: int, stages: int) -> int:
        """Rows that decoding one token of a block adds up from tables."""
        return cost.table_rows(self.codebook, block, stages)

    def table_bytes(self, stages: int) -> int:
        """Memory of the tables of all blocks."""
        size = self.model.block(0).kv_dtype.itemsize
        kv_size = self.model.spec.kv_size
        return cost.table_bytes(self.codebook, stages, kv_size, size, rough=self.rough)

    def _table_bytes(self) -> int:
        return max(self.table_bytes(stages) for stages in self.able)

    def pack(self, stage: int, codes: CodeArray) -> bytes:
        """See :class:`Codec`."""
        return pack(codes, self.codebook.code_bits)

    def packed_bytes(self, stage: int, tokens: int) -> int:
        """See :class:`Codec`."""
        return packed_bytes(tokens, self.codebook.groups[stage], self.codebook.code_bits)

    def unpack(self, stage: int, data: bytes, tokens: int) -> CodeArray:
        """See :class:`Codec`."""
        codes = unpack(data, tokens, self.codebook.groups[stage], self.codebook.code_bits)
        if self.codebook.size >= 2**self.codebook.code_bits:
            return codes
        if codes.size and int(codes.max()) >= self.codebook.size:
            raise ProtocolError(f"a code beyond the {self.codebook.size} codewords of its group")
        return codes


def reaches(
    codebook: Codebook, block: int, stages: int, at: Block
) -> tuple[tuple[int, ...], dict[int, Tensor], Tensor]:
    """How the keys and values of ``block`` come from what is held of it and of earlier blocks.

    Returns:
        The coded blocks that matter, ascending; per block (0 among them where the known input
        matters) the matrix (D, 2 kv_size) float32 that its q, or n of block 0, is multiplied by;
        and the offset (2 kv_size,) float32.
    """
    weight = at.kv_weight.float().T
    offset = torch.zeros(weight.shape[1])
    if at.kv_bias is not None:
        offset = at.kv_bias.float()
    reach, through = {block: weight}, weight
    book = codebook.book(block, stages)
    assert book.center is not None
    offset = offset + book.center @ weight
    if codebook.history == UNLIMITED:
        for past in range(block - 1, -1, -1):
            assert book.predict is not None
            through = book.predict[0] @ through
            reach[past] = through
            if past:
                book = codebook.book(past, stages)
                assert book.center is not None
                offset = offset + book.center @ through
    elif book.predict is not None:
        for source, matrix in zip(sources(codebook.history, block), book.predict, strict=True):
            reach[source] = matrix @ weight
    return tuple(sorted(b for b in reach if b >= codebook.first_block)), reach, offset
