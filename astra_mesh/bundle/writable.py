"""Whether files can be written somewhere: found out before hours of work, not after."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from astra_mesh.errors import InputError

_MIB: Final = 1 << 20


def check_file(path: Path) -> None:
    """InputError where no file ``path`` can be written; its folder must be there."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise InputError(f"{path} cannot be written: there is no folder {folder}")
    try:
        if path.is_dir():
            raise InputError(f"{path} cannot be written: it is a folder; name a file")
        _try(folder)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {folder} takes no such file ({error.strerror})"
        ) from error


def check_folder(path: Path) -> None:
    """InputError where no folder ``path`` with files can be made; leaves nothing behind."""
    try:
        with folder_for(path):
            _try(path)
    except OSError as error:
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


def check_room(needed: Mapping[Path, int]) -> None:
    """InputError where a disk has less room than is needed in bytes by folders, there or to be."""
    sums: dict[int, int] = {}
    for folder, size in needed.items():
        place = next(one for one in (folder, *folder.absolute().parents) if one.is_dir())
        device = place.stat().st_dev
        sums[device] = sums.get(device, 0) + size
        free = shutil.disk_usage(place).free
        if free < sums[device]:
            raise InputError(
                f"{folder} has too little room: about {-(-sums[device] // _MIB)} MiB are needed, "
                f"{free // _MIB} MiB are free"
            )


def _try(folder: Path) -> None:
    """OSError where no byte can be written."""
    with tempfile.TemporaryFile(prefix=".trying-", dir=folder) as stream:
        stream.write(b"x")
        stream.flush()
