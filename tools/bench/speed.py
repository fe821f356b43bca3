"""How fast an inference is over several devices: this project beside what it is compared with.

    python -m tools.bench.speed --preset reduced             # what `make bench` runs
    python -m tools.bench.speed --preset bandwidth           # hours
    python -m tools.bench.speed --preset tokens
    python -m tools.bench.speed --models gpt2-124m --peers 4 --rates 10 50 --tokens 1024 \
        --only single mesh-16 voltage-fp16 --rounds 5 --out FOLDER --label trial

Devices are namespaces of this machine (tools/lab) with a share of a core each; peers are real
`astra-mesh peer` processes asked through the client, baselines are processes beside them. Needs
root. Each cell of the grid is measured in rounds; each round has every variant once, in an order of
its own. Where peers and baselines do not fit into the memory together, one runs after the other.
docs/benchmarks.md says what each number means. Results: docs/data/speed-LABEL.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from astra_mesh.families import read_spec
from astra_mesh.families.precision import PRECISIONS
from tools.bench.baselines.variants import DTYPES, SINGLE
from tools.bench.command import BAD, INTERRUPTED, say
from tools.bench.machine import UNAVAILABLE, busy_share, facts, free_gib, hindrance
from tools.bench.rig import Rig, RigError
from tools.bench.shifts import CHOSEN, MESH, VARIANTS, Shift, shifts
from tools.bench.sizes import CONFIGS, FORMS, PLAIN, default_cache, ensure, text_limit
from tools.bench.speed_results import ResultsError, difference, going_on, other_machine, read
from tools.lab import options
from tools.lab.network import DEVICES, require_lab
from tools.lab.scenario import Cores, Delay, Mbps, Seconds
from tools.lab.system import LabError, LabUnavailableError, end_in_order
from tools.models.common import REPO_ROOT

OUT: Final = REPO_ROOT / "docs" / "data"
HEADROOM: Final = 0.9  # of the machine's cores: the rest is for the network and this program
SPARE_GIB: Final = 1.5  # of the free memory, for the kernel, this program and wrong estimates
LEFT_GIB: Final = 0.7  # with less the sweep ends itself, before the kernel ends anything
# Of the results' head.
SETTINGS: Final = ("dtype", "cores", "threads", "rounds", "slow_s", "delay_ms", "codes")
WARM_TRIES: Final = 6  # peers that still load a model when they are first asked are asked again

PRESETS: Final[dict[str, dict[str, Any]]] = {
    "reduced": {
        "models": ["gpt2-124m"],
        "tokens": [256],
        "rates": [10.0, 50.0, 200.0],
        "peers": [1, 2, 4],
        "rounds": 3,
        "slow_s": 8.0,
        "only": [SINGLE, "tensor", "voltage-fp32", "voltage-int4", "block-4", "astra-16",
                 "mesh-16", "mesh-128", CHOSEN],
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
    dtype: str = DTYPES[0]
    memory_gib: float = math.inf  # for all processes
    delay_ms: float = 0.0  # of all that a device sends
    codes: str = PLAIN  # how the memoryless codebook is made

    def settings(self) -> dict[str, Any]:
        """For the head of the results."""
        return {name: getattr(self, name) for name in SETTINGS}

    def tokens_of(self, model: str) -> list[int]:
        """Those that the model takes; one that reads pictures always has the same number."""
        spec = read_spec(CONFIGS[model])
        if not spec.vocab_size:
            return [spec.max_tokens]
        return [count for count in self.tokens if count <= spec.max_tokens]

    def cells(self, model: str, members: int) -> Iterator[Cell]:
        """Of one model and number of devices, rate by rate. One device needs no link: it is
        measured at the first rate."""
        for mbps in self.rates if members > 1 else self.rates[:1]:
            for tokens in self.tokens_of(model):
                yield Cell(model, tokens, mbps, members)

    def variants(self, members: int) -> list[str]:
        """Those that can be measured with so many devices. One device has one plan, whatever its
        codes: of the mesh's variants the one that chooses is measured there, or the first."""
        if members > 1:
            return list(self.only)
        mesh = sorted((name for name in self.only if name in MESH), key=lambda one: one != CHOSEN)
        return [name for name in self.only if name in (SINGLE, *mesh[:1])]


