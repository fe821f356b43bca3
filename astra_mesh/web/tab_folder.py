"""The temporary folder of an API's files for tabs, which a peer that is killed leaves behind.

A lock that the process holds in its folder says that it lives: other than a process's number it
means the same in all containers that share the temporary folder, and is nobody else's later.
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

if sys.platform != "win32":
    import fcntl

log = logging.getLogger(__name__)

_PREFIX: Final = "astra-mesh-tab-"
_LOCK: Final = "in-use.lock"


class TabFolder:
    """A new folder; its user's alone. All of it blocks."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        new = self.path / f"{_LOCK}.new"  # whoever finds the lock finds it taken
        self._lock: IO[bytes] = new.open("wb")
        _take(self._lock)
        new.rename(self.path / _LOCK)

    @property
    def is_there(self) -> bool:
        """Whether the system has not cleared it away."""
        return self.path.is_dir()

    def remove(self) -> None:
        """With all that is in it. Safe to call twice."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def remove_left() -> None:
    """Remove the folders of this user whose processes are gone. Blocks; no error is raised."""
    if sys.platform == "win32":
        return  # there a lock says nothing
    with suppress(OSError):
        for path in list(Path(tempfile.gettempdir()).glob(f"{_PREFIX}*")):
            if _is_left(path):
                log.info("removing %s, which a peer that ended left behind", path)
                shutil.rmtree(path, ignore_errors=True)


def _is_left(path: Path) -> bool:
    with suppress(OSError):
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            return False
        with (path / _LOCK).open("rb") as lock:
            return _take(lock)
    return False


def _take(lock: IO[bytes]) -> bool:
    """Whether nobody else has it."""
    if sys.platform != "win32":
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True
