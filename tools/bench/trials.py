"""Four ideas for fitting codes without training, one by one: a study of tools.bench.fidelity.

    python -m tools.bench.fidelity --only trials --threads 1

* A metric by heads: the errors of each head's keys and values count over that head's energy, or by
  the mean squared gradient of the answer to them, in place of all keys' and all values' energy.
* Mean correction: what the rebuilt rows are off by on average over the calibration data is added
  to them (keys and values are linear in them, and corrected with them), or what the attention's
  output is off by, to all of it or in proportion to the share of the coded tokens in it.
* Weights of rows: each calibration row counts by the attention that the others' tokens pay to it
  (which is what ``fit`` does), or by its root, in the regression, the coordinates and k-means; or
  by whether there is any.
* Shared errors: what the codes of one peer's tokens are off by on average goes with them in each
  block, exact or in a few bits for each coordinate. Codes would have to be fitted to nothing new.

Blocks are fitted and measured on whole batches (:mod:`astra_mesh.quant.mixed`), which gives what
``fit`` gives, and ``eval`` with exact arithmetic. Four peers, a single class token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from astra_mesh.bundle import open_bundle
from astra_mesh.bundle.tensors import load_weights
from astra_mesh.families import Model, ModelInput, build_model
from astra_mesh.families.block import Block
from astra_mesh.quality import FitOptions, load_inputs
from astra_mesh.quality.data import load_samples
from astra_mesh.quant.block_fit import (
    Batch,
    BlockFit,
    added_rows,
    predicted_rows,
    seeded,
)
from astra_mesh.quant.codebook import BlockBook, as_stored
from astra_mesh.quant.coders import BlockCoder, Memory
from astra_mesh.quant.frame import kv_metric
from astra_mesh.quant.mixed import Shares, arrange, even_bounds, mixed_block, shares
from astra_mesh.quant.sensitivity import sensitivities

TOKENS: Final = 15_000  # for calibration
SEQUENCES: Final = 64  # in a batch of pictures; of texts a quarter
PEERS: Final = 4
SEEDS: Final = (0, 1)
ITERATIONS: Final = 8  # of k-means
RATES: Final = ((0, 128), (-1, 64))  # history and bits
EXACT: Final = 32
Metric = Callable[[Tensor, Block], Tensor]


@dataclass(frozen=True)
class Trial:
    """What is done otherwise than ``fit`` does it."""

    heads: Literal["", "energy", "sensitivity"] = ""
    correction: Literal["", "rows", "attention", "remote"] = ""
    weights: float | None = None  # power of the attention that a row gets from others
    shared: int = 0  # bits of a coordinate of the mean error that is sent; EXACT: not rounded


TRIALS: Final = {
    "rows alike": Trial(),
    "heads, unit energy": Trial(heads="energy"),
    "heads, by sensitivity": Trial(heads="sensitivity"),
    "mean of rows": Trial(correction="rows"),
    "mean of the attention": Trial(correction="attention"),
    "mean of the coded part": Trial(correction="remote"),
    "rows by attention": Trial(weights=1.0),
    "rows by its root": Trial(weights=0.5),
    "rows that are sent": Trial(weights=0.0),
    "shared error sent": Trial(shared=EXACT),
    "shared error in 3 bits": Trial(shared=3),
    "shared error in 2 bits": Trial(shared=2),
}


@dataclass(frozen=True)
class Subject:
    """A model with what depends on no trial."""

    model: Model
    task: str
    calibration: Sequence[ModelInput]
    test: Sequence[ModelInput]
    fisher: list[Tensor]  # by block (D, D)
    by_head: list[Tensor]  # by block (2, H_kv): mean squared gradients of keys and of values


def subject(folder: Path, data: Path, test: Path, limit: int) -> Subject:
    """Reads everything, and takes the gradients."""
    bundle = open_bundle(folder)
    model = build_model(bundle.config, load_weights(bundle))
    task = model.spec.tasks[0]
    calibration = load_inputs(bundle, data, limit_tokens=TOKENS)
    samples = [one.input for one in load_samples(bundle, test, limit=limit)]
    whole = [one for one in samples if model.count_tokens(one) == model.count_tokens(samples[0])]
    found = Subject(model, task, calibration, whole, [], [])
    batches = [
        (part, shares(even_bounds(part.shape[1], PEERS, len(part)), part.shape[1]))
        for one in batches_of(found, calibration)
        for part in one.embedded.split(SEQUENCES // 2)
    ]
    by_head = [torch.zeros(2, model.spec.num_key_value_heads) for _ in model.block_list]
    for index, sums in enumerate(by_head):
        _watch(model.block(index), sums)
    fisher = sensitivities(model, batches, 1, task, seeded(0, "answers"))
    for index in range(len(by_head)):
        del model.block(index).project_key_value
    return replace(found, fisher=fisher, by_head=by_head)


def _watch(block: Block, sums: Tensor) -> None:
    """Adds up what gradients come to a block's rebuilt keys and values, in squares by head."""
    project = block.project_key_value

    def watched(n: Tensor) -> Tensor:
        raw = project(n)

        def take(gradient: Tensor) -> None:
            sums.add_(gradient.square().unflatten(-1, (*sums.shape, -1)).sum((0, 1, -1)))

        raw.register_hook(take)
        return raw

    block.project_key_value = watched  # type: ignore[method-assign]


