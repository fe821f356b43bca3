"""What of files is in this process's memory."""

from __future__ import annotations

from pathlib import Path

import pytest

_SMAPS = Path("/proc/self/smaps")

needs_smaps = pytest.mark.skipif(not _SMAPS.exists(), reason="only Linux tells what is mapped")


def mapped(start: Path) -> int:
    """Bytes of the files whose paths begin so."""
    found, ours = 0, False
    for line in _SMAPS.read_text(encoding="utf-8").splitlines():
        if "-" in line.split(":")[0]:
            ours = str(start) in line
        elif ours and line.startswith("Rss:"):
            found += int(line.split()[1]) << 10
    return found
