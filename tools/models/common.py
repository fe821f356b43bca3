"""Helpers shared by the training recipes: transformer block, optimiser, schedule, checkpoints, log.

Sources:
    * pre-LN transformer block: Vaswani et al. 2017 (arXiv:1706.03762), Dosovitskiy et al. 2020
      (arXiv:2010.11929), Radford et al. 2019 (GPT-2);
    * Muon, the momentum step orthogonalised by Newton-Schulz iterations: Jordan et al. 2024
      (kellerjordan.github.io/posts/muon), scaled to AdamW's step size as in Liu et al. 2025
      (arXiv:2502.16982);
    * AdamW: Loshchilov & Hutter 2017 (arXiv:1711.05101);
    * learning rate falling linearly to zero: Bergsma et al. 2025 (arXiv:2502.15938).
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from tools.lab import options

REPO_ROOT = Path(__file__).resolve().parents[2]
Program = Callable[[argparse.Namespace], None]


def default_data_root() -> Path:
    """The folder of development data: $ASTRA_MESH_DATA, or shared/data beside the repository."""
    chosen = os.environ.get("ASTRA_MESH_DATA")
    return Path(chosen) if chosen else REPO_ROOT.parent / "shared" / "data"


def training_parser(doc: str, model: str, *, steps: int, check: int) -> argparse.ArgumentParser:
    """The options that all training programs have.

    Args:
        doc: The program's documentation.
        model: Its folder's name below models/.
        steps: To train, where nothing else is said.
        check: Steps between two checkpoints.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    work = Path(tempfile.gettempdir()) / f"{model}-run"
    parser.add_argument("--data", type=options.existing_folder, default=str(default_data_root()))
    parser.add_argument("--out", type=Path, default=REPO_ROOT / "models" / model)
    parser.add_argument("--work", type=Path, default=work)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--check", type=int, default=check, help="steps between checkpoints")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's own choice")
    parser.add_argument("--evaluate", action="store_true", help="only measure --out")
    return parser


def run(parser: argparse.ArgumentParser, train: Program, evaluate: Program) -> None:
    """Do what the command line asks for."""
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    evaluate(args) if args.evaluate else train(args)


def pick_device(name: str) -> torch.device:
    """Turns 'auto' into cuda where there is one, else cpu."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 autocast on cuda; float32 on the CPU, where bfloat16 brings nothing."""
    if device.type == "cuda":
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return nullcontext()


def step_generator(seed: int, stream: int, index: int) -> torch.Generator:
    """A generator fixed by (seed, stream, index), so that a resumed run draws the same numbers."""
    generator = torch.Generator()
    generator.manual_seed((seed * 1_000_003 + stream) * 10_000_019 + index)
    return generator


class Block(nn.Module):
    """Pre-LN transformer block with separate query, key and value projections."""

    def __init__(
        self, dim: int, heads: int, *, causal: bool, gelu: str, dropout: float, eps: float
    ) -> None:
        super().__init__()
        self.heads, self.causal, self.gelu, self.dropout = heads, causal, gelu, dropout
        self.ln1 = nn.LayerNorm(dim, eps=eps)
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.ln2 = nn.LayerNorm(dim, eps=eps)
        self.up = nn.Linear(dim, 4 * dim)
        self.down = nn.Linear(4 * dim, dim)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, -1).transpose(1, 2)

    def attend(self, x: Tensor) -> Tensor:
        """Multi-head attention over x of shape (batch, tokens, dim)."""
        y = F.scaled_dot_product_attention(
            self._split(self.query(x)),
            self._split(self.key(x)),
            self._split(self.value(x)),
            is_causal=self.causal,
        )
        mixed: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return F.dropout(mixed, self.dropout, self.training)

    def forward(self, x: Tensor) -> Tensor:
        """X of shape (batch, tokens, dim) to the same shape."""
        x = x + self.attend(self.ln1(x))
        hidden = F.gelu(self.up(self.ln2(x)), approximate=self.gelu)
        change: Tensor = self.down(hidden)
        return x + F.dropout(change, self.dropout, self.training)


