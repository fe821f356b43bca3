"""The quantizer of one block at work, and what both ends of a link remember.

Everything is row by row: tokens coded in several pieces give the codes that they give in one.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from astra_mesh.families.packed import PackedLinear, can_pack
from astra_mesh.families.precision import Int8Linear
from astra_mesh.quant.codebook import UNLIMITED, BlockBook, sources

_LEAST_SPREAD = 1e-3  # of the largest
_NONE = 1e-12
_FARTHER = 0.001  # of the squared distance
_TRIED, _LEAST_TRIED, _TRIED_PAIRS = 256, 16, 1 << 20  # points, and points with codewords
_WIDE = 256  # dimensions; below, products are too small to tell
_LEAST_GAP = 1e-9  # of the codewords' squared length


def nearest(y: Tensor, codewords: Tensor, offset: Tensor | None = None) -> npt.NDArray[np.int64]:
    """Index (G, T) of the nearest of ``codewords`` (G, K, W) to ``y`` (G, T, W).

    ``numpy.argmax`` is several times faster than ``torch.argmax`` on a CPU. ``offset`` is
    :func:`score_offset` of the codewords, where it is at hand.
    """
    offset = score_offset(codewords) if offset is None else offset
    scores = torch.baddbmm(offset, y, codewords.transpose(1, 2))
    found: npt.NDArray[np.int64] = scores.numpy().argmax(-1)
    return found


def has_quick_scores() -> bool:
    """Whether this processor is known to multiply bfloat16 numbers faster than float32 ones."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return False  # others were not measured
    found = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return found is not None and bool(found())


class Nearest:
    """:func:`nearest` of the same codewords again and again.

    Args:
        codewords: (G, K, W) float32.
        quick: scores are bfloat16 products, two to three times as fast where
            :func:`has_quick_scores`, in those groups where that finds codewords as near. They are
            not where few coordinates hold most of the variance: K codewords lie closely then.
    """

    def __init__(self, codewords: Tensor, quick: bool = False) -> None:
        able = is_precise(codewords) if quick else torch.zeros(len(codewords), dtype=torch.bool)
        self._quick = able.nonzero().flatten().tolist()
        self._exact = (~able).nonzero().flatten().tolist()
        self._halved = _halved(codewords[able])
        self._codewords = codewords[~able] if self._quick else codewords
        self._offset = score_offset(self._codewords)

    def __call__(self, y: Tensor) -> npt.NDArray[np.int64]:
        """Index (G, T) of the nearest codeword to ``y`` (G, T, W), row by row."""
        if not self._quick:
            return nearest(y, self._codewords, self._offset)
        if not self._exact:
            return _nearest_quickly(y, *self._halved)
        found = np.empty(y.shape[:2], dtype=np.int64)
        found[self._quick] = _nearest_quickly(y[self._quick], *self._halved)
        found[self._exact] = nearest(y[self._exact], self._codewords, self._offset)
        return found


def is_precise(codewords: Tensor) -> Tensor:
    """(G,) bool: whether bfloat16 finds codewords (G, K, W) as near as float32 does, for points as
    far from some of the codewords as the neighbour of each is. Tried one group after the other."""
    return torch.tensor([_is_precise(group) for group in codewords.split(1)])


