"""A codebook whose codewords, centers and predictions are learned with the model.

What the others hold of a token is ``n^ = p + q`` in value. Its gradient goes three ways: to the
codewords that make q, to the center and the prediction that make p, and straight through to n
(Bengio et al., arXiv 1308.3432), as if nothing had been quantized. Noise with the statistics of the
quantization error makes the model robust beyond the codewords at hand (arXiv 2505.19342, NAVQ).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from astra_mesh.families.model import Model
from astra_mesh.quant.codebook import BlockBook, Codebook, as_stored
from astra_mesh.quant.coders import Cut, Memory, score_offset, take
from astra_mesh.quant.mixed import Shares
from astra_mesh.tune.options import TuneOptions

STATISTICS_RATE = 0.05  # of the running statistics of the error
SCORES_BYTES = 256 << 20  # of the codewords' scores at a time


class TunedBlock(nn.Module):
    """One block's quantizer; without history its first stages serve the smaller rates."""

    def __init__(self, book: BlockBook, covariance: str) -> None:
        super().__init__()
        self.codewords = nn.ParameterList(nn.Parameter(one.clone()) for one in book.codewords)
        self.center = _parameter(book.center)
        self.predict = _parameter(book.predict)
        self.orders = book.orders
        self._keep("analysis", book.analysis)
        self._keep("synthesis", book.synthesis)
        first = book.codewords[0]
        size = len(book.center) if book.center is not None else first.shape[0] * first.shape[2]
        coordinates = size if book.analysis is None else len(book.analysis)
        orders = book.orders or (None,) * len(book.codewords)
        self.cuts = [
            Cut(len(words), order, coordinates)
            for words, order in zip(book.codewords, orders, strict=True)
        ]
        count = len(book.codewords)  # the errors of each number of stages have their own statistics
        shape = (count, size, size) if covariance == "full" else (count, size)
        self.register_buffer("spread", torch.zeros(shape))
        self.register_buffer("seen", torch.zeros(count))

    def _keep(self, name: str, tensor: Tensor | None) -> None:
        self.register_buffer(name, None if tensor is None else tensor.clone())

    @property
    def book(self) -> BlockBook:
        """The quantizer as it is now, sharing the parameters."""
        return BlockBook(
            tuple(self.codewords),
            self.orders,
            self.center,
            self.analysis,  # type: ignore[arg-type]
            self.synthesis,  # type: ignore[arg-type]
            self.predict,
        )

    def stored(self) -> BlockBook:
        """A copy on the CPU, without gradients, with the precision that its file will have."""

        def plain(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.detach().cpu().clone()

        book = self.book
        return as_stored(
            BlockBook(
                tuple(one.detach().cpu() for one in book.codewords),
                book.orders,
                plain(book.center),
                plain(book.analysis),
                plain(book.synthesis),
                plain(book.predict),
            )
        )

    def coordinates(self, residual: Tensor) -> Tensor:
        """(N, R) of (N, D)."""
        analysis = self.book.analysis
        if analysis is None:
            return residual
        return F.linear(residual, analysis)

    def quantize(self, residual: Tensor, stages: int) -> Tensor:
        """What the codes of ``residual`` (N, D) stand for, differentiable in the codewords."""
        y = self.coordinates(residual.detach())
        total = torch.zeros_like(y)
        used = zip(self.cuts[:stages], list(self.codewords)[:stages], strict=True)
        for cut, codewords in used:
            codes = _codes(cut.split(y), codewords.detach())
            found = cut.join(take(codewords, codes))
            total, y = total + found, y - found.detach()
        synthesis = self.book.synthesis
        return total if synthesis is None else total @ synthesis.T

    @torch.no_grad()
    def observe(self, error: Tensor, stages: int) -> None:
        """Count errors (N, D) of a number of stages into its running statistics."""
        assert isinstance(self.spread, Tensor)
        assert isinstance(self.seen, Tensor)
        full = self.spread.dim() == 3
        now = error.T @ error / len(error) if full else error.square().mean(0)
        rate = 1.0 if float(self.seen[stages - 1]) == 0 else STATISTICS_RATE
        self.spread[stages - 1].lerp_(now, rate)
        self.seen[stages - 1] = 1.0

    @torch.no_grad()
    def noise(self, rows: int, generator: torch.Generator, stages: int) -> Tensor:
        """Errors (rows, D) like those that were observed of so many stages, Gaussian."""
        assert isinstance(self.spread, Tensor)
        spread = self.spread[stages - 1]
        drawn = torch.randn(rows, len(spread), generator=generator).to(spread.device)
        if spread.dim() == 1:
            return drawn * spread.sqrt()
        values, vectors = torch.linalg.eigh(spread.nan_to_num(0, 0, 0))  # no error of its own
        root: Tensor = vectors * values.clamp_min(0).sqrt()
        return drawn @ root.T


def _parameter(tensor: Tensor | None) -> nn.Parameter | None:
    return None if tensor is None else nn.Parameter(tensor.clone())


@torch.no_grad()
def _codes(y: Tensor, codewords: Tensor) -> Tensor:
    """Nearest (G, N) of codewords (G, K, W) to y (G, N, W); the CPU's argmax is numpy's."""
    offset = score_offset(codewords)
    rows = max(1, SCORES_BYTES // (4 * codewords.shape[0] * codewords.shape[1]))
    found = []
    for part in y.split(rows, dim=1):
        scores = torch.baddbmm(offset, part, codewords.transpose(1, 2))
        if scores.device.type == "cpu":
            found.append(torch.from_numpy(np.argmax(scores.float().numpy(), axis=-1)))
        else:
            found.append(scores.argmax(-1))
    return torch.cat(found, dim=1)


class TunedBook(nn.Module):
    """A codebook in training: all blocks at all its rates."""

    def __init__(self, codebook: Codebook, options: TuneOptions) -> None:
        super().__init__()
        self.codebook, self.options = codebook, options
        self.levels = nn.ModuleDict(
            {
                str(stages): nn.ModuleList(
                    TunedBlock(one.floats(), options.covariance) for one in books
                )
                for stages, books in codebook.levels.items()
            }
        )

    def blocks(self, stages: int) -> list[TunedBlock]:
        """The quantizers of one number of stages; without history, of all numbers."""
        found = self.levels[str(stages if self.codebook.history else self.codebook.stages)]
        assert isinstance(found, nn.ModuleList)
        return list(found)  # type: ignore[arg-type]

    def stored(self) -> Codebook:
        """The codebook as it is now, with the precision that its file will have."""
        book = self.codebook
        return replace(
            book,
            levels={
                stages: tuple(block.stored() for block in self.blocks(stages))
                for stages in book.levels
            },
        )


class Coding:
    """One forward pass's view of a :class:`TunedBook`: the ``rebuild`` of a mixed forward.

    Adds up the commitment and reconstruction losses of the blocks it is called for.
    """

    def __init__(
        self,
        book: TunedBook,
        stages: int,
        model: Model,
        held: Shares,
        generator: torch.Generator | None = None,
    ) -> None:
        self.book, self.model, self.held = book, model, held
        self._blocks, self._stages, self._generator = book.blocks(stages), stages, generator
        self._memory: Memory | None = None
        self._losses: list[tuple[Tensor, Tensor]] = []

    def first(self, n: Tensor) -> None:
        """The first block's n (T', B, D), where every peer knows it."""
        if self.book.codebook.history:
            known = self._coded(n).detach().float()
            self._memory = Memory(self.book.codebook.history, known)

    def _coded(self, n: Tensor) -> Tensor:
        return n[self.held.copies :].flatten(0, 1)

    def __call__(self, index: int, n: Tensor) -> Tensor:
        """What the others hold of ``n`` (T', B, D): normalized rows (of ``astra``: embeddings)."""
        block = self._blocks[index - self.book.codebook.first_block]
        options = self.book.options
        with torch.autocast(n.device.type, enabled=False):
            coded = self._coded(n).float()
            rebuilt = self._rebuild(index, block, coded)
            if self._generator is not None and options.noise:
                block.observe((coded - rebuilt).detach(), self._stages)
                drawn = block.noise(len(coded), self._generator, self._stages)
                rebuilt = rebuilt + options.noise * drawn
            rebuilt = rebuilt + (coded - coded.detach())
        rows = rebuilt.view(-1, *n.shape[1:]).to(n.dtype)
        return torch.cat([n[: self.held.copies], rows]) if self.held.copies else rows

    def _rebuild(self, index: int, block: TunedBlock, coded: Tensor) -> Tensor:
        """The value p + q (N, D), differentiable in the book's parameters."""
        book = block.book
        if book.center is None:
            predicted = torch.zeros_like(coded)
        elif self._memory is None:
            predicted = book.center.expand(coded.shape)
        else:
            predicted = self._memory.predict(index, book, slice(None))
        added = block.quantize(coded - predicted, self._stages)
        rebuilt = predicted + added
        if self._memory is not None:
            self._memory.keep(index, slice(None), predicted.detach(), added.detach())
        scale = block.coordinates(coded.detach() - coded.detach().mean(0)).square().mean()
        scale = scale.clamp_min(1e-12)
        commitment = block.coordinates(coded - rebuilt.detach()).square().mean() / scale
        error = block.coordinates(coded.detach() - rebuilt).square().mean() / scale
        self._losses.append((commitment, error))
        return rebuilt

    def penalties(self) -> tuple[Tensor, Tensor]:
        """Commitment and reconstruction loss: means over the blocks."""
        if not self._losses:
            zero = torch.zeros(())
            return zero, zero
        commitments, errors = zip(*self._losses, strict=True)
        return torch.stack(commitments).mean(), torch.stack(errors).mean()
