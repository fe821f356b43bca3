"""Whether other users of the machine could read this user's keys, or put others in their place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import platformdirs

from astra_mesh.mesh.identity import DEVICE_FILE_NAME, FILE_NAME
from astra_mesh.mesh.trust import trust_folder

TOKEN_FILE: Final = "api-token"  # of peers with `--lan`, in the state folder
_OTHERS: Final = 0o077
_OTHERS_WRITE: Final = 0o022


def mend_modes() -> tuple[list[str], list[str]]:
    """Close keys and their folders to other users: what was mended, and what could not be."""
    mended: list[str] = []
    failed: list[str] = []
    if os.name != "posix":
        return mended, failed
    for path, others, wanted, what in _private():
        try:
            mode = path.stat().st_mode & 0o777
            if not mode & others:
                continue
            path.chmod(wanted)
        except FileNotFoundError:
            continue
        except OSError as error:
            why = error.strerror or error
            failed.append(f"{path} cannot be closed to other users ({why}): chmod {wanted:o} it")
            continue
        mended.append(f"{path} had mode {mode:04o}, so that {what}; it has {wanted:04o} now")
    return mended, failed


def _private() -> Iterator[tuple[Path, int, int, str]]:
    """Paths, what others may not do there, the mode to give, and what happens otherwise."""
    state = platformdirs.user_state_path("astra-mesh")
    slots = [state, *sorted(state.glob("peer-*"))]
    for folder in dict.fromkeys((trust_folder(), *slots)):
        yield folder, _OTHERS_WRITE, 0o700, "others could put keys of their own there"
    for file in (trust_folder() / DEVICE_FILE_NAME, *(slot / FILE_NAME for slot in slots)):
        yield file, _OTHERS, 0o600, "others could read it"
    yield state / TOKEN_FILE, _OTHERS, 0o600, "others could read the token of the API"
