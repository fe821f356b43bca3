"""How peers are called where people and programs read about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from astra_mesh.wire.messages import PeerId

SHORT_ID: Final = 8  # hex digits of the id of a peer or device, for people
PASSING: Final = "-client"  # ends the name of a peer inside a command, which goes with it
SHOWN_NAMES: Final = 4  # in a sentence; of more the number is told


class Names:
    """Names of peers, each peer's its own: with the first digits of the id where two have the same.

    Args:
        names: By id.
    """

    def __init__(self, names: Mapping[str, str] | Mapping[PeerId, str]) -> None:
        self._names = {str(peer): name for peer, name in names.items()}
        self._counts = Counter(self._names.values())

    def __call__(self, peer: str) -> str:
        """The name of a peer; the first digits of its id where it is not known."""
        name = self._names.get(peer, "")
        if not name:
            return peer[:SHORT_ID]
        return labelled(name, peer) if self._counts[name] > 1 else name


def listed(names: Iterable[str], most: int = SHOWN_NAMES) -> str:
    """Names in a sentence, at most so many: "a, b and c", "a, b and 3 more"."""
    found = list(names)
    rest = len(found) - most
    if rest > 0:
        found = [*found[:most], f"{rest} more"]
    *others, last = found
    return f"{', '.join(others)} and {last}" if others else last


def device_name(kept: str, peers: Iterable[str]) -> str:
    """How a device is called: as its peer that runs now; as its mesh keeps it, where none does or
    several differ. To be shown beside the first digits of its id: devices choose their names.
    """
    names = {name for name in peers if name and not name.endswith(PASSING)}
    return names.pop() if len(names) == 1 else kept


def labelled(name: str, key: str) -> str:
    """The name of a peer or device with the first digits of its id."""
    return f"{name} ({key[:SHORT_ID]})" if key else name
