"""How much memory a peer takes beside the process that answers alone.

    python -m tools.bench.memory [--models gpt2-124m] [--dtypes bf16 fp32] [--tokens 1024]

Two devices of the laboratory with a peer each, and one worker that answers alone, as in
tools.bench.speed; needs root. Once without more, and once with peers started with `--low-memory`.
After four answers of 128 bits each and a pause in which peers make their tables, the proportional
set size of the processes is read (what processes share counts in parts). Results go to
docs/data/memory.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from astra_mesh.families import read_spec
from astra_mesh.limits import GIVE_BACK_S
from tools.bench import command
from tools.bench.baselines.variants import DTYPES, SINGLE
from tools.bench.rig import Rig
from tools.bench.shifts import MESH
from tools.bench.sizes import CONFIGS, default_cache, ensure, text_limit
from tools.lab import options
from tools.models.common import REPO_ROOT

OUT: Final = REPO_ROOT / "docs" / "data" / "memory.json"
ANSWERS: Final = 4
PEERS: Final = 2
RATE: Final = 100.0  # Mbit/s
WAYS: Final = {"usual": (), "low memory": ("--low-memory",)}


def resident_mib(pid: int) -> float:
    """Proportional set size of a process, in MiB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"process {pid} tells no proportional set size")


def measure(
    model: str, folder: Path, dtype: str, tokens: int, more: Sequence[str]
) -> dict[str, Any]:
    """Peers and the worker after some answers; seconds are medians of the last ones."""
    cores = 0.45 * (os.cpu_count() or 1)
    with Rig(model, folder, PEERS, cores=cores, dtype=dtype, options=more, say=command.say) as rig:
        rig.start(PEERS, 1, RATE)
        alone = [rig.ask_baseline(SINGLE, tokens, 1)["seconds"] for _ in range(ANSWERS)]
        shared = []
        for _ in range(ANSWERS):
            rig.settle()
            shared.append(rig.ask_mesh(tokens, PEERS, MESH["mesh-128"])["seconds"])
        rig.settle()
        time.sleep(GIVE_BACK_S + 1)  # peers give memory back then
        peers, workers = ([resident_mib(one) for one in pids] for pids in rig.pids())
    return {
        "peer_mib": max(peers),
        "single_mib": max(workers),
        "times": max(peers) / max(workers),
        "peer_s": statistics.median(shared[1:]),
        "single_s": statistics.median(alone[1:]),
    }


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command.parser(__doc__, OUT)
    parser.add_argument("--models", nargs="+", choices=sorted(CONFIGS), default=["gpt2-124m"])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["bf16", "fp32"])
    parser.add_argument("--tokens", type=options.within(int, 1), default=1024)
    parser.add_argument("--cache", type=options.folder, default=default_cache())
    args = parser.parse_args(argv)
    for model in args.models:
        limit = text_limit(model)
        if limit is not None and args.tokens > limit:
            parser.error(f"argument --tokens: {args.tokens}, and {model} takes {limit} at most")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; exit statuses of :func:`tools.bench.command.measured`."""
    args = _parsed(argv)
    return command.measured(args, lambda save: _measure_all(args, save), lab=True)


def _measure_all(args: argparse.Namespace, save: command.Save) -> None:
    rows: list[dict[str, Any]] = []
    for model in args.models:
        folder = ensure(model, args.cache)
        tokens = (
            args.tokens if text_limit(model) is not None else read_spec(CONFIGS[model]).max_tokens
        )
        for dtype in args.dtypes:
            for way, more in WAYS.items():
                found = measure(model, folder, dtype, tokens, more)
                rows.append({"model": model, "tokens": tokens, "dtype": dtype, "way": way, **found})
                command.say(
                    f"{model} {dtype} {way}: {found['peer_mib']:.0f} MiB, one device "
                    f"{found['single_mib']:.0f}: {found['times']:.2f} times"
                )
                save({"rows": rows})


if __name__ == "__main__":
    sys.exit(main())
