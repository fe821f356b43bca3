"""Where paired devices meet again: addresses that were typed at pairing, kept beside the roster.

Where multicast is dropped peers know of each other by these alone, also after a restart. All calls
block.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import msgspec

from astra_mesh import limits
from astra_mesh.mesh.connect import Address
from astra_mesh.mesh.files import locked, replace_file
from astra_mesh.wire.messages import DeviceId

FILE_NAME: Final = "places"
_LOCK_FILE: Final = "places.lock"

log = logging.getLogger(__name__)


class MeetingPlace(msgspec.Struct, frozen=True):
    """Where a device was reached."""

    device: DeviceId
    host: str
    port: int


class MeetingPlaces:
    """The addresses kept in one trust folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stamp: tuple[int, int] | None = None
        self._found: list[MeetingPlace] = []

    def keep(self, device: DeviceId, address: Address) -> None:
        """Remember where a device was reached; of too many addresses the oldest are forgotten.

        Raises:
            IdentityError: The file cannot be written.
        """
        host, port = address
        new = MeetingPlace(device, host, port)
        with self._locked() as path:
            others = [place for place in _read(path) if place != new]
            own = [place for place in others if place.device == device]
            surplus = own[: max(0, len(own) + 1 - limits.PLACES_PER_DEVICE)]
            found = [*(place for place in others if place not in surplus), new]
            replace_file(path, msgspec.msgpack.encode(found[-limits.PLACES :]))

    def of(self, devices: Collection[DeviceId]) -> list[Address]:
        """The addresses of these devices, the newest first; none if the file is damaged."""
        path = self._folder / FILE_NAME
        try:
            status = path.stat()
        except OSError:
            return []
        stamp = status.st_mtime_ns, status.st_ino
        if stamp != self._stamp:
            self._stamp, self._found = stamp, _read(path)
        return [(one.host, one.port) for one in reversed(self._found) if one.device in devices]

    def _locked(self) -> AbstractContextManager[Path]:
        return locked(self._folder / FILE_NAME, _LOCK_FILE, "the addresses of paired devices")


_Many = list[MeetingPlace]


def _read(path: Path) -> list[MeetingPlace]:
    try:
        with path.open("rb") as file:
            return msgspec.msgpack.decode(file.read(limits.PLACES_BYTES), type=_Many)
    except FileNotFoundError:
        return []
    except (OSError, msgspec.MsgspecError, ValueError) as error:
        log.warning("%s cannot be read (%s); pairing by address writes it anew", path, error)
        return []