class Bench:
    """Runs a sweep and keeps its rows in a file.

    Args:
        sweep: what is measured.
        path: the file.
        rows: that it has already.
        machine: that those were measured on.
        others: what share of all cores other programs took before it began.
    """

    def __init__(
        self,
        sweep: Sweep,
        path: Path,
        rows: list[dict[str, Any]],
        machine: Mapping[str, Any] | None = None,
        others: float = 0.0,
    ) -> None:
        self._sweep, self._path, self._rows = sweep, path, rows
        self._done = {(*(row[key] for key in Cell._fields), row["variant"]) for row in rows}
        self._warm: set[tuple[str, int]] = set()  # variant, tokens: of the running processes
        self._machine = going_on(machine or {}, facts() | {"others": round(others, 2)})

    def run(self, cache: Path) -> None:
        """All cells that are not in the file yet."""
        sweep = self._sweep
        if self._has_fewer_rounds():
            say(f"cells that are there keep their rounds: none are added to make {sweep.rounds}")
        for model in sweep.models:
            todo = self._todo(model)
            if not todo:
                continue
            require_lab()
            folder = ensure(model, cache, form=sweep.codes)
            say(f"{model}: {max(sweep.peers)} devices with {sweep.cores:.2f} cores each")
            with self._rig(model, folder) as rig:
                try:
                    for shift, cells in todo:
                        self._shift(rig, shift, cells)
                except LabError as error:
                    raise RigError(f"{error}\n{rig.logs()}") from error

    def _rig(self, model: str, folder: Path) -> Rig:
        sweep = self._sweep
        return Rig(
            model,
            folder,
            max(sweep.peers),
            cores=sweep.cores,
            threads=sweep.threads,
            dtype=sweep.dtype,
            delay_ms=sweep.delay_ms,
            say=say,
        )

    def _todo(self, model: str) -> list[tuple[Shift, list[Cell]]]:
        """What is not in the file yet; the base of the ratios is measured with it again."""
        sweep, found = self._sweep, list[tuple[Shift, list[Cell]]]()
        for members in sweep.peers:
            for shift in shifts(sweep.variants(members), members, sweep.memory_gib):
                cells: dict[Shift, list[Cell]] = {}
                for cell in sweep.cells(model, members):
                    missing = [one for one in shift.own if (*cell, one) not in self._done]
                    if missing:
                        cells.setdefault(shift.only(missing), []).append(cell)
                found += cells.items()
        return found

    def _has_fewer_rounds(self) -> bool:
        """Whether a cell of the file has fewer than are wanted, and not for being slow."""
        last = {
            (*(row[key] for key in Cell._fields), row["variant"], row.get("shift")): row
            for row in self._rows
        }
        wanted, slow_s = self._sweep.rounds, self._sweep.slow_s
        return any(row["round"] + 1 < wanted and row["seconds"] <= slow_s for row in last.values())

    def _shift(self, rig: Rig, shift: Shift, cells: Sequence[Cell]) -> None:
        """The cells of one model and number of devices, rate by rate."""
        rate = cells[0].mbps
        what = f"{shift.peers} peers, {shift.workers} workers, {rate:g} Mbit/s"
        say(f"{what}: {', '.join(shift.names)}")
        if shift.gib > self._sweep.memory_gib:
            have = self._sweep.memory_gib
            say(f"warning: they may take {shift.gib:.0f} GiB of memory, and there is {have:.0f}")
        rig.start(shift.peers, shift.workers, rate)
        self._warm.clear()
        for cell in cells:
            if cell.mbps != rate:
                rate = cell.mbps
                say(f"{cell.model}: {rate:g} Mbit/s")
                rig.set_rate(rate)
            self._cell(rig, cell, shift)
            self.save()

    def _cell(self, rig: Rig, cell: Cell, shift: Shift) -> None:
        """All rounds of a cell, each with an order of its own."""
        for name in shift.names:
            self._warm_up(rig, cell, name)
        kind = shift.kind
        slow: set[str] = set()
        for turn in range(self._sweep.rounds):
            order = [name for name in shift.names if name not in slow]
            random.Random(f"{self._sweep.seed}/{cell}/{turn}").shuffle(order)
            for place, name in enumerate(order):
                rig.settle()
                found = ask(rig, cell, name)
                at = {"variant": name, "shift": kind, "round": turn, "order": place}
                self._rows.append(cell._asdict() | at | found)
                say(f"  {cell.members} x {cell.tokens} tokens, {name}: {found['seconds']:.3f} s")
                if found["seconds"] > self._sweep.slow_s and name != SINGLE:
                    slow.add(name)  # the base of all ratios has every round

    def _warm_up(self, rig: Rig, cell: Cell, name: str) -> None:
        """An answer that does not count, once for a variant and number of tokens."""
        key = name, cell.tokens
        for attempt in range(WARM_TRIES if key not in self._warm else 0):
            try:
                ask(rig, cell, name)
                break
            except RigError as error:
                say(f"  warming up {name}: {error}")
                if attempt == WARM_TRIES - 1:
                    raise
        self._warm.add(key)

    def save(self) -> None:
        """Write the file anew."""
        settings = self._sweep.settings()
        document = {"machine": self._machine, "settings": settings, "rows": self._rows}
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(document, separators=(",", ":")) + "\n", encoding="utf-8")
        part.replace(self._path)