def batches_of(of: Subject, inputs: Sequence[ModelInput]) -> list[Batch]:
    """Sequences of one length together, on four peers."""
    model, by_length = of.model, dict[int, list[Tensor]]()
    for one in inputs:
        count = model.count_tokens(one)
        by_length.setdefault(count, []).append(model.embed(one, 0, count).float())
    size = SEQUENCES if of.task == "classify" else SEQUENCES // 4
    found = []
    for count, rows in sorted(by_length.items()):
        for at in range(0, len(rows), size):
            embedded = torch.stack(rows[at : at + size])
            held = shares(even_bounds(count, min(PEERS, count), len(embedded)), count)
            x = arrange(embedded, held)
            found.append(Batch(embedded, held, held.masks(model.spec.causal), x))
    return found


# --- attention ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attention:
    """Of a batch: outputs (B, H, T, E), shares (B, H, T, T) that rows get from others' queries."""

    out: Tensor
    remote: Tensor

    def rows(self) -> Tensor:
        """(T, B, q_size), for :meth:`Block.mix`."""
        return self.out.permute(2, 0, 1, 3).flatten(2)


def attention(block: Block, batch: Batch, rebuilt: Tensor | None) -> Attention:
    """As :func:`mixed_block` does it, but for what comes after."""
    query, rows = block.project(block.normalize(batch.x), 0)
    others = rows if rebuilt is None else block.key_value(rebuilt, 0)
    both = torch.cat([rows, others]).permute(2, 1, 3, 0, 4)
    groups = query.shape[3]
    key, value = (
        part.unsqueeze(2).expand(-1, -1, groups, -1, -1).flatten(1, 2) for part in both.unbind(0)
    )
    wide = query.permute(1, 2, 3, 0, 4).flatten(1, 2)
    scores = wide @ key.transpose(-1, -2) / math.sqrt(wide.shape[-1])
    share = scores.masked_fill(~batch.mask, -math.inf).softmax(-1)
    return Attention(share @ value, share[..., len(rows) :])


# --- fitting --------------------------------------------------------------------------------------


def by_heads(weights: Tensor | None) -> Metric:
    """Errors of each head over its energy, or times its weight (2, H_kv)."""

    def metric(centered: Tensor, block: Block) -> Tensor:
        covariance = (centered.T @ centered).double() / len(centered)
        spec = block.spec
        wide = block.kv_weight.double().view(2 * spec.num_key_value_heads, spec.head_dim, -1)
        forms = wide.mT @ wide  # (2 H_kv, D, D)
        scales = 1 / (forms * covariance).sum((1, 2)).clamp_min(1e-12)
        if weights is not None:
            scales = weights.flatten().double()
        return (forms * scales[:, None, None]).sum(0)

    return metric


