"""What the client hands to its caller."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from astra_mesh.wire.messages import Label, ModelId, PeerInfo, Planned, Report, Task, names_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Token:
    """One new token. ``str()`` is its text: the texts of all tokens together are the answer."""

    id: int
    text: str  # empty while a character is incomplete
    index: int  # 0 for the first new token

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Classification:
    """Labels, the most probable first."""

    labels: list[Label]
    planned: Planned | None
    report: Report


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """One vector."""

    vector: NDArray[np.float32]  # (D,)
    planned: Planned | None
    report: Report


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model of the mesh."""

    name: str
    id: ModelId
    family: str
    tasks: tuple[Task, ...]
    peers: tuple[str, ...]  # names of the peers that hold it


def models_of(peers: Iterable[PeerInfo]) -> list[ModelEntry]:
    """All models that these peers hold, by name: two models of one name are two entries, a
    model with two names too.
    """
    found: dict[tuple[str, ModelId], ModelEntry] = {}
    for peer in peers:
        for model in peer.models:
            for name in names_of(model):
                key = (name, model.id)
                holders = found[key].peers if key in found else ()
                found[key] = ModelEntry(
                    name, model.id, model.family, tuple(model.tasks), (*holders, peer.name)
                )
    return [found[key] for key in sorted(found)]
