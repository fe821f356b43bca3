"""Fitting one block's quantizer to calibration rows: prediction, coordinates, codewords."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from astra_mesh.errors import CalibrationError
from astra_mesh.families.block import Block
from astra_mesh.quant.codebook import BlockBook
from astra_mesh.quant.coders import BlockCoder, Cut, Memory, StageCoder
from astra_mesh.quant.frame import balanced_order, kv_metric, make_frame, mixed_metric
from astra_mesh.quant.kmeans import kmeans
from astra_mesh.quant.mixed import Shares, attention_from_others
from astra_mesh.quant.options import FitOptions

UNSEEN = 0.1  # what a row counts that nobody else attends, where rows count 1 on average


@dataclass
class Batch:
    """Sequences of one length on their way through the blocks."""

    embedded: Tensor  # (B, T, D)
    held: Shares
    mask: Tensor
    x: Tensor  # (T', B, D)
    memory: Memory | None = None

    def coded(self, n: Tensor) -> Tensor:
        """The rows that are sent: (N, ...) of (T', B, ...)."""
        return n[self.held.copies :].flatten(0, 1)

    def restore(self, n: Tensor, coded: Tensor) -> Tensor:
        """``n`` (T', B, D) with the rows of :meth:`coded` replaced."""
        rows = coded.view(-1, *n.shape[1:])
        return torch.cat([n[: self.held.copies], rows]) if self.held.copies else rows


def predicted_rows(batch: Batch, index: int, book: BlockBook, coded: Tensor) -> Tensor:
    """What a batch's rows ``coded`` (N, D) are predicted to be: (N, D)."""
    assert book.center is not None
    if batch.memory is None:
        return book.center.expand(coded.shape)
    return batch.memory.predict(index, book, slice(None))


def added_rows(coder: BlockCoder, residual: Tensor) -> Tensor:
    """What the codes of ``residual`` (N, D) stand for: (N, D)."""
    y, synthesis = coder.decode(coder.encode(residual)), coder.synthesis
    return y if synthesis is None else y @ synthesis.T


@dataclass(frozen=True)
class FoundBlock:
    """A block's quantizer, and shares of the variance in its metric."""

    book: BlockBook
    predicted: float  # left after the prediction
    left: list[float]  # left after each stage


@dataclass
class BlockFit:
    """One block at one number of stages."""

    options: FitOptions
    block: Block
    index: int
    sensitivity: Tensor | None

    def run(self, batches: list[Batch], groups: Sequence[int]) -> FoundBlock:
        """Fit one block for so many stages."""
        generator = seeded(self.options.seed, f"{self.index} {len(groups)}")
        if self.options.codec == "astra":
            x = sampled([batch.coded(batch.x) for batch in batches], self.options.sample, generator)
            check_varied([x], x.mean(0))
            alike = torch.ones(len(x))
            codewords, _, left = self._stages(x, alike, groups, generator, plain=True)
            whole = float(x.var(0, correction=0).sum())
            return FoundBlock(BlockBook(codewords), 1.0, [one / whole for one in left])
        return self._predictive(batches, groups, generator)

    def _predictive(
        self, batches: list[Batch], groups: Sequence[int], generator: torch.Generator
    ) -> FoundBlock:
        rows = [batch.coded(self.block.normalize(batch.x)) for batch in batches]
        weights = self._weights(batches)
        center, predict, mean = self._regress(rows, batches, weights)
        book = BlockBook((), (), center, None, None, predict)
        residuals = [
            n - predicted_rows(batch, self.index, book, n)
            for n, batch in zip(rows, batches, strict=True)
        ]
        picked = picks([len(n) for n in rows], self.options.sample, generator)
        n = torch.cat([part[at] for part, at in zip(rows, picked, strict=True)])
        residual = torch.cat([part[at] for part, at in zip(residuals, picked, strict=True)])
        weight = torch.cat([part[at] for part, at in zip(weights, picked, strict=True)])
        root = weight.sqrt()[:, None]
        own = self.metric(root * (n - mean))
        metric = mixed_metric(own, self.sensitivity, self.options.sensitivity)
        frame = make_frame(root * residual, metric, self.options.dropped)
        y = residual @ frame.analysis.T
        codewords, orders, left = self._stages(y, weight, groups, generator, plain=False)
        whole = energy((n - mean) @ frame.analysis.T, weight)
        before = energy(y, weight)
        book = BlockBook(codewords, orders, center, frame.analysis, frame.synthesis, predict)
        return FoundBlock(book, before / whole, [one / whole for one in left])

    def metric(self, centered: Tensor) -> Tensor:
        """(D, D) float64: which errors of keys and values count, see :func:`kv_metric`."""
        return kv_metric(centered, self.block)

    def _weights(self, batches: list[Batch]) -> list[Tensor]:
        """By how much each batch's coded rows count: (N,), 1 on average.

        What others attend to most, as the first token of a text in many models, has to be right,
        however few such rows there are.
        """
        power = self.options.attention
        if power is None:
            return [torch.ones(len(batch.coded(batch.x))) for batch in batches]
        paid = [
            batch.coded(attention_from_others(self.block, batch.x, batch.mask)) for batch in batches
        ]
        paid = [one.pow(power) if power else (one > 0).float() for one in paid]
        mean = float(torch.cat(paid).mean())
        if not mean > 0:  # a single peer
            return [torch.ones_like(one) for one in paid]
        return [UNSEEN + (1 - UNSEEN) * one / mean for one in paid]

    def _regress(
        self, rows: list[Tensor], batches: list[Batch], weights: list[Tensor]
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Center (D,), predict (depth, D, D) or None, and the mean of n (D,)."""
        sums = Sums()
        for n, batch, weight in zip(rows, batches, weights, strict=True):
            past = None if batch.memory is None else batch.memory.past(self.index)
            sums.add(past, n, weight)
        mean = sums.mean()
        check_varied(rows, mean)
        center, predict = sums.solve(self.options.ridge)
        size = len(center)
        return center, None if predict is None else predict.view(-1, size, size), mean

    def _stages(
        self,
        y: Tensor,
        weight: Tensor,
        groups: Sequence[int],
        generator: torch.Generator,
        plain: bool,
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], list[float]]:
        """Codewords and orders of each stage, and the mean squared length of what it leaves."""
        options = self.options
        codewords, orders, left = [], [], []
        for count in groups:
            variances = (weight[:, None] * y.square()).mean(0)
            order = None if plain else balanced_order(variances, count)
            cut = Cut(count, order, y.shape[1]).split(y).contiguous()
            found = kmeans(cut, options.codewords, options.iterations, generator, weight)
            stage = StageCoder(found.half().float(), order, y.shape[1])
            y = y - stage.decode(stage.encode(y))
            codewords.append(found)
            left.append(energy(y, weight))
            if order is not None:
                orders.append(order)
        return tuple(codewords), tuple(orders), left


class Sums:
    """Weighed moments of what is predicted from (N, F) and of n (N, D), added up in float64."""

    def __init__(self) -> None:
        self.count = 0.0  # by weight
        self._n: Tensor | float = 0.0
        self._f: Tensor | None = None
        self._ff: Tensor | float = 0.0
        self._fn: Tensor | float = 0.0

    def add(self, past: Tensor | None, n: Tensor, weight: Tensor) -> None:
        """Count rows by their ``weight`` (N,)."""
        self.count += float(weight.double().sum())
        self._n = self._n + weight.double() @ n.double()
        if past is not None:
            heavy = past * weight[:, None]
            self._f = heavy.double().sum(0) + (0.0 if self._f is None else self._f)
            self._ff = self._ff + (heavy.T @ past).double()
            self._fn = self._fn + (heavy.T @ n).double()

    def mean(self) -> Tensor:
        """Of n, (D,) float32."""
        assert isinstance(self._n, Tensor)
        return (self._n / self.count).float()

    def solve(self, ridge: float) -> tuple[Tensor, Tensor | None]:
        """Center (D,) and weights (F, D), or None where nothing is predicted from."""
        assert isinstance(self._n, Tensor)
        mean = self._n / self.count
        if self._f is None:
            return mean.float(), None
        assert isinstance(self._ff, Tensor)
        past = self._f / self.count
        spread = self._ff / self.count - torch.outer(past, past)
        common = self._fn / self.count - torch.outer(past, mean)
        size = len(spread)
        damped = spread + ridge * float(spread.trace()) / size * torch.eye(size).double()
        weights = torch.linalg.solve(damped, common).half().double()  # as it is stored
        return (mean - past @ weights).float(), weights.float()


def energy(y: Tensor, weight: Tensor) -> float:
    """The mean squared length of rows (N, F) that count by ``weight`` (N,)."""
    return float((weight * y.square().sum(1)).mean())


def check_varied(parts: Sequence[Tensor], mean: Tensor) -> None:
    """CalibrationError where all rows equal their ``mean`` (D,)."""
    spread = sum(float((n - mean).square().sum()) for n in parts)
    if spread <= 1e-10 * sum(float(n.square().sum()) for n in parts):  # equal but for rounding
        raise CalibrationError("the calibration inputs are all alike; give others")


def seeded(seed: int, what: str) -> torch.Generator:
    """Of its own for each purpose, so that a resumed run draws the same numbers."""
    digest = hashlib.sha256(f"{seed} {what}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def picks(sizes: Sequence[int], most: int, generator: torch.Generator) -> list[Tensor]:
    """Places of at most ``most`` rows, drawn from parts of the given sizes."""
    total = sum(sizes)
    if total <= most:
        return [torch.arange(size) for size in sizes]
    chosen = torch.randperm(total, generator=generator)[:most].sort().values
    found, at = [], 0
    for size in sizes:
        found.append(chosen[(chosen >= at) & (chosen < at + size)] - at)
        at += size
    return found


def sampled(parts: Sequence[Tensor], most: int, generator: torch.Generator) -> Tensor:
    """At most ``most`` rows of the parts (N, D), drawn at random, in order."""
    places = picks([len(part) for part in parts], most, generator)
    return torch.cat([part[at] for part, at in zip(parts, places, strict=True)])
