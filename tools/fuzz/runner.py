"""Runs fuzz targets: in this process, or in several at once."""

from __future__ import annotations

import hashlib
import logging
import os
import time
import traceback
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Final, NamedTuple

from tools.fuzz.mutate import Mutator
from tools.fuzz.targets import TARGETS, Target

FINDINGS: Final = Path("build/fuzz")
GROWTH_BYTES: Final = 64 * 1024 * 1024  # of this process's memory, per target, once it is warm
SLOW_S: Final = 2.0  # one input
_WARM: Final = 500  # inputs before memory is counted: imports and caches
_SEED_STEP: Final = 1_000_003  # between the seeds of two processes


class Finding(Exception):
    """An input that a parser neither took nor refused."""


class Run(NamedTuple):
    """What one process is to do with one target."""

    name: str
    inputs: int
    seconds: float
    seed: int


def fuzz(name: str, target: Target, inputs: int, seconds: float, seed: int) -> tuple[int, int]:
    """Run one target; how many inputs, and by how many bytes the process grew.

    Raises:
        Finding: With the input, in the file that it names.
    """
    mutator = Mutator(target.seeds(), seed)
    for data in target.seeds():
        target.run(data)  # a good input that fails is a mistake of the target; imports take time
    for _ in range(min(_WARM, inputs)):
        try_one(name, target, mutator.next())
    warm, count, end = resident_bytes(), min(_WARM, inputs), time.monotonic() + seconds
    while count < inputs and time.monotonic() < end:
        try_one(name, target, mutator.next())
        count += 1
    growth = resident_bytes() - warm
    if growth > GROWTH_BYTES:
        raise Finding(f"{name}: the process grew by {growth >> 20} MiB in {count} inputs")
    return count, growth


def try_one(name: str, target: Target, data: bytes) -> None:
    """One input; Finding if the parser breaks or takes too long (of the processor's time)."""
    began = time.thread_time()
    try:
        target.run(data)
    except Exception as error:
        raise Finding(f"{name}: {_kept(name, data)}\n{traceback.format_exc()}") from error
    took = time.thread_time() - began
    if took > SLOW_S:
        raise Finding(f"{name}: an input took {took:.1f} s: {_kept(name, data)}")


def _kept(name: str, data: bytes) -> Path:
    FINDINGS.mkdir(parents=True, exist_ok=True)
    path = FINDINGS / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    return path


def resident_bytes() -> int:
    """Memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def work(run: Run) -> tuple[int, int]:
    """One target, in a process of its own; as :func:`fuzz`."""
    be_quiet()
    return fuzz(run.name, TARGETS[run.name], run.inputs, run.seconds, run.seed)


def be_quiet() -> None:
    """What is ignored is also said, once each; and what X.509 will not allow one day."""
    logging.disable()
    warnings.simplefilter("ignore")


def fuzz_all(names: Sequence[str], inputs: int, seconds: float, seed: int, jobs: int) -> None:
    """All targets, each in ``jobs`` processes at once, with a line for each.

    Raises:
        Finding: The first one.
    """
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        for name in names:
            began = time.monotonic()
            share = -(-inputs // jobs)
            runs = [Run(name, share, seconds, seed + _SEED_STEP * job) for job in range(jobs)]
            done = list(pool.map(work, runs) if jobs > 1 else map(work, runs))
            count, growth = sum(count for count, _ in done), max(growth for _, growth in done)
            rate = count / max(time.monotonic() - began, 1e-9)
            memory = f"memory {growth / 2**20:+.1f} MiB"
            print(f"{name:14} {count:12,} inputs, {rate:8,.0f}/s, {memory}", flush=True)
