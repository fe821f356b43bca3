"""What the benchmarks' commands share: options, what keeps them from measuring, results."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from tools.bench import machine
from tools.lab import options
from tools.lab.system import LabError, LabUnavailableError, end_in_order

BAD: Final = 2  # exit status of bad options, and where results are there
INTERRUPTED: Final = 130

Document = Mapping[str, Any]
Save = Callable[[Document], None]


def parser(description: str | None, out: Path) -> argparse.ArgumentParser:
    """One that knows ``--out``, ``--replace`` and ``--busy``; ``out`` is for results by default."""
    made = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    made.add_argument("--out", type=options.file, default=out, help="file for the results")
    made.add_argument("--replace", action="store_true", help="results that are there go")
    made.add_argument("--busy", action="store_true", help="although other programs run")
    return made


def measured(
    given: argparse.Namespace, measure: Callable[[Save], None], *, lab: bool = False
) -> int:
    """Exit status of a command, once it has measured and written its results.

    Args:
        given: the options of :func:`parser`.
        measure: hands over all that it has, again and again if it takes long: the last one counts.
        lab: it needs the laboratory.

    1 where the machine is busy or something failed, 2 where results are there, 3 where there can be
    no laboratory, 130 after an interrupt; what was handed over until then is written.
    """
    if given.out.exists() and not given.replace:
        say(f"{given.out} is there: --replace, or another --out")
        return BAD
    share = machine.busy_share()
    if status := machine.hindrance(busy=given.busy, lab=lab, share=share):
        return status
    about = machine.facts() | {"others": round(share, 2)}
    written = False

    def save(document: Document) -> None:
        nonlocal written
        whole = dict(document) | {"machine": about | document.get("machine", {})}
        part = given.out.with_name(f"{given.out.name}.part")
        part.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        part.replace(given.out)
        written = True

    end_in_order()
    try:
        measure(save)
    except LabError as error:
        say(f"error: {error}")
        return machine.UNAVAILABLE if isinstance(error, LabUnavailableError) else 1
    except KeyboardInterrupt:
        kept = f"; {given.out} has what was measured" if written else ""
        say(f"interrupted; nothing is left running{kept}")
        return INTERRUPTED
    say(f"results: {given.out}")
    return 0


def say(text: str) -> None:
    """A line for whoever waits."""
    print(text, file=sys.stderr, flush=True)