def orthogonalise(g: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz: brings the singular values of each matrix of g (n, rows, cols) near one."""
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = g.shape[1] <= g.shape[2]
    x = g if wide else g.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x if wide else x.mT
    return result


class Muon:
    """Muon for equal-shaped groups of matrices, in float32 (a CPU has no fast bfloat16 product)."""

    def __init__(self, weights: list[nn.Parameter], momentum: float, decay: float) -> None:
        shapes = sorted({tuple(w.shape) for w in weights})
        self.groups = [[w for w in weights if tuple(w.shape) == shape] for shape in shapes]
        self.buffers = [torch.zeros_like(torch.stack(list(group))) for group in self.groups]
        self.momentum, self.decay = momentum, decay

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One step; the update has the root mean square 0.2 lr that AdamW's typically has."""
        for group, buffer in zip(self.groups, self.buffers, strict=True):
            grads = torch.stack([w.grad for w in group if w.grad is not None])
            buffer.lerp_(grads, 1 - self.momentum)
            update = orthogonalise(grads.lerp(buffer, self.momentum))
            scale = 0.2 * max(buffer.shape[1:]) ** 0.5
            for weight, delta in zip(group, update, strict=True):
                weight.mul_(1 - lr * self.decay).add_(delta, alpha=-lr * scale)


class Optimiser:
    """Muon for the matrices of the blocks, AdamW for all else, and an average of the weights."""

    def __init__(self, model: nn.Module, *, decay: float, ema: float, momentum: float = 0.95):
        named = list(model.named_parameters())
        matrices = [p for n, p in named if n.startswith("blocks.") and p.ndim == 2]
        chosen = {id(p) for p in matrices}
        others = [p for _, p in named if id(p) not in chosen]
        self.muon = Muon(matrices, momentum, decay)
        self.adam = torch.optim.AdamW(
            [
                {"params": [p for p in others if p.ndim > 1], "weight_decay": decay},
                {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
            ],
            betas=(0.9, 0.98),
        )
        self.ema, self.model = ema, model
        self.average = {n: p.detach().clone() for n, p in named}

    def step(self, muon_lr: float, adam_lr: float, count: int) -> float:
        """Clips, steps and averages; count is the number of steps done before. Gradient norm."""
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.adam.param_groups:
            group["lr"] = adam_lr
        self.muon.step(muon_lr)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        self.model.zero_grad(set_to_none=True)
        rate = min(self.ema, (1 + count) / (10 + count))
        with torch.no_grad():
            for name, weight in self.model.named_parameters():
                self.average[name].lerp_(weight, 1 - rate)
        return float(norm)

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs."""
        return {"buffers": self.muon.buffers, "adam": self.adam.state_dict(), "ema": self.average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of state_dict."""
        for mine, saved in zip(self.muon.buffers, state["buffers"], strict=True):
            mine.copy_(saved)
        self.adam.load_state_dict(state["adam"])
        for name, tensor in state["ema"].items():
            self.average[name].copy_(tensor)


def one_cycle(step: int, steps: int, warmup: float = 0.06) -> float:
    """Learning-rate factor: linear rise over the warm-up fraction, then linear fall to zero."""
    rise = max(1.0, warmup * steps)
    return min((step + 1) / rise, (steps - step) / max(1.0, steps - rise), 1.0)


def save_checkpoint(path: Path, model: nn.Module, optimiser: Optimiser, step: int) -> None:
    """Writes through a temporary file: an interrupted write leaves the old checkpoint."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step}
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def load_checkpoint(path: Path, model: nn.Module, optimiser: Optimiser) -> int:
    """Restores a run; the number of steps done, 0 where there is no checkpoint."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"])


def write_weights(weights: Mapping[str, Tensor], out: Path) -> None:
    """Writes model.safetensors in float16, which halves it; drops what belonged to others."""
    out.mkdir(parents=True, exist_ok=True)
    halves = {name: tensor.detach().cpu().half().contiguous() for name, tensor in weights.items()}
    save_file(halves, out / "model.safetensors", metadata={"format": "pt"})
    for name in ("manifest.json", "codebook.safetensors"):  # of other weights: fit them anew
        (out / name).unlink(missing_ok=True)


class Curve:
    """The training curve as a CSV file, its first columns step and seconds.

    A resumed run drops the rows past its checkpoint and counts on from their seconds.
    """

    def __init__(self, path: Path, columns: list[str], start: int) -> None:
        self.path, self.columns = path, columns
        kept: list[list[str]] = []
        if start and path.exists():
            with path.open(newline="") as stream:
                kept = [row for row in list(csv.reader(stream))[1:] if int(row[0]) <= start]
        self.seconds = float(kept[-1][1]) if kept else 0.0
        self._write("w", [columns, *kept])

    def _write(self, mode: str, rows: list[list[str]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open(mode, newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows(rows)

    def add(self, *row: float) -> None:
        """Appends one row; its seconds are those of this process."""
        row = (row[0], self.seconds + row[1], *row[2:])
        self._write("a", [[f"{value:.6g}" for value in row]])

    def column(self, name: str) -> list[float]:
        """The values of a column so far."""
        with self.path.open(newline="") as stream:
            return [float(row[name]) for row in csv.DictReader(stream)]


class Reporter:
    """A rich progress bar on a terminal, plain lines otherwise."""

    def __init__(self, title: str, total: int, start: int, every: int = 50) -> None:
        self.total, self.start, self.every = total, start, every
        self.began = time.monotonic()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            disable=not sys.stdout.isatty(),
        )
        self.task = self.bar.add_task(title, total=total, completed=start, note="")

    def __enter__(self) -> Reporter:
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def steps(self) -> Iterator[int]:
        """The steps still to do, counted from one."""
        yield from range(self.start + 1, self.total + 1)

    @property
    def elapsed(self) -> float:
        """Seconds since this process began to train."""
        return time.monotonic() - self.began

    def advance(self, done: int, note: str) -> None:
        """Tells that so many steps are done."""
        self.bar.update(self.task, completed=done, note=note)
        if self.bar.disable and done % self.every == 0:
            self.say(f"step {done}/{self.total} {self.elapsed:.0f} s {note}")

    def say(self, line: str) -> None:
        """Prints a line without disturbing the bar."""
        if self.bar.disable:
            print(line, flush=True)
        else:
            self.bar.console.print(line)