def ask(rig: Rig, cell: Cell, name: str) -> dict[str, Any]:
    """One answer of one variant; RigError also where memory is about to run out."""
    if 0 < (free := free_gib()) < LEFT_GIB:
        raise RigError(f"only {free:.1f} GiB of memory are left: ask for fewer variants or devices")
    if name in MESH:
        return rig.ask_mesh(cell.tokens, cell.members, MESH[name])
    return rig.ask_baseline(name, cell.tokens, cell.members)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=sorted(PRESETS), help="options below change it")
    parser.add_argument("--models", nargs="+", choices=sorted(CONFIGS))
    count, slow = options.within(int, 1), options.as_annotated(Seconds)
    devices = options.within(int, 1, DEVICES)
    rate, delay = options.as_annotated(Mbps), options.as_annotated(Delay)
    parser.add_argument("--tokens", nargs="+", type=count)
    parser.add_argument("--rates", nargs="+", type=rate, help="Mbit/s of each device, each way")
    parser.add_argument("--peers", nargs="+", type=devices, help="numbers of devices")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, metavar="VARIANT")
    parser.add_argument("--rounds", type=count)
    above = "what takes longer has one round only, one device aside"
    parser.add_argument("--slow-s", type=slow, help=above)
    cores = options.as_annotated(Cores)
    parser.add_argument("--cores", type=cores, help="of each device; default: an equal share")
    parser.add_argument("--threads", type=count, default=1, help="of torch in each process")
    dtype = "of peers and baselines; tensor has the first two only"
    parser.add_argument("--dtype", choices=PRECISIONS, default=DTYPES[0], help=dtype)
    parser.add_argument("--delay-ms", type=delay, default=0.0, help="of all that a device sends")
    codes = "of mesh-128: plain, of half the coordinates, with the first block coded, too, or both"
    parser.add_argument("--codes", choices=sorted(FORMS), default=PLAIN, help=codes)
    memory = "for all processes; default: what is free"
    parser.add_argument("--memory-gib", type=options.above_zero, help=memory)
    parser.add_argument("--seed", type=int, default=0, help="of the orders")
    label = "of the results; default: the preset and the dtype"
    parser.add_argument("--label", type=options.name_part, help=label)
    parser.add_argument("--out", type=options.folder, default=OUT)
    parser.add_argument("--cache", type=options.folder, default=default_cache())
    known = parser.add_mutually_exclusive_group()
    known.add_argument("--resume", action="store_true", help="keep the cells that are there")
    known.add_argument("--replace", action="store_true", help="begin results of this label anew")
    parser.add_argument("--busy", action="store_true", help="also on a busy machine (no results!)")
    return parser


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, with those of the preset where nothing else was said."""
    parser = _parser()
    args = parser.parse_args(argv)
    chosen = PRESETS["reduced"] | DEFAULTS | PRESETS.get(args.preset, {})
    for name, value in chosen.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.dtype not in DTYPES and "tensor" in args.only:
        parser.error(
            f"argument --dtype: tensor cannot compute in {args.dtype}: leave it out (--only)"
        )
    if args.label is None:
        args.label = args.preset or "trial"
        args.label += "" if args.dtype == DTYPES[0] else f"-{args.dtype}"
    limits = [limit for model in args.models if (limit := text_limit(model)) is not None]
    if limits and max(args.tokens) > max(limits):
        parser.error(
            f"argument --tokens: {max(args.tokens)}, and models take {max(limits)} at most"
        )
    if max(args.peers) == 1 and not {SINGLE, *MESH} & set(args.only):
        parser.error("argument --only: nothing of that can be measured with one device")
    have, devices = os.cpu_count() or 1, max(args.peers)
    if args.cores and args.cores * devices > have and not args.busy:
        parser.error(
            f"argument --cores: {args.cores:g} for each of {devices} devices, and this machine "
            f"has {have}"
        )
    return args


def sweep_of(args: argparse.Namespace) -> Sweep:
    """The sweep that the command line asks for."""
    share = HEADROOM * (os.cpu_count() or 1) / max(args.peers)
    return Sweep(
        models=list(dict.fromkeys(args.models)),
        tokens=list(dict.fromkeys(args.tokens)),
        rates=list(dict.fromkeys(args.rates)),
        peers=sorted(set(args.peers)),
        only=list(dict.fromkeys(args.only)),
        rounds=args.rounds,
        slow_s=args.slow_s,
        cores=args.cores or min(1.0, share),
        threads=args.threads,
        seed=args.seed,
        dtype=args.dtype,
        memory_gib=args.memory_gib or free_gib() - SPARE_GIB,
        delay_ms=args.delay_ms,
        codes=args.codes,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; 1 where the machine is busy, the file to resume has other settings or is
    another machine's, or the laboratory fails; 2 for bad options and files, and where results of
    that label are there; 3 where there can be no laboratory."""
    args = _parsed(argv)
    sweep, path = sweep_of(args), args.out / f"speed-{args.label}.json"
    try:
        before = read(path) if args.resume and path.exists() else None
        other = before and (
            difference(path, before.settings, sweep.settings())
            or other_machine(path, before.machine, facts())
        )
    except ResultsError as error:
        say(f"error: {error}")
        return BAD
    if other:
        say(other)
        return 1
    if path.exists() and not (args.resume or args.replace):
        say(f"{path} is there: --resume goes on with it, --replace begins it anew, or --label")
        return BAD
    others = busy_share()
    if status := hindrance(busy=args.busy, share=others):
        return status
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        rows, machine = (before.rows, before.machine) if before else ([], None)
        Bench(sweep, path, rows, machine, others).run(args.cache)
    except LabError as error:
        say(f"error: {error}")
        return UNAVAILABLE if isinstance(error, LabUnavailableError) else 1
    except KeyboardInterrupt:
        kept = f", --resume goes on with the cells in {path}" if path.exists() else ""
        say(f"interrupted; nothing is left running{kept}")
        return INTERRUPTED
    say(f"results: {path}")
    return 0


if __name__ == "__main__":
    end_in_order()
    sys.exit(main())
