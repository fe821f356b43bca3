"""One identity for each running peer: a second peer of the same user takes the next slot."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import IO, Final

from astra_mesh.errors import IdentityError
from astra_mesh.mesh.files import close_folder, make_folder

if sys.platform != "win32":
    import fcntl

log = logging.getLogger(__name__)

SLOTS: Final = 64  # peers of one user on one machine
_LOCK: Final = "in-use.lock"


class Slot:
    """A state folder that this process alone uses until :meth:`release`, or until it ends."""

    def __init__(self, folder: Path, lock: IO[bytes] | None) -> None:
        self.folder, self._lock = folder, lock

    def release(self) -> None:
        """Let another peer have it. Safe to call twice."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def claim(base: Path) -> Slot:
    """``base`` itself for the first peer, ``base/peer-2`` and so on for further ones at one time.

    Raises:
        IdentityError: the folder cannot be written, or all slots are taken.
    """
    for number in range(1, SLOTS + 1):
        folder = base if number == 1 else base / f"peer-{number}"
        try:
            make_folder(folder)
            close_folder(folder)
            lock = (folder / _LOCK).open("wb")
        except OSError as error:
            raise IdentityError(
                f"cannot use the state folder {folder} ({error.strerror or error}); make it "
                "writable, or choose another with --state-dir"
            ) from error
        if not _locked(lock):
            lock.close()
            continue
        if number > 1:
            log.info("another peer of yours runs on this machine; this one is number %d", number)
        return Slot(folder, lock)
    raise IdentityError(f"{SLOTS} peers of yours run on this machine already; stop one of them")


def _locked(file: IO[bytes]) -> bool:
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
