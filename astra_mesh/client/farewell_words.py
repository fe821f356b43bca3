"""What to say to who left a mesh, on the command line and on the page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final

from astra_mesh.naming import SHORT_ID, device_name, labelled

if TYPE_CHECKING:  # it brings the client along, which who is alone does without
    from astra_mesh.client.farewell import Farewell
    from astra_mesh.wire.messages import DeviceId, RosterEntry

NO_MESH: Final = "there was no mesh to leave: this device is paired with no other"


def what_remains(
    farewell: Farewell, own: DeviceId, running: Mapping[DeviceId, Iterable[str]] | None = None
) -> list[str]:
    """What to say to who left: who knows, and what is left to do where somebody does not.

    Args:
        farewell: What came of it.
        own: This device.
        running: Names of the peers that ran on each device, where they are known.
    """
    said, called = [], partial(_names, running or {})
    if farewell.told:
        they, verbs = called(farewell.told)
        said.append(
            f"{they} {verbs('knows', 'know')} that this device has left, and "
            f"{verbs('trusts', 'trust')} it no more"
        )
    if farewell.ended:
        they, verbs = called(farewell.ended)
        said.append(
            f"{they} {verbs('ends', 'end')} each connection right after the handshake: probably "
            f"{verbs('it does', 'they do')} not know this device any more, and "
            f"{verbs('needs', 'need')} not be told that it left"
        )
    if farewell.untold:
        they, verbs = called(farewell.untold)
        said.append(
            _of_untold(farewell, they, verbs, f"run `astra-mesh unpair {own[:SHORT_ID]}` there")
        )
    return said


def _of_untold(farewell: Farewell, they: str, verbs: Callable[[str, str], str], run: str) -> str:
    if farewell.told or farewell.ended:
        return (
            f"{they} did not answer, and {verbs('hears', 'hear')} of it from the others when they "
            f"meet; if they do not meet, {run}"
        )
    return (
        f"nobody could be told: {they} still {verbs('lists', 'list')} this device and would let "
        f"it in, until {verbs('it', 'one of them')} hears of it: {run}"
        f"{verbs('', ', on one of them')}"
    )


def _names(
    running: Mapping[DeviceId, Iterable[str]], devices: Mapping[DeviceId, RosterEntry]
) -> tuple[str, Callable[[str, str], str]]:
    """The devices, and what chooses between the words for one and for several."""
    names = ", ".join(
        labelled(device_name(entry.name, running.get(key, ())), key)
        for key, entry in devices.items()
    )
    return names, lambda one, several: one if len(devices) == 1 else several
