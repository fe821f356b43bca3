"""How fast an inference is over several devices: this project beside what it is compared with.

    python -m tools.bench.speed --preset reduced             # what `make bench` runs
    python -m tools.bench.speed --preset bandwidth           # hours
    python -m tools.bench.speed --preset tokens
    python -m tools.bench.speed --models gpt2-124m --peers 4 --rates 10 50 --tokens 1024 \
        --only single mesh-16 voltage-fp16 --rounds 5 --out FOLDER --label trial

Devices are namespaces of this machine (tools/lab) with a share of a core each; peers are real
`astra-mesh peer` processes asked through the client, baselines are processes beside them. Needs
root. Each cell of the grid is measured in rounds; each round has every variant once, in an order of
its own. docs/benchmarks.md says what each number means. Results: docs/data/speed-LABEL.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from astra_mesh.families import read_spec
from tools.bench.baselines.variants import NAMES, SINGLE
from tools.bench.machine import BUSY, busy_share, facts
from tools.bench.rig import Rig, RigError
from tools.bench.sizes import CONFIGS, default_cache, ensure
from tools.models.common import REPO_ROOT

OUT: Final = REPO_ROOT / "docs" / "data"
HEADROOM: Final = 0.9  # of the machine's cores: the rest is for the network and this program
WARM_TRIES: Final = 6  # peers that still load a model when they are first asked are asked again

# Ours by name: codec, and bits per token and block (0: the codec has one rate).
MESH: Final[dict[str, tuple[str, int]]] = {
    "mesh-16": ("vq", 16),
    "mesh-32": ("vq", 32),
    "mesh-128": ("vq", 128),
    "mesh-int8": ("int8", 0),
    "mesh-fp16": ("fp16", 0),
}
VARIANTS: Final = (*NAMES, *MESH)
PRESETS: Final[dict[str, dict[str, Any]]] = {
    "reduced": {
        "models": ["gpt2-124m"],
        "tokens": [256],
        "rates": [10.0, 50.0, 200.0],
        "peers": [1, 2, 4],
        "rounds": 3,
        "slow_s": 8.0,
        "only": [SINGLE, "tensor", "voltage-fp32", "voltage-int4", "block-4", "astra-16",
                 "mesh-16", "mesh-128"],
    },
    "bandwidth": {
        "models": ["vit-base-1024", "gpt2-124m", "llama-125m"],
        "tokens": [1024],
        "rates": [10.0, 20.0, 50.0, 100.0, 200.0, 500.0],
        "peers": [1, 2, 4, 8],
    },
    "tokens": {
        "models": ["gpt2-124m", "llama-125m"],
        "tokens": [128, 256, 512, 1024, 2048, 4096],
        "rates": [50.0],
        "peers": [4],
    },
    "picture": {
        "models": ["vit-base"],
        "tokens": [197],
        "rates": [10.0, 20.0, 50.0, 100.0, 200.0, 500.0],
        "peers": [1, 2, 4, 8],
    },
}  # fmt: skip
DEFAULTS: Final[dict[str, Any]] = {"only": list(VARIANTS), "rounds": 5, "slow_s": 60.0}


class Cell(NamedTuple):
    """One point of the grid; its rounds are comparable."""

    model: str
    tokens: int
    mbps: float
    members: int


@dataclass(frozen=True)
class Sweep:
    """What is measured."""

    models: Sequence[str]
    tokens: Sequence[int]
    rates: Sequence[float]
    peers: Sequence[int]
    only: Sequence[str]
    rounds: int
    slow_s: float
    cores: float
    threads: int
    seed: int

    def tokens_of(self, model: str) -> list[int]:
        """Those that the model takes; one that reads pictures always has the same number."""
        spec = read_spec(CONFIGS[model])
        if not spec.vocab_size:
            return [spec.max_tokens]
        return [count for count in self.tokens if count <= spec.max_tokens]

    def cells(self, model: str, mbps: float) -> Iterator[Cell]:
        """Of one model and rate. One device needs no link: it is measured at the first rate."""
        for members in self.peers:
            if members > 1 or mbps == self.rates[0]:
                for tokens in self.tokens_of(model):
                    yield Cell(model, tokens, mbps, members)

    def variants(self, members: int) -> list[str]:
        """Those that can be measured with so many devices."""
        if members == 1:
            return [name for name in self.only if name == SINGLE or name in list(MESH)[:1]]
        return list(self.only)


class Bench:
    """Runs a sweep and keeps its rows in a file."""

    def __init__(self, sweep: Sweep, path: Path, rows: list[dict[str, Any]]) -> None:
        self._sweep, self._path, self._rows = sweep, path, rows
        self._done = {tuple(row[key] for key in Cell._fields) for row in rows}
        self._warm: set[tuple[str, int, int]] = set()  # variant, members, tokens
        self._machine = facts()

    def run(self, cache: Path) -> None:
        """All cells that are not in the file yet."""
        sweep = self._sweep
        for model in sweep.models:
            todo = [c for rate in sweep.rates for c in sweep.cells(model, rate) if not self._has(c)]
            if not todo:
                continue
            folder = ensure(model, cache)
            self._warm.clear()
            with (
                tempfile.TemporaryDirectory(prefix="astra-mesh-speed-") as work,
                self._rig(model, folder, Path(work)) as rig,
            ):
                try:
                    self._model(rig, todo)
                except RigError as error:
                    raise RigError(f"{error}\n{logs(Path(work))}") from error

    def _rig(self, model: str, folder: Path, work: Path) -> Rig:
        sweep = self._sweep
        say(f"{model}: starting {max(sweep.peers)} devices with {sweep.cores:.2f} cores each")
        return Rig(
            model,
            folder,
            max(sweep.peers),
            cores=sweep.cores,
            work=work,
            threads=sweep.threads,
            mesh=any(name in MESH for name in sweep.only),
            workers=any(name in NAMES for name in sweep.only),
        )

    def _has(self, cell: Cell) -> bool:
        return tuple(cell) in self._done

    def _model(self, rig: Rig, todo: Sequence[Cell]) -> None:
        rate = None
        for cell in todo:
            if cell.mbps != rate:
                rate = cell.mbps
                say(f"{cell.model}: {rate:g} Mbit/s")
                rig.set_rate(rate)
            self._cell(rig, cell)
            self._save()

    def _cell(self, rig: Rig, cell: Cell) -> None:
        """All rounds of a cell, each with an order of its own."""
        names = self._sweep.variants(cell.members)
        for name in names:
            self._warm_up(rig, cell, name)
        slow: set[str] = set()
        for turn in range(self._sweep.rounds):
            order = [name for name in names if name not in slow]
            random.Random(f"{self._sweep.seed}/{cell}/{turn}").shuffle(order)
            for place, name in enumerate(order):
                found = ask(rig, cell, name)
                row = cell._asdict() | {"variant": name, "round": turn, "order": place} | found
                self._rows.append(row)
                say(f"  {cell.members} x {cell.tokens} tokens, {name}: {found['seconds']:.3f} s")
                if found["seconds"] > self._sweep.slow_s:
                    slow.add(name)

    def _warm_up(self, rig: Rig, cell: Cell, name: str) -> None:
        """An answer that does not count, once for a variant, number of devices and of tokens."""
        key = name, cell.members, cell.tokens
        for attempt in range(WARM_TRIES if key not in self._warm else 0):
            try:
                ask(rig, cell, name)
                break
            except RigError as error:
                say(f"  warming up {name}: {error}")
                if attempt == WARM_TRIES - 1:
                    raise
        self._warm.add(key)

    def _save(self) -> None:
        settings = {
            name: getattr(self._sweep, name) for name in ("cores", "threads", "rounds", "slow_s")
        }
        document = {"machine": self._machine, "settings": settings, "rows": self._rows}
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(document, separators=(",", ":")) + "\n", encoding="utf-8")
        part.replace(self._path)


def ask(rig: Rig, cell: Cell, name: str) -> dict[str, Any]:
    """One answer of one variant."""
    if name in MESH:
        return rig.ask_mesh(cell.tokens, cell.members, *MESH[name])
    return rig.ask_baseline(name, cell.tokens, cell.members)


def logs(work: Path) -> str:
    """The last lines that the processes wrote."""
    found = []
    for path in sorted(work.glob("*.log")):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
        found.append("\n".join([f"--- {path.stem}", *lines]))
    return "\n".join(found)


def say(text: str) -> None:
    """A line for whoever waits."""
    print(text, file=sys.stderr, flush=True)


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a results file; none if it is not there."""
    if not path.exists():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert isinstance(found, list)
    return found


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=sorted(PRESETS), help="options below change it")
    parser.add_argument("--models", nargs="+", choices=sorted(CONFIGS))
    parser.add_argument("--tokens", nargs="+", type=int)
    parser.add_argument("--rates", nargs="+", type=float, help="Mbit/s of each device, each way")
    parser.add_argument("--peers", nargs="+", type=int, help="numbers of devices")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, metavar="VARIANT")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--slow-s", type=float, help="a variant above it has one round only")
    parser.add_argument("--cores", type=float, help="of each device; default: an equal share")
    parser.add_argument("--threads", type=int, default=1, help="of torch in each process")
    parser.add_argument("--seed", type=int, default=0, help="of the orders")
    parser.add_argument("--label", help="of the results; default: the preset's name")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--resume", action="store_true", help="keep the cells that are there")
    parser.add_argument("--busy", action="store_true", help="also on a busy machine (no results!)")
    args = parser.parse_args(argv)
    chosen = PRESETS["reduced"] | DEFAULTS | PRESETS.get(args.preset, {})
    for name, value in chosen.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def sweep_of(args: argparse.Namespace) -> Sweep:
    """The sweep that the command line asks for."""
    share = HEADROOM * (os.cpu_count() or 1) / max(args.peers)
    return Sweep(
        models=args.models,
        tokens=args.tokens,
        rates=args.rates,
        peers=sorted(args.peers),
        only=args.only,
        rounds=args.rounds,
        slow_s=args.slow_s,
        cores=args.cores or min(1.0, share),
        threads=args.threads,
        seed=args.seed,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; 1 where the machine is busy."""
    args = _parsed(argv)
    busy = busy_share()
    if busy > BUSY and not args.busy:
        say(f"other programs use {busy:.0%} of the cores: nothing is measured (--busy does it)")
        return 1
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"speed-{args.label or args.preset or 'trial'}.json"
    bench = Bench(sweep_of(args), path, rows_of(path) if args.resume else [])
    bench.run(args.cache)
    say(f"results: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
