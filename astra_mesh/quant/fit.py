"""Fitting a codebook to calibration inputs: least squares and k-means, nothing is trained.

Block after block, on inputs that already carry what quantizing the blocks before has done to them:
the calibration sequences run under a plan of several peers (:mod:`astra_mesh.quant.mixed`). For
each block

1. the prediction from what is held of the blocks before (ridge regression),
2. the coordinates of what is left (:mod:`astra_mesh.quant.frame`),
3. the codewords, stage by stage (k-means on what the stages before left),

then all tokens are coded with them, and the block runs on what the others hold. ``astra`` has only
the last step (arXiv 2505.19342, section 3.2).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from astra_mesh.errors import CalibrationError
from astra_mesh.families.block import Block
from astra_mesh.families.model import Model, ModelInput
from astra_mesh.quant.codebook import BlockBook, Codebook, as_stored
from astra_mesh.quant.frame import balanced_order, kv_metric, make_frame, mixed_metric
from astra_mesh.quant.kmeans import kmeans
from astra_mesh.quant.mixed import Shares, arrange, even_bounds, mixed_block, shares
from astra_mesh.quant.options import FitOptions
from astra_mesh.quant.sensitivity import sensitivities
from astra_mesh.quant.vector import BlockCoder, Cut, Memory, StageCoder
from astra_mesh.wire.messages import ModelId

Progress = Callable[[int, int, str], None]  # done, total, what
Stored = dict[tuple[int, int], BlockBook]  # by stages and block

BATCH_TOKENS = 8192  # that run through a block at once
LOGITS_BYTES = 256 << 20  # of one batch whose gradients are taken


@dataclass(frozen=True)
class BlockReport:
    """How well one block is coded at one rate; variances in the block's metric."""

    block: int
    bits: int
    predicted: float  # share of the variance that is left after the prediction
    left: float  # share that is left after the codes


@dataclass
class FitReport:
    """What a fit found."""

    tokens: int = 0
    sequences: int = 0
    blocks: list[BlockReport] = field(default_factory=list)


@dataclass
class _Batch:
    """Sequences of one length on their way through the blocks."""

    embedded: Tensor  # (B, T, D)
    held: Shares
    mask: Tensor
    x: Tensor  # (T', B, D)
    memory: Memory | None = None

    def coded(self, n: Tensor) -> Tensor:
        """The rows that are sent: (N, D) of (T', B, D)."""
        return n[self.held.copies :].flatten(0, 1)

    def restore(self, n: Tensor, coded: Tensor) -> Tensor:
        """``n`` (T', B, D) with the rows of :meth:`coded` replaced."""
        rows = coded.view(-1, *n.shape[1:])
        return torch.cat([n[: self.held.copies], rows]) if self.held.copies else rows


@torch.no_grad()
def fit_codebook(
    model: Model,
    model_id: ModelId,
    inputs: Sequence[ModelInput],
    options: FitOptions,
    progress: Progress = lambda done, total, what: None,
    *,
    task: str = "",
    done: Stored | None = None,
    keep: Callable[[Stored], None] = lambda done: None,
) -> tuple[Codebook, FitReport]:
    """A codebook for all blocks and rates. Deterministic for a seed and one number of threads.

    Memory: ``(3 + max(1, history)) * max_tokens * D`` float32, the sample twice, and one batch.

    Args:
        model: in full precision.
        model_id: of its weights.
        inputs: calibration sequences; those past ``max_tokens`` are not used.
        options: checked here.
        progress: called for each block.
        task: what the sensitivity is about; empty: the model's first task.
        done: blocks that an interrupted run has fitted; they are not fitted again.
        keep: called with all blocks fitted so far, after each.

    Raises:
        CalibrationError: too few tokens (ten per codeword are needed), or impossible options.
        InputError: an input that does not fit the model.
    """
    options.check(model.spec.hidden_size)
    first = 0 if options.codec == "astra" else 1
    if model.spec.num_hidden_layers <= first:
        raise CalibrationError(
            "a model of one block needs no codebook: all peers know that block's input anyway"
        )
    distributed = options.distributed and model.spec.has_class_token
    embedded, report = _embedded(model, inputs, options)
    fitter = _Fitter(model, options, first, embedded, report, progress, dict(done or {}), keep)
    levels = fitter.run(task or model.spec.tasks[0])
    found = Codebook(
        codec=options.codec,
        model=model_id,
        hidden_size=model.spec.hidden_size,
        first_block=first,
        history=options.history,
        groups=options.stage_groups,
        size=options.codewords,
        default_stages=options.default_stages,
        levels=levels,
        class_token="distributed" if distributed else "single",
    )
    if not all(bool(one.isfinite().all()) for one in found.tensors().values()):
        raise CalibrationError("the model's embeddings are beyond what a codebook holds (float16)")
    return found, report


