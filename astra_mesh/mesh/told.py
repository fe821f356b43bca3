"""Who heard that this device leaves its mesh: a file beside the roster, which its peers and the
command write together. All calls block.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import msgspec

from astra_mesh import limits
from astra_mesh.mesh.files import locked, replace_file
from astra_mesh.wire.messages import DeviceId

FILE_NAME: Final = "told"
_LOCK_FILE: Final = "told.lock"

log = logging.getLogger(__name__)


class _Told(msgspec.Struct):
    farewell: bytes = b""
    devices: list[DeviceId] = []


class Told:
    """The devices that know of a farewell.

    Args:
        folder: Of the trust.
        farewell: :attr:`RosterBook.farewell`.
    """

    def __init__(self, folder: Path, farewell: bytes) -> None:
        self._folder, self._farewell = folder, farewell

    def note(self, device: DeviceId) -> None:
        """A device showed that it knows.

        Raises:
            IdentityError: The file cannot be written.
        """
        with self._locked() as path:
            found = self._read(path)
            if device not in found and len(found) < limits.ROSTER_ENTRIES:
                kept = _Told(self._farewell, sorted(found | {device}))
                replace_file(path, msgspec.msgpack.encode(kept))

    def devices(self) -> frozenset[DeviceId]:
        """All that do."""
        return frozenset(self._read(self._folder / FILE_NAME))

    def _read(self, path: Path) -> set[DeviceId]:
        try:
            with path.open("rb") as file:
                data = file.read(limits.TOLD_BYTES)
            kept = msgspec.msgpack.decode(data, type=_Told)
        except FileNotFoundError:
            return set()
        except (OSError, msgspec.MsgspecError, ValueError) as error:
            log.warning("%s cannot be read (%s), and is written anew", path, error)
            return set()
        return set(kept.devices) if kept.farewell == self._farewell else set()

    def _locked(self) -> AbstractContextManager[Path]:
        return locked(self._folder / FILE_NAME, _LOCK_FILE, "who knows that this device leaves")
