"""Fitting a codebook to calibration inputs: least squares and k-means, nothing is trained.

Block after block, on inputs that already carry what quantizing the blocks before has done to them:
the calibration sequences run under a plan of several peers (:mod:`astra_mesh.quant.mixed`). For
each block

1. what each row counts: by the attention that other peers' tokens pay to it,
2. the prediction from what is held of the blocks before (ridge regression),
3. the coordinates of what is left (:mod:`astra_mesh.quant.frame`),
4. the codewords, stage by stage (k-means on what the stages before left),

then all tokens are coded with them, and the block runs on what the others hold. ``astra`` has only
the last step (arXiv 2505.19342, section 3.2).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from astra_mesh.errors import CalibrationError
from astra_mesh.families.block import Block
from astra_mesh.families.model import Model, ModelInput
from astra_mesh.quant.block_fit import Batch, BlockFit, added_rows, predicted_rows, seeded
from astra_mesh.quant.codebook import BlockBook, Codebook, as_stored
from astra_mesh.quant.coders import BlockCoder, Memory
from astra_mesh.quant.mixed import Shares, arrange, even_bounds, mixed_block, shares
from astra_mesh.quant.options import FitOptions
from astra_mesh.quant.sensitivity import sensitivities
from astra_mesh.wire.messages import ModelId

Progress = Callable[[int, int, str], None]  # done, total, what


BATCH_TOKENS = 8192  # that run through a block at once
LOGITS_BYTES = 256 << 20  # of one batch whose gradients are taken


@dataclass(frozen=True)
class BlockReport:
    """How well one block is coded at one rate; variances in the block's metric."""

    block: int
    bits: int
    predicted: float  # share of the variance that is left after the prediction
    left: float  # share that is left after the codes


@dataclass(frozen=True)
class FittedBlock:
    """One block for one number of stages."""

    book: BlockBook
    predicted: float  # share of the variance that is left after the prediction
    left: tuple[float, ...]  # after each stage


Stored = dict[tuple[int, int], FittedBlock]  # by stages and block


@dataclass
class FitReport:
    """What a fit found."""

    tokens: int = 0
    sequences: int = 0
    blocks: list[BlockReport] = field(default_factory=list)


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

    Memory: ``(3 + max(1, history)) * max_tokens * D`` float32, the sample three times, one batch,
    and (heads, T, T) float32 of one sequence.

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
    first = int(options.codec == "vq" and not options.code_first)
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
                self.model, batches, self.first, task, seeded(options.seed, "answers")
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

    def _batches(self) -> list[Batch]:
        found = []
        for index, embedded in enumerate(self.embedded):
            held = self._shares(index, embedded)
            x = arrange(embedded, held)
            found.append(Batch(embedded, held, held.masks(self.model.spec.causal), x))
        return found

    def _level(self, stages: int, total: int) -> tuple[BlockBook, ...]:
        blocks = range(self.first, self.model.spec.num_hidden_layers)
        if all((stages, index) in self.done for index in blocks):  # each level stands alone
            return self._again(stages)
        books, batches, bits = [], self._batches(), self._bits(stages)
        for index in range(self.model.spec.num_hidden_layers):
            self.progress(self.steps, total, f"{bits} bits, block {index}")
            block = self.model.block(index)
            if index < self.first:
                self._known(block, batches)
            else:
                coder = self._coder(block, index, stages, batches)
                books.append(self.done[stages, index].book)
                for batch in batches:
                    self._advance(block, index, coder, batch)
            self.steps += 1
        return tuple(books)

    def _again(self, stages: int) -> tuple[BlockBook, ...]:
        """A level that an interrupted run has finished."""
        found = []
        for index in range(self.first, self.model.spec.num_hidden_layers):
            self._tell(index, stages, self.done[stages, index])
            found.append(self.done[stages, index].book)
        self.steps += self.model.spec.num_hidden_layers
        return tuple(found)

    def _bits(self, stages: int) -> int:
        return sum(self.options.stage_groups[:stages]) * self.options.code_bits

    def _known(self, block: Block, batches: list[Batch]) -> None:
        """The first block, whose input every peer knows."""
        for batch in batches:
            n = block.normalize(batch.x)
            if self.options.history:
                batch.memory = Memory(self.options.history, batch.coded(n))
            batch.x = mixed_block(block, batch.x, batch.mask, None)

    def _coder(self, block: Block, index: int, stages: int, batches: list[Batch]) -> BlockCoder:
        key = stages, index
        if key not in self.done:
            fit = BlockFit(self.options, block, index, self._sensitivity(index))
            found = fit.run(batches, self.options.stage_groups[:stages])
            self.done[key] = FittedBlock(as_stored(found.book), found.predicted, tuple(found.left))
            self.keep(self.done)
        self._tell(index, stages, self.done[key])
        return BlockCoder(self.done[key].book)

    def _tell(self, index: int, stages: int, found: FittedBlock) -> None:
        """Report each rate that these stages serve: memoryless codes are fitted once for all."""
        for bits, count in self.options.stages.items():
            if count == stages or (count < stages and not self.options.history):
                one = BlockReport(index, bits, found.predicted, found.left[count - 1])
                self.report.blocks.append(one)

    def _sensitivity(self, index: int) -> Tensor | None:
        return None if self.metrics is None else self.metrics[index]

    def _advance(self, block: Block, index: int, coder: BlockCoder, batch: Batch) -> None:
        """Code all tokens of a batch and run the block on what the others hold."""
        astra = self.options.codec == "astra"
        n = batch.x if astra else block.normalize(batch.x)
        coded = batch.coded(n)
        predicted = torch.zeros_like(coded)
        if not astra:
            predicted = predicted_rows(batch, index, coder.book, coded)
        added = added_rows(coder, coded - predicted)
        if batch.memory is not None:
            batch.memory.keep(index, slice(None), predicted, added)
        rebuilt = batch.restore(n, predicted + added)
        batch.x = mixed_block(
            block, batch.x, batch.mask, block.normalize(rebuilt) if astra else rebuilt
        )


def fingerprint(inputs: Sequence[ModelInput]) -> str:
    """SHA-256 of calibration inputs, to tell whether an interrupted run had the same."""
    digest = hashlib.sha256()
    for one in inputs:
        for tensor in (one.tokens, one.token_types, one.pixels):
            if tensor is not None:
                digest.update(tensor.contiguous().numpy().tobytes())
        digest.update(b"\0")
    return digest.hexdigest()
