"""The training loop: steps, evaluations, checkpoints, early stop; alone or data-parallel.

Everything random of step n is drawn from the seed and n, so that a resumed run goes on as if it had
not stopped. Under ``torchrun`` each process takes its own batches; plans and rates are the same on
all of them.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parametrize

from astra_mesh.bundle.configs import replacing
from astra_mesh.errors import CalibrationError
from astra_mesh.families.model import Model
from astra_mesh.quant.codebook import Codebook
from astra_mesh.quant.mixed import even_bounds, shares
from astra_mesh.tune import checkpoint
from astra_mesh.tune.lora import adapt, merge
from astra_mesh.tune.objective import Batch, Objective, alone, draw_shares
from astra_mesh.tune.options import TuneOptions
from astra_mesh.tune.processes import averaging, of_first, pick_device, rank, world
from astra_mesh.tune.quantizer import TunedBook

Progress = Callable[[int, int, str], None]
CHECKPOINT = "checkpoint.pt"
CURVE = "training.csv"
COLUMNS = (
    "step", "seconds", "loss", "data", "distill", "reconstruction",
    "held_out_mesh", "held_out_alone",
)  # fmt: skip
EVAL_PEERS = 4


@dataclass(frozen=True)
class Tuned:
    """What came out of a run."""

    codebook: Codebook
    steps: int
    start: float  # held-out loss under four peers, before the first step
    best: float  # of what was kept
    alone: float  # of what was kept too, on one device
    best_step: int  # when it was reached; 0: training brought no gain
    stopped_early: bool


class Trainer:
    """One run in the folder ``work``.

    Args:
        model: to be trained in place.
        teacher: the model as it was, for distillation (where the weights stay, a
            :func:`~astra_mesh.tune.lora.twin` does); None: none.
        codebook: to start from.
        task: "generate", "classify" or "embed".
        batches: given the number of batches to skip, an endless stream of this process's batches.
        held_out: batches that measure progress.
        options: checked here.
        work: checkpoint and curve of the first process go there.
        source: tells the data from others; a checkpoint of others is refused.
    """

    def __init__(
        self,
        model: Model,
        teacher: Model | None,
        codebook: Codebook,
        task: str,
        batches: Callable[[int], Iterator[Batch]],
        held_out: Sequence[Batch],
        options: TuneOptions,
        work: Path,
        source: str = "",
    ) -> None:
        options.check_values()
        self.options, self.work, self.batches, self.source = options, work, batches, source
        self.device = pick_device()
        self.held_out = [batch.to(self.device) for batch in held_out]
        if teacher is not None:
            teacher.to(self.device)
        self.model = model.requires_grad_(False)
        book = TunedBook(codebook, options)
        self.objective = Objective(model, book, teacher, task, options).to(self.device)
        weights = self._trained()
        named = dict(book.named_parameters())
        predictions = [one for name, one in named.items() if name.endswith(".predict")]
        others = [one for name, one in named.items() if not name.endswith(".predict")]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": weights, "lr": options.learning_rate, "weight_decay": options.decay},
                {"params": predictions, "lr": options.codebook_rate / 10, "weight_decay": 0},
                {"params": others, "lr": options.codebook_rate, "weight_decay": 0},
            ]
        )
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.module = averaging(self.objective)
        self.step, self.best, self.best_step, self.worse = 0, math.inf, 0, 0
        self.start = self.alone = math.inf
        self.kept: dict[str, Tensor] = {}
        self.seconds = 0.0

    def _trained(self) -> list[nn.Parameter]:
        options = self.options
        if options.trained == "lora":
            return adapt(self.model, options.lora_rank, options.seed)
        if options.trained == "codebook":
            return []
        return list(self.model.requires_grad_(True).parameters())

    @property
    def book(self) -> TunedBook:
        """The codebook in training."""
        return self.objective.book

    def run(self, progress: Progress = lambda done, total, what: None) -> Tuned:
        """Train to the end; the model holds the best weights afterwards.

        Raises:
            CalibrationError: the loss is no number any more.
            ModelError: a checkpoint cannot be written, or is of another run.
        """
        self._resume()
        began, options = time.monotonic() - self.seconds, self.options
        stream = self.batches(self.step)
        stopped = False
        if not self.kept:
            self._check(torch.full((4,), math.nan))  # the start: nothing worse is kept
        parts: list[Tensor] = []
        while self.step < options.steps:
            if options.patience and self.worse >= options.patience:
                stopped = True
                break
            parts.append(self._learn(next(stream).to(self.device)))
            self.step += 1
            progress(self.step, options.steps, f"loss {float(parts[-1][0]):.4f}")
            if self.step % options.check == 0 or self.step == options.steps:
                self.seconds = time.monotonic() - began
                self._check(torch.stack(parts).mean(0))
                parts = []
        checkpoint.put(self.objective, self.kept)
        merge(self.model)
        self.model.requires_grad_(False)
        losses = self.start, self.best, self.alone
        return Tuned(self.book.stored(), self.step, *losses, self.best_step, stopped)

    def _learn(self, batch: Batch) -> Tensor:
        """One step; loss and its parts (4,)."""
        options = self.options
        factor = schedule(self.step, options.steps, options.warmup)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        shared = generator_of(options.seed, self.step, 0)  # the same on all processes
        spec, able = self.model.spec, self.book.codebook.able
        stages = able[int(torch.randint(len(able), (), generator=shared))]
        tokens = _tokens(self.model, batch)
        held = draw_shares(tokens, len(batch), options, shared, spec.has_class_token)
        own = generator_of(options.seed, self.step, 1 + rank())
        with self._precision(), cached(options.trained):
            loss, parts = self.module(batch, held, stages, own)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if not torch.isfinite(loss.detach()):
            raise self._diverged()
        nn.utils.clip_grad_norm_([p for p in self.objective.parameters() if p.requires_grad], 1.0)
        self.optimizer.step()
        return torch.cat([loss.detach()[None], parts])

    def _diverged(self) -> CalibrationError:
        advice = "lower the learning rate" if self.step else "look at the weights and the data"
        return CalibrationError(f"the loss is no number after {self.step} steps: {advice}")

    def _precision(self) -> AbstractContextManager[Any]:
        if self.options.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def _check(self, parts: Tensor) -> None:
        """Measure, keep the best, write the curve and the checkpoint."""
        mesh, alone_loss = self.measure()
        if not math.isfinite(mesh):
            raise self._diverged()
        if self.step == 0:
            self.start = mesh
        if mesh < self.best:
            self.best, self.worse, self.kept = mesh, 0, checkpoint.copy_of(self.objective)
            self.best_step, self.alone = self.step, alone_loss
        else:
            self.worse += 1
        if rank() == 0:
            row = [self.step, self.seconds, *parts.tolist(), mesh, alone_loss]
            self._write_curve(row)
            self._save()
        if dist.is_initialized():
            dist.barrier()

    @torch.no_grad()
    def measure(self) -> tuple[float, float]:
        """Held-out loss under four even shards at the default rate, and on one device.

        The data's loss where there is one, else the distance to the teacher. Each process measures
        its share of the batches, and all of them get the same numbers.
        """
        objective, totals = self.objective, torch.zeros(3)
        stages = self.book.codebook.default_stages
        for batch in self.held_out[rank() :: world()]:
            tokens = _tokens(self.model, batch)
            bounds = even_bounds(tokens, min(EVAL_PEERS, tokens), len(batch))
            distributed = self.options.distributed and self.model.spec.has_class_token
            held = shares(bounds, tokens, distributed=distributed)
            hidden, _ = objective.hidden(batch, held, stages, None)
            mesh = self._loss(objective.answers(self.model, hidden, held), batch)
            single = self._loss(objective.answers(self.model, *alone(self.model, batch)), batch)
            totals += torch.tensor([mesh, single, 1.0]) * len(batch)
        if dist.is_initialized():
            totals = totals.to(self.device)
            dist.all_reduce(totals)
        found = totals[:2] / totals[2].clamp_min(1)
        return float(found[0]), float(found[1])

    def _loss(self, output: Tensor, batch: Batch) -> float:
        data = self.objective.data_loss(output, batch)
        return float(self.objective.distill_loss(output, batch) if data is None else data)

    # --- checkpoints ------------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        options = {key: str(value) for key, value in asdict(self.options).items() if key != "steps"}
        book = self.book.codebook
        return {
            "format": checkpoint.FORMAT,
            "model": book.model,
            "codebook": book.id,
            "options": options,
            "source": self.source,
        }

    def _save(self) -> None:
        state = {
            **self._identity(),
            "step": self.step,
            "start": self.start,
            "best": self.best,
            "alone": self.alone,
            "worse": self.worse,
            "best_step": self.best_step,
            "seconds": self.seconds,
            "state": {k: one.detach() for k, one in checkpoint.learned(self.objective).items()},
            "kept": self.kept,
            "optimizer": self.optimizer.state_dict(),
        }
        checkpoint.write(self.work / CHECKPOINT, state)

    def _resume(self) -> None:
        """From the first process's checkpoint, on all of them."""
        path = self.work / CHECKPOINT
        if not of_first(path.exists):
            if rank() == 0:
                (self.work / CURVE).unlink(missing_ok=True)  # of a run that ended
            return
        state = checkpoint.read(path, self._identity(), self.device)
        checkpoint.put(self.objective, state["state"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.best, self.worse = state["step"], state["best"], state["worse"]
        self.kept, self.seconds = state["kept"], state["seconds"]
        self.best_step = state["best_step"]
        self.start, self.alone = state["start"], state["alone"]

    def _write_curve(self, row: Sequence[float]) -> None:
        path = self.work / CURVE
        rows: list[list[str]] = []
        if path.exists():
            with path.open(newline="", encoding="utf-8") as stream:
                rows = [old for old in list(csv.reader(stream))[1:] if int(old[0]) < self.step]
        rows.append(["" if math.isnan(value) else f"{value:.6g}" for value in row])
        with replacing(path) as part, part.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream, lineterminator="\n").writerows([COLUMNS, *rows])


def _tokens(model: Model, batch: Batch) -> int:
    return model.spec.max_tokens if batch.tokens is None else batch.tokens.shape[1]


def schedule(step: int, steps: int, warmup: float) -> float:
    """Learning-rate factor: linear rise, then linear fall to (almost) zero.

    Codewords follow the weights with a lag that shrinks with the rate: only where it ends near zero
    do they fit each other.
    """
    rise = max(1.0, warmup * steps)
    if step < rise:
        return (step + 1) / (rise + 1)
    return (steps - step) / max(1.0, steps - rise)


def generator_of(seed: int, step: int, stream: int) -> torch.Generator:
    """Fixed by its arguments."""
    number = (seed * 1_000_003 + step) * 4099 + stream
    return torch.Generator().manual_seed(number % (1 << 63))


@contextmanager
def cached(trained: str) -> Iterator[None]:
    """Adapted weights are computed once in a step."""
    if trained == "lora":
        with parametrize.cached():
            yield
    else:
        yield
