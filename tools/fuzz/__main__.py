"""``python -m tools.fuzz``: damaged inputs for every parser; stops at the first that breaks one.

With Atheris installed (``--atheris``, one target) its coverage leads the way; without it a seeded
mutator makes the inputs, the same for the same ``--seed``. A finding is written to build/fuzz.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tools.fuzz.mutate import Mutator

if "--atheris" in sys.argv:  # it sees only what is imported under its eyes
    import atheris  # type: ignore[import-not-found, unused-ignore]

    with atheris.instrument_imports(include=["astra_mesh"]):
        from tools.fuzz.targets import TARGETS, Target
else:
    from tools.fuzz.targets import TARGETS, Target

FINDINGS: Final = Path("build/fuzz")
GROWTH_BYTES: Final = 64 * 1024 * 1024  # of this process's memory, per target, once it is warm
SLOW_S: Final = 2.0  # one input
_WARM: Final = 500  # inputs before memory is counted: imports and caches


class Finding(Exception):
    """An input that a parser neither took nor refused."""


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
    """One input; Finding if the parser breaks or takes too long."""
    began = time.monotonic()
    try:
        target.run(data)
    except Exception as error:
        raise Finding(f"{name}: {_kept(name, data)}\n{traceback.format_exc()}") from error
    if time.monotonic() - began > SLOW_S:
        raise Finding(
            f"{name}: an input took {time.monotonic() - began:.1f} s: {_kept(name, data)}"
        )


def _kept(name: str, data: bytes) -> Path:
    FINDINGS.mkdir(parents=True, exist_ok=True)
    path = FINDINGS / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    return path


def resident_bytes() -> int:
    """Memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def with_atheris(name: str, target: Target) -> None:
    """Let Atheris lead, until it finds something or is stopped."""
    corpus = FINDINGS / f"corpus-{name}"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(data)
    atheris.Setup([sys.argv[0], str(corpus), f"-artifact_prefix={FINDINGS}/{name}-"], target.run)
    atheris.Fuzz()


def main(arguments: Sequence[str]) -> int:
    """The command line; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description=__doc__)
    parser.add_argument("--target", choices=TARGETS, action="append", help="default: all")
    parser.add_argument("--inputs", type=int, default=10**9, help="of each target, at most")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each target, at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--atheris", action="store_true", help="with Atheris; name one --target")
    parsed = parser.parse_args(arguments)
    logging.disable()  # what is ignored is also said, once each
    for name in parsed.target or TARGETS:
        if parsed.atheris:
            with_atheris(name, TARGETS[name])
            continue
        began = time.monotonic()
        try:
            count, growth = fuzz(name, TARGETS[name], parsed.inputs, parsed.seconds, parsed.seed)
        except Finding as finding:
            print(finding, file=sys.stderr)
            return 1
        rate = count / max(time.monotonic() - began, 1e-9)
        print(f"{name:14} {count:10,} inputs, {rate:8,.0f}/s, memory {growth / 2**20:+.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
