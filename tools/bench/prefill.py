"""Seconds of one device's prefill: the engine beside transformers, in one thread.

    python -m tools.bench.prefill [--models NAME ...] [--dtypes fp32 bf16] [--rounds 7]

Both compute the same model (random weights, true sizes: :mod:`tools.bench.sizes`) in the same
number format and process, in turns: a round is each of them once. A prefill is from the tokens of
the prompt to the logits that the first new token is drawn from, and keeps what the next tokens
need. ``ratio`` is transformers' seconds over the engine's, the median over rounds; ``apart`` is how
far the logits of both are from each other at most, in standard deviations of the logits.
Results go to docs/data/prefill.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from astra_mesh.engine.reference import run_solo
from astra_mesh.families import Model, ModelInput
from astra_mesh.families.packed import can_pack
from astra_mesh.families.precision import Precision
from tools.bench import command
from tools.bench.baselines.variants import DTYPES
from tools.bench.decode import MODELS, loaded, reference
from tools.bench.sizes import CONFIGS, default_cache, ensure, random_tokens
from tools.lab import options
from tools.models.common import REPO_ROOT

OUT: Final = REPO_ROOT / "docs" / "data" / "prefill.json"
TOKENS: Final = {"gpt2-124m": 1024, "llama-125m": 512}  # of the prompt


class Row(NamedTuple):
    """What was measured of one model in one format; seconds are medians."""

    model: str
    tokens: int
    dtype: str
    engine_s: float
    transformers_s: float
    ratio: float
    apart: float


@torch.inference_mode()
def engine(model: Model, prompt: Tensor) -> Tensor:
    """Logits (V,) after the last token of a prompt (T,)."""
    run = run_solo(model, ModelInput(tokens=prompt), "last", spare=1)
    return model.logits(model.final(run.x[-1:]))[0]


@torch.inference_mode()
def plain(model: Any, prompt: Tensor) -> Tensor:
    """The same of transformers, which computes the logits of the last token only, too."""
    found: Tensor = model(prompt[None], use_cache=True, logits_to_keep=1).logits
    return found[0, -1]


def measure(name: str, dtype: Precision, rounds: int, cache: Path) -> Row:
    """One model in one format."""
    folder = ensure(name, cache) / name
    ours, theirs = loaded(folder, dtype), reference(folder, dtype)
    prompt = torch.tensor(random_tokens(CONFIGS[name]["vocab_size"], TOKENS[name]))
    one, other = engine(ours, prompt).float(), plain(theirs, prompt).float()  # warms up, too
    times = [
        (_seconds(lambda: engine(ours, prompt)), _seconds(lambda: plain(theirs, prompt)))
        for _ in range(rounds)
    ]
    return Row(
        model=name,
        tokens=len(prompt),
        dtype=dtype,
        engine_s=statistics.median(mine for mine, _ in times),
        transformers_s=statistics.median(its for _, its in times),
        ratio=statistics.median(its / mine for mine, its in times),
        apart=float((one - other).abs().max() / other.std()),
    )


def _seconds(do: Callable[[], object]) -> float:
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def able() -> tuple[str, ...]:
    """The formats that this processor has instructions for."""
    return DTYPES if can_pack(torch.bfloat16) else DTYPES[:1]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; exit statuses of :func:`tools.bench.command.measured`."""
    parser = command.parser(__doc__, OUT)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    default = "(default: those that the processor has)"
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=able(), help=default)
    parser.add_argument("--rounds", type=options.within(int, 1), default=7)
    parser.add_argument("--cache", type=options.folder, default=default_cache())
    given = parser.parse_args(argv)
    return command.measured(given, lambda save: _measure_all(given, save))


def _measure_all(given: argparse.Namespace, save: command.Save) -> None:
    torch.set_num_threads(1)
    print(f"{'model':12} {'tokens':>6} {'dtype':5} {'engine':>9} {'transformers':>12} {'ratio':>6}")
    rows = []
    for name in given.models:
        for dtype in given.dtypes:
            row = measure(name, dtype, given.rounds, given.cache)
            rows.append(row._asdict())
            print(
                f"{row.model:12} {row.tokens:6} {row.dtype:5} {row.engine_s:7.3f} s "
                f"{row.transformers_s:10.3f} s {row.ratio:6.2f}",
                flush=True,
            )
            save({"machine": {"threads": 1}, "rounds": given.rounds, "rows": rows})


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
