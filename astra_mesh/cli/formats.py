"""Number formats that peers compute in, for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from astra_mesh.cli.console import clean
from astra_mesh.naming import listed

if TYPE_CHECKING:
    from astra_mesh.wire.messages import ModelId, PeerId, PeerInfo

_SHOWN: Final = 1e-4  # a smaller divergence is said to be below it


class Format(NamedTuple):
    """One peer's, of one model."""

    name: str  # of the peer
    precision: str
    divergence: float = 0.0  # of the answers from those in fp32; 0: none, or not known
    measure: str = "KL"  # that it is in


def offered(found: Sequence[PeerInfo], model: ModelId) -> dict[PeerId, Format]:
    """Of the peers that have a model loaded, as they tell."""
    from astra_mesh.wire.messages import Task

    return {
        peer.peer: Format(
            peer.name,
            offer.precision,
            offer.divergence,
            "KL" if {Task.GENERATE, Task.CLASSIFY} & set(offer.tasks) else "1 - cosine",
        )
        for peer in found
        for offer in peer.models
        if offer.id == model and offer.loaded
    }


def formats_line(found: Sequence[Format]) -> str:
    """Which there are, with what the worst of each costs, and on which peers where they differ;
    "" where all compute in fp32.
    """
    kinds = list(dict.fromkeys(one.precision for one in found))
    if set(kinds) <= {"fp32"}:
        return ""
    groups = [[one for one in found if one.precision == kind] for kind in kinds]
    if len(groups) == 1:
        return _cost(groups[0])
    return ", ".join(
        f"{_cost(some)} on {clean(listed(one.name for one in some))}" for some in groups
    )


def _cost(same: Sequence[Format]) -> str:
    worst = max(same, key=lambda one: one.divergence)
    text = clean(worst.precision)
    if not worst.divergence:
        return text
    size = f"below {_SHOWN:.4f}" if worst.divergence < _SHOWN else f"{worst.divergence:.2g}"
    return f"{text} ({worst.measure} {size} from fp32)"