@dataclass
class TrialFit(BlockFit):
    """With another metric."""

    chosen: Metric = kv_metric

    def metric(self, centered: Tensor) -> Tensor:
        """See :class:`BlockFit`."""
        return self.chosen(centered, self.block)


# --- running --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Coded:
    """A fitted block, and what is added to its attention's output (H, E)."""

    coder: BlockCoder
    added: Tensor | None = None


@dataclass
class Run:
    """One trial at one history and number of bits."""

    of: Subject
    trial: Trial
    options: FitOptions
    books: list[BlockBook] = field(default_factory=list)  # of the blocks that were fitted

    @torch.no_grad()
    def fit(self) -> dict[int, Coded]:
        """All blocks but the first."""
        batches, found = batches_of(self.of, self.of.calibration), dict[int, Coded]()
        for index in range(self.of.model.spec.num_hidden_layers):
            if index:
                found[index] = self._block(index, batches)
            for batch in batches:
                self.advance(index, batch, found.get(index))
        return found

    def _block(self, index: int, batches: list[Batch]) -> Coded:
        block, trial = self.of.model.block(index), self.trial
        metric: Metric = kv_metric
        if trial.heads:
            metric = by_heads(self.of.by_head[index] if trial.heads == "sensitivity" else None)
        options = replace(self.options, attention=trial.weights)
        fitted = TrialFit(options, block, index, self.of.fisher[index], metric)
        book = as_stored(fitted.run(batches, self.options.stage_groups).book)
        self.books.append(book)
        coded = Coded(BlockCoder(book))
        if trial.correction == "rows":
            off = [n - found for n, found in self._each(index, batches, coded)]
            assert book.center is not None
            center = book.center + torch.cat(off).mean(0)
            return Coded(BlockCoder(replace(book, center=center)))
        if trial.correction:
            return replace(coded, added=self.off(index, batches, coded))
        return coded

    def _each(
        self, index: int, batches: list[Batch], coded: Coded
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Coded rows (N, D), and what the others hold of them."""
        for batch in batches:
            n = batch.coded(self.of.model.block(index).normalize(batch.x))
            predicted = predicted_rows(batch, index, coded.coder.book, n)
            yield n, predicted + self._added(index, batch, coded, n - predicted)

    def _added(self, index: int, batch: Batch, coded: Coded, residual: Tensor) -> Tensor:
        """What is added to predictions (N, D), with the error that a peer's tokens share."""
        added, bits = added_rows(coded.coder, residual), self.trial.shared
        if not bits:
            return added
        wide = (residual - added).view(-1, len(batch.embedded), residual.shape[1])
        alike = batch.held.owner[:, :, None] == batch.held.owner[:, None, :]
        share = alike / alike.sum(-1, keepdim=True)
        mean = torch.einsum("bts,sbd->tbd", share, wide).flatten(0, 1)
        book = self.books[index - 1]
        assert book.analysis is not None
        assert book.synthesis is not None
        y = mean @ book.analysis.T
        if bits < EXACT:
            step = y.abs().amax(-1, keepdim=True).clamp_min(1e-12) / (2 ** (bits - 1) - 1)
            y = (y / step).round() * step
        return added + y @ book.synthesis.T

    def off(self, index: int, batches: list[Batch], coded: Coded) -> Tensor:
        """What the attention's output lacks on average: (H, E)."""
        block = self.of.model.block(index)
        sums = sizes = torch.zeros(())
        for batch, (_, held) in zip(batches, self._each(index, batches, coded), strict=True):
            rebuilt = batch.restore(batch.x, held)
            exact, found = attention(block, batch, None), attention(block, batch, rebuilt)
            share = self.share(found)
            sums = sums + (share * (exact.out - found.out)).double().sum((0, 2))
            sizes = sizes + share.square().double().sum((0, 2))
        return (sums / sizes).float()

    def share(self, found: Attention) -> Tensor:
        """(B, H, T, 1): how much of what is added a query gets."""
        share = found.remote.sum(-1, keepdim=True)
        return share if self.trial.correction == "remote" else (share > 0).float()

    def advance(self, index: int, batch: Batch, coded: Coded | None) -> None:
        block = self.of.model.block(index)
        n = block.normalize(batch.x)
        if coded is None:
            if self.options.history:
                batch.memory = Memory(self.options.history, batch.coded(n))
            batch.x = mixed_block(block, batch.x, batch.mask, None)
            return
        rows = batch.coded(n)
        predicted = predicted_rows(batch, index, coded.coder.book, rows)
        added = self._added(index, batch, coded, rows - predicted)
        if batch.memory is not None:
            batch.memory.keep(index, slice(None), predicted, added)
        rebuilt = batch.restore(n, predicted + added)
        if coded.added is None:
            batch.x = mixed_block(block, batch.x, batch.mask, rebuilt)
            return
        found = attention(block, batch, rebuilt)
        out = found.out + self.share(found) * coded.added[:, None]
        batch.x = block.mix(batch.x, replace(found, out=out).rows())

    @torch.no_grad()
    def measure(self, blocks: dict[int, Coded]) -> Tensor:
        """(inputs, 2): the KL to one device, and the share of equal answers."""
        found, model = [], self.of.model
        for batch in batches_of(self.of, self.of.test):
            alone, whole = batch.x, Shares(torch.zeros_like(batch.held.owner))
            mask = whole.masks(model.spec.causal)
            for index in range(model.spec.num_hidden_layers):
                alone = mixed_block(model.block(index), alone, mask, None)
                self.advance(index, batch, blocks.get(index))
            truth, given = (_answers(self.of, x) for x in (alone, batch.x))
            kl = F.kl_div(given, truth, reduction="none", log_target=True).sum(-1).mean(0)
            same = (given.argmax(-1) == truth.argmax(-1)).float().mean(0)
            found.append(torch.stack([kl, same], dim=1))
        return torch.cat(found)


def _answers(of: Subject, x: Tensor) -> Tensor:
    """(places, B, answers) log-probabilities: of all places of a text, of one of a picture."""
    final = of.model.final(x)
    if of.task == "classify":
        return of.model.classify(final[0]).float().log_softmax(-1)[None]
    return of.model.logits(final).float().log_softmax(-1)


def tried(of: Subject, tell: Callable[[str], None]) -> dict[str, Any]:
    """By trial, then by history and bits: KL and agreement with one device, and how much more the
    KL is than in the first trial, with the standard error over inputs; a list of all by seed."""
    found: dict[str, Any] = {}
    for seed in SEEDS:
        first: dict[str, Tensor] = {}
        for name, trial in TRIALS.items():
            for history, bits in RATES:
                options = FitOptions(
                    history=history, rates=(bits,), iterations=ITERATIONS, max_tokens=TOKENS,
                    peers=(PEERS,), distributed=False, seed=seed,
                )  # fmt: skip
                run = Run(of, trial, options)
                rows = run.measure(run.fit()).double()
                key = f"history {history}, {bits} bits"
                more = rows[:, 0] - first.setdefault(key, rows)[:, 0]
                kept = {
                    "kl": float(rows[:, 0].mean()),
                    "kl_more": float(more.mean()),
                    "kl_more_error": float(more.std()) / math.sqrt(len(rows)),
                    "agreement": float(rows[:, 1].mean()),
                }
                found.setdefault(name, {}).setdefault(key, []).append({"seed": seed} | kept)
                tell(f"{name}, {key}: {kept}")
    return found
