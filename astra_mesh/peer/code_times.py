"""Measuring what a codebook's codes cost on this device, and which decoder is faster here.

Rates in between are interpolated: the work grows with the number of codes. Decoding counts all
blocks, since what a codebook with history looks up grows from block to block; tables are made up
of any numbers, because making real ones takes longer than all measuring.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from astra_mesh.families.model import Model
from astra_mesh.peer.measure import dtype_of, steady_s
from astra_mesh.quant.codebook import UNLIMITED, Codebook
from astra_mesh.quant.codes import CodeArray
from astra_mesh.quant.vector import Table, VectorCodec

_TOKENS = 64
_BUFFER_BYTES = 128 << 20  # of made-up tables
_BLOCKS = 4  # that encoding and projecting are measured on: from there on all cost the same


@dataclass(frozen=True)
class CodeTimes:
    """Seconds for one token and block by number of stages, and the faster decoder of each."""

    encode_s: dict[int, float] = field(default_factory=dict)
    decode_s: dict[int, float] = field(default_factory=dict)
    project_s: dict[int, float] = field(default_factory=dict)  # decoding without tables
    decoder: dict[int, str] = field(default_factory=dict)  # "table" or "project"


@dataclass(frozen=True)
class _Point:
    """One number of stages, measured: seconds for one token and block."""

    encode_s: float
    project_s: float
    table_s: float | None  # None where tables are impossible


class _MadeUp(VectorCodec):
    """The same work with tables of the right sizes and any numbers.

    All tables lie in one buffer, apart where it is large enough, so that caches help no more than
    they will.
    """

    def __init__(self, model: Model, codebook: Codebook, tables: bool) -> None:
        super().__init__(model, codebook, lean=not tables, rough=True)
        self.can_look_up = self.decoder == "table"
        self._made: dict[tuple[int, int], Table] = {}
        self._rows, self._at = torch.empty(0), 0

    def table(self, block: int, stages: int) -> Table:
        """See :class:`VectorCodec`."""
        key = block, stages
        if key not in self._made:
            self._made[key] = self._make(block, stages)
        return self._made[key]

    def _make(self, block: int, stages: int) -> Table:
        spec, history = self.model.spec, self.codebook.history
        dtype, width = self.model.block(0).kv_dtype, 2 * spec.kv_size
        depth = {0: 1, UNLIMITED: block}.get(history, min(block, history + 1))
        known = torch.rand(spec.hidden_size, width, dtype=dtype) if history else None
        blocks = tuple(range(block - depth + 1, block + 1))
        count = self.table_rows(block, stages) * self.codebook.size
        rows = self._slice(count, *self.row_form)
        return Table(blocks, rows, torch.zeros(width, dtype=dtype), known)

    def _slice(self, count: int, width: int, dtype: torch.dtype) -> Tensor:
        """Rows after those that were taken before, or again from the start."""
        whole = min(_BUFFER_BYTES, self.table_bytes(self.stages)) // (width * dtype.itemsize)
        if len(self._rows) < max(whole, count):
            self._rows = torch.zeros(max(whole, count), width, dtype=dtype)
        if self._at + count > len(self._rows):
            self._at = 0
        self._at += count
        return self._rows[self._at - count : self._at]


@torch.inference_mode()
def measure_codebook(model: Model, codebook: Codebook, tables: bool = True) -> CodeTimes:
    """Measure the smallest and the largest rate, with ``tables`` or without. Runs in the compute
    thread."""
    codec = _MadeUp(model, codebook, tables)
    low, high = codec.able[0], codec.able[-1]
    points = {stages: _measure(model, codec, stages) for stages in sorted({low, high})}
    found = CodeTimes()
    for stages in codec.able:
        share = _share(codebook, low, stages, high)
        encode = _between(points[low].encode_s, points[high].encode_s, share)
        project = _between(points[low].project_s, points[high].project_s, share)
        first, last = points[low].table_s, points[high].table_s
        table = None if first is None or last is None else _between(first, last, share)
        found.encode_s[stages], found.project_s[stages] = encode, project
        found.decoder[stages] = "project" if table is None or table > project else "table"
        found.decode_s[stages] = project if table is None else min(table, project)
    return found


def _share(codebook: Codebook, low: int, stages: int, high: int) -> float:
    """Where a number of codes lies between the smallest (0) and the largest (1)."""
    least, most = codebook.rate(low), codebook.rate(high)
    return (codebook.rate(stages) - least) / max(most - least, 1)


def _between(low: float, high: float, share: float) -> float:
    """More codes are never less work: what says so is noise."""
    return low + share * max(high - low, 0.0)


def _measure(model: Model, codec: _MadeUp, stages: int) -> _Point:
    spec, history = model.spec, codec.codebook.history
    tokens = min(_TOKENS, spec.max_tokens)
    coded = range(codec.first_block, spec.num_hidden_layers)
    some = coded[: max(_BLOCKS, history + 2)]
    x = torch.randn(tokens, spec.hidden_size, dtype=dtype_of(model))
    known = torch.randn_like(x) if history or codec.first_block else None
    codes = _encode(codec, stages, known, some, x)
    encode_s = steady_s(lambda: _encode(codec, stages, known, some, x))
    codec.decoder = "project"
    every = codes + codes[-1:] * (len(coded) - len(some))  # any codes cost the same
    _decode(codec, stages, known, some, every)
    project_s = steady_s(lambda: _decode(codec, stages, known, some, every))
    table_s = None
    if codec.can_look_up:
        codec.decoder = "table"
        _decode(codec, stages, known, coded, every)
        whole = steady_s(lambda: _decode(codec, stages, known, coded, every))
        table_s = whole / (tokens * len(coded))
    count = tokens * len(some)
    return _Point(encode_s / count, project_s / count, table_s)


def _encode(
    codec: VectorCodec, stages: int, known: Tensor | None, blocks: range, x: Tensor
) -> list[list[CodeArray]]:
    sender = codec.sender(stages, known)
    return [sender.encode(block, x) for block in blocks]


def _decode(
    codec: VectorCodec,
    stages: int,
    known: Tensor | None,
    blocks: range,
    codes: Sequence[Sequence[CodeArray]],
) -> None:
    receiver = codec.receiver(stages, known)
    for block, one in zip(blocks, codes, strict=False):
        receiver.decode(block, one)
