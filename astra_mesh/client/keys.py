"""Whether other users of the machine could read this user's keys, or put others in their place."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import platformdirs

from astra_mesh.mesh.files import FOLDER_MODE, OTHERS, OTHERS_WRITE, close_folder, is_own
from astra_mesh.mesh.identity import DEVICE_FILE_NAME, FILE_NAME
from astra_mesh.mesh.trust import trust_folder

TOKEN_FILE: Final = "api-token"  # of peers with `--lan`, in the state folder
_FILE_MODE: Final = 0o600


@dataclass
class Modes:
    """Sentences about files and folders that were open to other users."""

    mended: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)  # still open, and a danger
    noted: list[str] = field(default_factory=list)  # still open, to be looked into only


def mend_modes(chosen: Iterable[Path] = ()) -> Modes:
    """Close keys, tokens and the program's own folders to other users.

    Args:
        chosen: More folders of peers, as a person named them (``--state-dir``).
    """
    found = Modes()
    if os.name != "posix":
        return found
    state = platformdirs.user_state_path("astra-mesh")
    slots = [state, *sorted(state.glob("peer-*"))]
    for folder in chosen:
        slots += [folder, *sorted(folder.glob("peer-*"))]
    slots = list(dict.fromkeys(slots))
    for folder in dict.fromkeys((trust_folder(), *slots)):
        _mend_folder(folder, found)
    for file, what in _files(slots):
        _mend(file, OTHERS, _FILE_MODE, what, found)
    return found


def _files(slots: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """Files for this user only, and what happens otherwise."""
    yield trust_folder() / DEVICE_FILE_NAME, "others could read it"
    for slot in slots:
        yield slot / FILE_NAME, "others could read it"
        yield slot / TOKEN_FILE, "others could read the token of the API"


def _mend_folder(folder: Path, found: Modes) -> None:
    """One that a person chose may hold other things, so that its mode is that person's matter."""
    if is_own(folder):
        _mend(folder, OTHERS_WRITE, FOLDER_MODE, "others could put keys of their own there", found)
        close_folder(folder)
        return
    try:
        mode = folder.stat().st_mode & 0o777
    except OSError:
        return
    advice = f"`chmod 700 {folder}`, or choose another folder"
    if mode & OTHERS_WRITE:
        found.failed.append(
            f"{folder} has mode {mode:04o}, so that others can put keys of their own there: "
            f"{advice}"
        )
    elif mode & OTHERS:
        found.noted.append(
            f"{folder} has mode {mode:04o}: others can see which files are there, not what is in "
            f"them. {advice}"
        )


def _mend(path: Path, others: int, wanted: int, what: str, found: Modes) -> None:
    try:
        mode = path.stat().st_mode & 0o777
        if not mode & others:
            return
        path.chmod(wanted)
    except FileNotFoundError:
        return
    except OSError as error:
        why = error.strerror or error
        found.failed.append(f"{path} cannot be closed to other users ({why}): chmod {wanted:o} it")
        return
    found.mended.append(f"{path} had mode {mode:04o}, so that {what}; it has {wanted:04o} now")
