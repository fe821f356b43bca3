"""``python -m tools.fuzz``: damaged inputs for every parser; stops at the first that breaks one.

``--jobs 4`` runs each target in four processes, each with inputs of its own.
With Atheris installed (``--atheris``, one target) its coverage leads the way; without it a seeded
mutator makes the inputs, the same for the same ``--seed``. A finding is written to build/fuzz.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

if "--atheris" in sys.argv:  # it sees only what is imported under its eyes
    try:
        import atheris  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        sys.exit("--atheris: Atheris is not installed (pip install atheris); leave it out to fuzz")
    with atheris.instrument_imports(include=["astra_mesh"]):
        from tools.fuzz.targets import TARGETS, Target
else:
    from tools.fuzz.targets import TARGETS, Target
from tools.fuzz.runner import FINDINGS, Finding, be_quiet, fuzz_all


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
    parser.add_argument("--jobs", type=int, default=1, help="processes for each target")
    parser.add_argument("--atheris", action="store_true", help="with Atheris; name one --target")
    parsed = parser.parse_args(arguments)
    be_quiet()
    names = parsed.target or list(TARGETS)
    if parsed.atheris:
        with_atheris(names[0], TARGETS[names[0]])
    try:
        fuzz_all(names, parsed.inputs, parsed.seconds, parsed.seed, max(1, parsed.jobs))
    except Finding as finding:
        print(finding, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
