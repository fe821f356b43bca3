"""What a benchmark ran on, and whether nothing else ran beside it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import torch

from astra_mesh import __version__
from tools.lab.network import require_lab
from tools.lab.system import LabUnavailableError
from tools.models.common import REPO_ROOT

IDLE_LOOK_S: Final = 2.0
UNAVAILABLE: Final = 3  # exit status where there can be no laboratory, as that of tools.lab
# Processors of different generations may have one name; the second kind is of ARM's.
_MAKE: Final = ("cpu family", "model", "CPU implementer", "CPU part")
BUSY: Final = 0.1  # of all cores: more than a kernel's and a login's own work


def facts() -> dict[str, Any]:
    """The machine, for the results."""
    return {
        "processor": _field("/proc/cpuinfo", "model name") or platform.processor(),
        "make": ", ".join(filter(None, (_field("/proc/cpuinfo", name) for name in _MAKE))),
        "instructions": torch.backends.cpu.get_cpu_capability(),  # "AVX2" and so on
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "astra_mesh": __version__,
        **({"commit": commit} if (commit := _commit()) else {}),
    }


def _commit() -> str:
    """Of the working tree, short, with "+" where it has changes, other results aside; "" where
    there is no git."""
    commit = _git("rev-parse", "--short", "HEAD")
    apart = ("--", ".", ":!docs/data")
    changed = commit and _git("status", "--porcelain", "--untracked-files=no", *apart)
    return f"{commit}+" if changed else commit


def _git(*argv: str) -> str:
    try:
        done = subprocess.run(
            ["git", *argv], cwd=REPO_ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def free_gib() -> float:
    """Memory that new programs can take, GiB; 0 where unknown."""
    return int(_field("/proc/meminfo", "MemAvailable").removesuffix(" kB") or 0) / 2**20


def _field(path: str, name: str) -> str:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    found = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in found if key.strip() == name), "")


def busy_share(look_s: float = IDLE_LOOK_S) -> float:
    """Share of all cores' time that was not idle while looking (0 to 1); 0 where unknown."""
    before = _ticks()
    time.sleep(look_s)
    after = _ticks()
    if before is None or after is None or after[1] == before[1]:
        return 0.0
    return 1.0 - (after[0] - before[0]) / (after[1] - before[1])


def hindrance(*, busy: bool = False, lab: bool = False, share: float | None = None) -> int:
    """Exit status of a benchmark that cannot begin here, once it was said why; 0: it can.

    Args:
        busy: it measures although other programs run.
        lab: it needs the laboratory.
        share: what :func:`busy_share` said, where that is known.
    """
    if not busy and (share := busy_share() if share is None else share) > BUSY:
        print(f"other programs use {share:.0%} of the cores: wait, or --busy", file=sys.stderr)
        return 1
    try:
        if lab:
            require_lab()
    except LabUnavailableError as error:
        print(f"error: {error}", file=sys.stderr)
        return UNAVAILABLE
    return 0


def _ticks() -> tuple[int, int] | None:
    """Idle and all ticks of all cores since the start."""
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    except OSError:
        return None
    ticks = [int(field) for field in fields]
    return ticks[3] + ticks[4], sum(ticks[:8])