def _is_precise(codewords: Tensor) -> bool:
    size = codewords.shape[1]
    step = -(-size // max(_LEAST_TRIED, min(_TRIED, _TRIED_PAIRS // size)))
    points = codewords[:, ::step]
    gaps = torch.cdist(points, codewords).topk(min(2, size), largest=False).values[..., -1:]
    away = torch.randn(points.shape, generator=torch.Generator().manual_seed(0))
    y = points + gaps * F.normalize(away, dim=-1)
    exact, quick = (
        (y - take(codewords, torch.from_numpy(found))).square().sum(-1)
        for found in (nearest(y, codewords), _nearest_quickly(y, *_halved(codewords)))
    )
    floor = _LEAST_GAP * codewords.square().sum(-1).mean()  # where codewords are alike
    return bool(((quick - exact) / (exact + floor)).mean() <= _FARTHER)


def _halved(codewords: Tensor) -> tuple[Tensor, Tensor]:
    """Offset (G, 1, K) and codewords (G, W, K) in bfloat16."""
    return score_offset(codewords).bfloat16(), codewords.transpose(1, 2).bfloat16()


def _nearest_quickly(y: Tensor, offset: Tensor, codewords: Tensor) -> npt.NDArray[np.int64]:
    scores = torch.baddbmm(offset, y.bfloat16(), codewords)
    found: npt.NDArray[np.int64] = scores.float().numpy().argmax(-1)
    return found


def score_offset(codewords: Tensor) -> Tensor:
    """(G, 1, K): half the squared lengths, negative."""
    return codewords.square().sum(-1).mul_(-0.5).unsqueeze(1)


def take(codewords: Tensor, codes: Tensor) -> Tensor:
    """Rows (G, T, W) of ``codewords`` (G, K, W) at ``codes`` (G, T)."""
    return codewords.gather(1, codes.unsqueeze(-1).expand(-1, -1, codewords.shape[-1]))


class Cut:
    """How one stage cuts coordinates (T, R) into groups.

    ``order`` names the coordinate of each place in the groups (R: none), ``inverse`` the place of
    each coordinate (as many as there are places: none); None where they lie in order already.
    """

    def __init__(self, groups: int, order: Tensor | None, coordinates: int) -> None:
        self.groups, self.order, self.inverse = groups, order, order
        if order is not None:
            inverse = torch.full((coordinates + 1,), len(order), dtype=torch.int64)
            inverse[order] = torch.arange(len(order))
            self.inverse = inverse[:coordinates]

    def split(self, y: Tensor) -> Tensor:
        """(T, R) to groups (G, T, W)."""
        if self.order is not None:
            y = F.pad(y, (0, 1))[:, self.order]
        width = y.shape[1] // self.groups
        return y.view(len(y), self.groups, width).transpose(0, 1)

    def spread(self, matrix: Tensor) -> Tensor:
        """Rows (R, N), one of each coordinate, as (G, W, N)."""
        if self.order is not None:
            matrix = F.pad(matrix, (0, 0, 0, 1))[self.order]
        return matrix.view(self.groups, -1, matrix.shape[1])

    def join(self, grouped: Tensor) -> Tensor:
        """Inverse of :meth:`split`; coordinates in no group are zero."""
        y = grouped.transpose(0, 1).flatten(1)
        return y if self.inverse is None else F.pad(y, (0, 1))[:, self.inverse]


class StageCoder:
    """One residual stage on coordinates (T, R); ``quick`` as for :class:`Nearest`."""

    def __init__(
        self, codewords: Tensor, order: Tensor | None, coordinates: int, quick: bool = False
    ) -> None:
        self.codewords, self._nearest = codewords, Nearest(codewords, quick)
        self.cut = Cut(len(codewords), order, coordinates)

    def encode(self, y: Tensor) -> npt.NDArray[np.int64]:
        """Codes (G, T) of coordinates (T, R)."""
        return self._nearest(self.cut.split(y))

    def decode(self, codes: npt.NDArray[np.int64]) -> Tensor:
        """Coordinates (T, R) of codes (G, T)."""
        return self.cut.join(take(self.codewords, torch.from_numpy(codes)))


class _Rough:
    """Coordinates by a product of 8-bit numbers.

    Args:
        analysis: (R, D) float32.
        spread: (D,) of what comes in; dimensions are brought to one size before they are rounded.
    """

    def __init__(self, analysis: Tensor, spread: Tensor) -> None:
        spread = spread.clamp_min(_LEAST_SPREAD * float(spread.max())).clamp_min(_NONE)
        self._product, self._shrink = Int8Linear(analysis * spread), 1 / spread

    def __call__(self, residual: Tensor) -> Tensor:
        """(T, D) float32 to (T, R), row by row."""
        found: Tensor = self._product(residual * self._shrink)
        return found


class _Half:
    """Coordinates by a product of bfloat16 numbers; ``analysis`` (R, D) float32."""

    def __init__(self, analysis: Tensor) -> None:
        self._product = PackedLinear(analysis.bfloat16())

    def __call__(self, residual: Tensor) -> Tensor:
        """(T, D) float32 to (T, R) float32."""
        found: Tensor = self._product(residual)
        return found.float()


def halves_are_quicker(hidden_size: int) -> bool:
    """Whether :class:`_Half` is known to take less time here than :class:`_Rough`, of which it is
    the more precise one: where a processor has tiles for it (AMX). 256 tokens of 768 dimensions
    take 0.28 instead of 1.0 ms on a Xeon of 2.1 GHz, 49 0.12 instead of 0.42."""
    found = getattr(torch.cpu, "_is_amx_tile_supported", None)
    has_tiles = found is not None and bool(found())
    return has_tiles and hidden_size >= _WIDE and can_pack(torch.bfloat16)


class BlockCoder:
    """A :class:`BlockBook`, ready to work.

    Args:
        book: of one block.
        dtype: of the large product in encoding; nothing that both ends must agree on to the bit
            depends on it, nor on ``rough`` or ``quick``.
        rough: that product is one of 8-bit numbers, up to three times as fast, or of bfloat16
            ones where :func:`halves_are_quicker`; what the first costs is in docs/fidelity.md.
        quick: as for :class:`Nearest`.
    """

    def __init__(
        self,
        book: BlockBook,
        dtype: torch.dtype = torch.float32,
        rough: bool = False,
        quick: bool = False,
    ) -> None:
        # Without what is kept below in another form.
        self.book = BlockBook(book.codewords, (), book.center, None, None, book.predict)
        size = book.codewords[0].shape[0] * book.codewords[0].shape[2]
        analysis, synthesis, orders = _first_cut_in_place(book)
        self._synthesis = None if synthesis is None else _small(synthesis)
        self.analysis = None if analysis is None or rough else analysis.to(dtype)
        coordinates = size if analysis is None else len(analysis)
        self.stages = [
            StageCoder(codewords, order, coordinates, quick)
            for codewords, order in zip(book.codewords, orders, strict=True)
        ]
        self._rough = self._roughly(analysis) if rough and analysis is not None else None
        self._rows: Tensor | None = None

    def _roughly(self, analysis: Tensor) -> _Rough | _Half:
        """The dimensions of ``n - p`` are about as large as codes say."""
        if halves_are_quicker(analysis.shape[1]):
            return _Half(analysis)
        synthesis = self.synthesis
        assert synthesis is not None
        variances = torch.zeros(len(analysis))
        for stage in self.stages:
            spread = stage.codewords.var(1, correction=0, keepdim=True)
            variances += stage.cut.join(spread)[0]
        return _Rough(analysis, (synthesis.square() @ variances).sqrt())

    @property
    def turns(self) -> bool:
        """Whether coordinates are others than those of n."""
        return self._synthesis is not None

    @property
    def synthesis(self) -> Tensor | None:
        """(D, R) float32, its columns as the first stage cuts coordinates."""
        return None if self._synthesis is None else self._synthesis.float()

    def encode(self, residual: Tensor) -> list[npt.NDArray[np.int64]]:
        """Codes (G, T) of each stage for ``n - p`` (T, D)."""
        return self.encode_coordinates(self.coordinates(residual))

    def coordinates(self, residual: Tensor) -> Tensor:
        """What is quantized: coordinates (T, R) of ``n - p`` (T, D)."""
        if self._rough is not None:
            return self._rough(residual)
        if self.analysis is None:
            return residual
        return F.linear(residual.to(self.analysis.dtype), self.analysis).float()

    def encode_coordinates(self, y: Tensor) -> list[npt.NDArray[np.int64]]:
        """Codes (G, T) of each stage for coordinates (T, R)."""
        found = []
        for index, stage in enumerate(self.stages):
            codes = stage.encode(y)
            found.append(codes)
            if index + 1 < len(self.stages):
                y = y - stage.decode(codes)
        return found

    def decode(self, codes: Sequence[npt.NDArray[np.int64]]) -> Tensor:
        """Coordinates (T, R) of codes (G, T)."""
        found = self.stages[0].decode(codes[0])
        for stage, more in zip(self.stages[1:], codes[1:], strict=False):
            found = found + stage.decode(more)
        return found

    @property
    def middle(self) -> Tensor:
        """The mean (1, R) of the first stage's codewords, in coordinates."""
        stage = self.stages[0]
        return stage.cut.join(stage.codewords.mean(1, keepdim=True))

    @property
    def rows(self) -> Tensor:
        """Every codeword as what it adds to n^: (codewords of all stages and groups, D)."""
        if self._rows is None:
            synthesis = self.synthesis
            assert synthesis is not None
            self._rows = self._rows_through(synthesis.T)
        return self._rows

    def rows_through(self, reach: Tensor) -> Tensor:
        """:attr:`rows` multiplied by ``reach`` (D, N), at a fraction of the cost: a codeword lies
        in the few coordinates of its group."""
        synthesis = self.synthesis
        assert synthesis is not None
        return self._rows_through(synthesis.T @ reach)

    def _rows_through(self, matrix: Tensor) -> Tensor:
        """What every codeword becomes if coordinates are multiplied by ``matrix`` (R, N)."""
        found = []
        for stage in self.stages:
            wide = stage.codewords @ stage.cut.spread(matrix)
            found.append(wide.flatten(0, 1))
        return torch.cat(found)


def _small(tensor: Tensor) -> Tensor:
    """The same numbers in half the memory, where they come from a file."""
    half = tensor.half()
    return half if torch.equal(half.float(), tensor) else tensor


def _first_cut_in_place(
    book: BlockBook,
) -> tuple[Tensor | None, Tensor | None, Sequence[Tensor | None]]:
    """Analysis, synthesis and orders of equal effect whose coordinates lie as the first stage cuts
    them, so that it need not gather; where its groups have gaps, coordinates that are zero."""
    if book.analysis is None or book.synthesis is None or not book.orders:
        return book.analysis, book.synthesis, book.orders or [None] * len(book.codewords)
    first, coordinates = book.orders[0], len(book.analysis)
    analysis = F.pad(book.analysis, (0, 0, 0, 1))[first].contiguous()
    synthesis = F.pad(book.synthesis, (0, 1))[:, first].contiguous()
    place = torch.full((coordinates + 1,), len(first), dtype=torch.int64)
    place[first] = torch.arange(len(first))
    place[coordinates] = len(first)
    return analysis, synthesis, [None, *(place[order] for order in book.orders[1:])]


@dataclass
class Memory:
    """What both ends hold of T tokens: n^ of the last block, or q of the last ``history`` ones, and
    n of the first block, which is no copy."""

    history: int
    known: Tensor  # (T, D) n of the first block
    _past: dict[int, Tensor] = field(default_factory=dict)  # by block

    def __post_init__(self) -> None:
        """Block 0 is the first in memory."""
        self._past[0] = self.known

    def fork(self) -> Memory:
        """Another one with the same past, between two blocks."""
        other = Memory(self.history, self.known)
        other._past = dict(self._past)  # what is kept of a block changes no more after it
        return other

    def predict(self, block: int, book: BlockBook, rows: slice) -> Tensor:
        """The prediction (rows, D)."""
        assert book.center is not None
        if book.predict is None:
            return book.center.expand(self.known[rows].shape)
        past = self.past(block, rows)
        return torch.addmm(book.center, past, book.predict.flatten(0, 1))

    def past(self, block: int, rows: slice = slice(None)) -> Tensor:
        """What ``block`` is predicted from, side by side: (rows, sources * D)."""
        held = [self._past[source][rows] for source in sources(self.history, block)]
        return held[0] if len(held) == 1 else torch.cat(held, dim=1)

    def keep(self, block: int, rows: slice, predicted: Tensor, added: Tensor) -> None:
        """Remember rows of a block."""
        if block not in self._past:
            wanted = {0, *sources(self.history, block)}  # which other pieces of this block need
            self._past = {b: held for b, held in self._past.items() if b in wanted}
            self._past[block] = torch.empty_like(self.known)
        unlimited = self.history == UNLIMITED
        self._past[block][rows] = predicted + added if unlimited else added
