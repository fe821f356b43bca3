"""Whether files can be written somewhere, and by nobody else: found out before hours of work."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from astra_mesh.bundle.configs import full_disk, no_room
from astra_mesh.errors import InputError, ModelError

if sys.platform != "win32":
    import fcntl

_MIB: Final = 1 << 20
_NUMBER_CHARS: Final = 20  # of a process


def check_file(path: Path) -> None:
    """InputError where no file ``path`` can be written; its folder must be there.

    ModelError where the disk is full, which no other command mends.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise InputError(f"{path} cannot be written: there is no folder {folder}")
    try:
        if path.is_dir():
            raise InputError(f"{path} cannot be written: it is a folder; name a file")
        _try(folder)
    except OSError as error:
        if no_room(error):
            raise full_disk(path) from error
        raise InputError(
            f"{path} cannot be written: {folder} takes no such file ({error.strerror})"
        ) from error


def check_folder(path: Path) -> None:
    """InputError where no folder ``path`` with files can be made; leaves nothing behind.

    ModelError where the disk is full.
    """
    try:
        with folder_for(path):
            _try(path)
    except OSError as error:
        if no_room(error):
            raise full_disk(path) from error
        raise InputError(
            f"{path} cannot be written: it takes no files ({error.strerror})"
        ) from error


@contextmanager
def folder_for(path: Path) -> Iterator[None]:
    """Makes a folder and those above it; of these what is empty in the end goes again.

    Raises:
        OSError: it cannot be made.
    """
    made = [one for one in (path, *path.absolute().parents) if not one.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for one in made:
            with suppress(OSError):  # not empty, or not there
                one.rmdir()


@contextmanager
def only_run(lock: Path, used: Path) -> Iterator[None]:
    """One run at a time; on Windows, and on file systems without locks, nobody is kept away.

    Args:
        lock: A file that is made for as long as this lasts, in a folder that is there.
        used: What the runs would write both, for people.

    Raises:
        ModelError: Another run has the lock, or it cannot be made.
    """
    if sys.platform == "win32":
        yield
        return
    with _taken(lock, used) as file:
        try:
            yield
        finally:
            with suppress(OSError):  # it may be gone, with its folder
                if _is_at(file, lock):
                    lock.unlink()


@contextmanager
def waiting(lock: Path) -> Iterator[None]:
    """One program at a time, for a moment: others wait. On Windows, and on file systems without
    locks, nobody does.

    Raises:
        ModelError: The lock, a file that is gone afterwards, cannot be made.
    """
    if sys.platform == "win32":
        yield
        return
    with _waited(lock):
        try:
            yield
        finally:
            with suppress(OSError):
                lock.unlink()


def _waited(lock: Path) -> IO[str]:
    while True:
        file = _opened(lock)
        if sys.platform != "win32":
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
        if _is_at(file, lock):
            return file
        file.close()  # whoever had it has ended meanwhile and taken it away


def _opened(lock: Path) -> IO[str]:
    try:
        return lock.open("a+", encoding="ascii", errors="replace")
    except OSError as error:
        if no_room(error):
            raise full_disk(lock) from error
        raise ModelError(f"{lock} cannot be written ({error.strerror})") from error


def _taken(lock: Path, used: Path) -> IO[str]:
    while True:
        file = _opened(lock)
        if not _locked(file):
            file.seek(0)
            number = file.read(_NUMBER_CHARS)
            file.close()
            who = f" (process {number})" if number.isdecimal() else ""
            raise ModelError(f"another run is using {used}{who}: wait for it, or stop it")
        if _is_at(file, lock):
            break
        file.close()  # whoever had it has ended meanwhile and taken it away
    with suppress(OSError):  # the number is for people only
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
    return file


def _locked(file: IO[str]) -> bool:
    """False where another has it."""
    if sys.platform != "win32":
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            return True
    return True


def _is_at(file: IO[str], path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def check_room(needed: Mapping[Path, int]) -> None:
    """ModelError where a disk has less room than is needed in bytes by folders, there or to be."""
    sums: dict[int, int] = {}
    for folder, size in needed.items():
        place = next(one for one in (folder, *folder.absolute().parents) if one.is_dir())
        device = place.stat().st_dev
        sums[device] = sums.get(device, 0) + size
        free = shutil.disk_usage(place).free
        if free < sums[device]:
            raise ModelError(
                f"no space left for {folder.absolute()}: about {-(-sums[device] // _MIB)} MiB are "
                f"needed, {free // _MIB} MiB are free"
            )


def _try(folder: Path) -> None:
    """OSError where no byte can be written."""
    with tempfile.TemporaryFile(prefix=".trying-", dir=folder) as stream:
        stream.write(b"x")
        stream.flush()
