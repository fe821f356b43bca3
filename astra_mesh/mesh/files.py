"""Files that only this user may read, written as a whole or not at all."""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import platformdirs

from astra_mesh.errors import IdentityError

if sys.platform != "win32":
    import fcntl

log = logging.getLogger(__name__)

OTHERS: Final = 0o077  # what a mode gives to other users
OTHERS_WRITE: Final = 0o022
FOLDER_MODE: Final = 0o700


def make_folder(folder: Path) -> None:
    """Make a folder into which only this user may look, and what is missing above it alike (the
    ``mode`` of ``mkdir`` is that of the last only). What is there stays as it is.
    """
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    for one in reversed(missing):
        one.mkdir(mode=FOLDER_MODE, exist_ok=True)
    folder.mkdir(exist_ok=True)  # raises if it is something else


def is_own(folder: Path) -> bool:
    """Whether a folder is the program's own place; others were chosen by a person, who may have
    other things there.
    """
    own = platformdirs.user_state_path("astra-mesh").resolve()
    return folder.resolve().is_relative_to(own)


def close_folder(folder: Path) -> None:
    """Close the program's own folder, and its own above that, to other users: older versions left
    them open. One that a person chose, or that is another user's, stays as it is.
    """
    if os.name != "posix":
        return
    for one in (folder, folder.parent):
        with suppress(OSError):  # the keys have modes of their own
            status = one.stat()
            mode = status.st_mode & 0o777
            if status.st_uid != os.geteuid() or not mode & OTHERS or not is_own(one):
                continue
            one.chmod(FOLDER_MODE)
            if mode & OTHERS_WRITE:
                log.warning(
                    "others could put files of their own into %s; its mode is 0700 now", one
                )


def write_new(path: Path, data: bytes) -> None:
    """Write a private file as a whole or not at all; who comes second keeps that of the first."""
    make_folder(path.parent)
    temporary = _temporary(path, data)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def replace_file(path: Path, data: bytes) -> None:
    """Write a private file as a whole, whatever was there."""
    temporary = _temporary(path, data)
    try:
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path, data: bytes) -> Path:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Whoever else wants the same lock waits meanwhile, threads too; on Windows nobody does. The
    lock is a file that stays empty; OSError if it cannot be made.
    """
    with lock.open("ab") as file:
        if sys.platform != "win32":
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def locked(path: Path, lock_file: str, what: str) -> Iterator[Path]:
    """A file of one's own for as long as it is written; other programs wait.

    Args:
        path: The file.
        lock_file: The name of the lock beside it.
        what: What the file holds, for people.

    Raises:
        IdentityError: It cannot be written.
    """
    try:
        with alone(path.parent / lock_file):
            yield path
    except OSError as exc:
        raise IdentityError(
            f"{path}, which holds {what}, cannot be written: {exc.strerror or exc}"
        ) from exc
