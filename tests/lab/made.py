"""What laboratories have made and not removed."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tools.lab import cpu
from tools.lab.network import NAMESPACES


def made_by(pid: int) -> list[str]:
    """Names of all that laboratories of a process made and that is there now."""
    folders = [NAMESPACES, Path(tempfile.gettempdir())]
    if cpu.unavailable_reason() is None:
        folders.append(cpu._parent()[0])
    return [path.name for folder in folders for path in folder.glob(f"astra-lab-{pid}-*")]