def _embedded(
    model: Model, inputs: Sequence[ModelInput], options: FitOptions
) -> tuple[list[Tensor], FitReport]:
    """Batches (B, T, D) of sequences of one length, and how much there is."""
    by_length: dict[int, list[Tensor]] = defaultdict(list)
    report = FitReport()
    for one in inputs:
        count = model.count_tokens(one)
        if report.tokens + count > options.max_tokens:
            break
        by_length[count].append(model.embed(one, 0, count).float())
        report.tokens, report.sequences = report.tokens + count, report.sequences + 1
    if report.tokens < options.needed_tokens:
        raise CalibrationError(
            f"{report.tokens} calibration tokens are too few for {options.codewords} codewords: "
            f"give at least {options.needed_tokens} tokens (more text or pictures), or fewer "
            "codewords"
        )
    found = []
    for count, rows in sorted(by_length.items()):
        size = max(1, BATCH_TOKENS // count)
        found += [torch.stack(rows[at : at + size]) for at in range(0, len(rows), size)]
    return found, report


@dataclass
class _Fitter:
    model: Model
    options: FitOptions
    first: int
    embedded: list[Tensor]
    report: FitReport
    progress: Progress
    done: Stored
    keep: Callable[[Stored], None]
    metrics: list[Tensor] | None = None
    steps: int = 0

    def run(self, task: str) -> dict[int, tuple[BlockBook, ...]]:
        """Books by number of stages."""
        options = self.options
        if options.sensitivity and options.codec == "vq":
            self.progress(0, 1, "measuring what the answers depend on")
            batches = list(self._gradient_batches(task))
            self.metrics = sensitivities(
                self.model, batches, self.first, task, _generator(options.seed, "answers")
            )
        stages = list(options.stages.values())
        wanted = stages if options.history else stages[-1:]
        total = len(wanted) * self.model.spec.num_hidden_layers
        levels = {count: self._level(count, total) for count in wanted}
        self.progress(total, total, "done")
        return levels

    def _gradient_batches(self, task: str) -> Iterator[tuple[Tensor, Shares]]:
        """Some sequences, cut small enough for their logits."""
        left, vocab = self.options.sensitivity_tokens, self.model.spec.vocab_size
        for index, embedded in enumerate(self.embedded):
            tokens = embedded.shape[1]
            size = len(embedded)
            if task == "generate":
                size = max(1, LOGITS_BYTES // (4 * vocab * tokens))
            for part in embedded.split(min(size, 32)):
                if left <= 0:
                    return
                left -= part.shape[0] * tokens
                yield part.clone(), self._shares(index, part)

    def _shares(self, index: int, embedded: Tensor) -> Shares:
        count, tokens = len(embedded), embedded.shape[1]
        peers = min(self.options.peers[index % len(self.options.peers)], tokens)
        distributed = self.options.distributed and self.model.spec.has_class_token
        return shares(even_bounds(tokens, peers, count), tokens, distributed=distributed)

    def _batches(self) -> list[_Batch]:
        found = []
        for index, embedded in enumerate(self.embedded):
            held = self._shares(index, embedded)
            x = arrange(embedded, held)
            found.append(_Batch(embedded, held, held.masks(self.model.spec.causal), x))
        return found

    def _level(self, stages: int, total: int) -> tuple[BlockBook, ...]:
        books, batches, bits = [], self._batches(), self._bits(stages)
        for index in range(self.model.spec.num_hidden_layers):
            self.progress(self.steps, total, f"{bits} bits, block {index}")
            block = self.model.block(index)
            if index < self.first:
                self._known(block, batches)
            else:
                coder = self._coder(block, index, stages, batches)
                books.append(coder.book)
                for batch in batches:
                    self._advance(block, index, coder, batch)
            self.steps += 1
        return tuple(books)

    def _bits(self, stages: int) -> int:
        return sum(self.options.stage_groups[:stages]) * self.options.code_bits

    def _known(self, block: Block, batches: list[_Batch]) -> None:
        """The first block, whose input every peer knows."""
        for batch in batches:
            n = block.normalize(batch.x)
            if self.options.history:
                batch.memory = Memory(self.options.history, batch.coded(n))
            batch.x = mixed_block(block, batch.x, batch.mask, None)

    def _coder(self, block: Block, index: int, stages: int, batches: list[_Batch]) -> BlockCoder:
        key = stages, index
        if key not in self.done:
            fit = _BlockFit(self.options, block, index, self._sensitivity(index))
            book, predicted, left = fit.run(batches, self.options.stage_groups[:stages])
            self.done[key] = as_stored(book)
            self.report.blocks.append(BlockReport(index, self._bits(stages), predicted, left))
            self.keep(self.done)
        return BlockCoder(self.done[key])

    def _sensitivity(self, index: int) -> Tensor | None:
        return None if self.metrics is None else self.metrics[index]

    def _advance(self, block: Block, index: int, coder: BlockCoder, batch: _Batch) -> None:
        """Code all tokens of a batch and run the block on what the others hold."""
        astra = self.options.codec == "astra"
        n = batch.x if astra else block.normalize(batch.x)
        coded = batch.coded(n)
        predicted = torch.zeros_like(coded)
        if not astra:
            predicted = _predicted(batch, index, coder.book, coded)
        added = _added(coder, coded - predicted)
        if batch.memory is not None:
            batch.memory.keep(index, slice(None), predicted, added)
        rebuilt = batch.restore(n, predicted + added)
        batch.x = mixed_block(
            block, batch.x, batch.mask, block.normalize(rebuilt) if astra else rebuilt
        )


def _predicted(batch: _Batch, index: int, book: BlockBook, coded: Tensor) -> Tensor:
    assert book.center is not None
    if batch.memory is None:
        return book.center.expand(coded.shape)
    return batch.memory.predict(index, book, slice(None))


def _added(coder: BlockCoder, residual: Tensor) -> Tensor:
    """What the codes of ``residual`` (N, D) stand for: (N, D)."""
    y = coder.decode(coder.encode(residual))
    return y if coder.book.synthesis is None else y @ coder.book.synthesis.T


@dataclass
class _BlockFit:
    """One block at one number of stages."""

    options: FitOptions
    block: Block
    index: int
    sensitivity: Tensor | None

    def run(self, batches: list[_Batch], groups: Sequence[int]) -> tuple[BlockBook, float, float]:
        """The book, and the shares of the variance left after prediction and after the codes."""
        generator = _generator(self.options.seed, f"{self.index} {len(groups)}")
        if self.options.codec == "astra":
            x = _sampled(
                [batch.coded(batch.x) for batch in batches], self.options.sample, generator
            )
            _check_varied([x], x.mean(0))
            codewords, _, left = self._stages(x, groups, generator, plain=True)
            return BlockBook(codewords), 1.0, left / float(x.var(0, correction=0).sum())
        return self._predictive(batches, groups, generator)

    def _predictive(
        self, batches: list[_Batch], groups: Sequence[int], generator: torch.Generator
    ) -> tuple[BlockBook, float, float]:
        rows = [batch.coded(self.block.normalize(batch.x)) for batch in batches]
        center, predict, mean = self._regress(rows, batches)
        book = BlockBook((), (), center, None, None, predict)
        residuals = [
            n - _predicted(batch, self.index, book, n)
            for n, batch in zip(rows, batches, strict=True)
        ]
        picked = _picks([len(n) for n in rows], self.options.sample, generator)
        n = torch.cat([part[at] for part, at in zip(rows, picked, strict=True)])
        residual = torch.cat([part[at] for part, at in zip(residuals, picked, strict=True)])
        metric = mixed_metric(
            kv_metric(n - mean, self.block), self.sensitivity, self.options.sensitivity
        )
        frame = make_frame(residual, metric)
        y = residual @ frame.analysis.T
        codewords, orders, left = self._stages(y, groups, generator, plain=False)
        whole = float(((n - mean) @ frame.analysis.T).square().sum(1).mean())
        before = float(y.square().sum(1).mean())
        book = BlockBook(codewords, orders, center, frame.analysis, frame.synthesis, predict)
        return book, before / whole, left / whole

    def _regress(
        self, rows: list[Tensor], batches: list[_Batch]
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Center (D,), predict (depth, D, D) or None, and the mean of n (D,)."""
        sums = _Sums()
        for n, batch in zip(rows, batches, strict=True):
            sums.add(None if batch.memory is None else batch.memory.past(self.index), n)
        mean = sums.mean()
        _check_varied(rows, mean)
        center, predict = sums.solve(self.options.ridge)
        size = len(center)
        return center, None if predict is None else predict.view(-1, size, size), mean

    def _stages(
        self, y: Tensor, groups: Sequence[int], generator: torch.Generator, plain: bool
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], float]:
        """Codewords and orders of each stage, and the mean squared length of what is left."""
        codewords, orders = [], []
        for count in groups:
            order = None if plain else balanced_order(y.square().mean(0), count)
            cut = Cut(count, order, y.shape[1]).split(y)
            found = kmeans(cut, self.options.codewords, self.options.iterations, generator)
            stage = StageCoder(found.half().float(), order, y.shape[1])
            y = y - stage.decode(stage.encode(y))
            codewords.append(found)
            if order is not None:
                orders.append(order)
        return tuple(codewords), tuple(orders), float(y.square().sum(1).mean())


class _Sums:
    """Moments of what is predicted from (N, F) and of n (N, D), added up in float64."""

    def __init__(self) -> None:
        self.count = 0
        self._n: Tensor | float = 0.0
        self._f: Tensor | None = None
        self._ff: Tensor | float = 0.0
        self._fn: Tensor | float = 0.0

    def add(self, past: Tensor | None, n: Tensor) -> None:
        """Count rows."""
        self.count += len(n)
        self._n = self._n + n.double().sum(0)
        if past is not None:
            self._f = past.double().sum(0) + (0.0 if self._f is None else self._f)
            self._ff = self._ff + (past.T @ past).double()
            self._fn = self._fn + (past.T @ n).double()

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


def _check_varied(parts: Sequence[Tensor], mean: Tensor) -> None:
    spread = sum(float((n - mean).square().sum()) for n in parts)
    if spread <= 1e-10 * sum(float(n.square().sum()) for n in parts):  # equal but for rounding
        raise CalibrationError("the calibration inputs are all alike; give others")


def _generator(seed: int, what: str) -> torch.Generator:
    """Of its own for each purpose, so that a resumed run draws the same numbers."""
    digest = hashlib.sha256(f"{seed} {what}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _picks(sizes: Sequence[int], most: int, generator: torch.Generator) -> list[Tensor]:
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


def _sampled(parts: Sequence[Tensor], most: int, generator: torch.Generator) -> Tensor:
    picks = _picks([len(part) for part in parts], most, generator)
    return torch.cat([part[at] for part, at in zip(parts, picks, strict=True)])


def fingerprint(inputs: Sequence[ModelInput]) -> str:
    """SHA-256 of calibration inputs, to tell whether an interrupted run had the same."""
    digest = hashlib.sha256()
    for one in islice(inputs, None):
        for tensor in (one.tokens, one.token_types, one.pixels):
            if tensor is not None:
                digest.update(tensor.contiguous().numpy().tobytes())
        digest.update(b"\0")
    return digest.hexdigest()
