"""Which processes of the speed benchmark run at once, so that they fit into the memory."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from astra_mesh.client.inputs import UseName
from tools.bench.baselines.variants import NAMES, SINGLE


class Codes(NamedTuple):
    """What a mesh is asked for."""

    codec: str
    rate: int = 0  # bits per token and block; 0: the codec has one rate
    use: UseName = "all"  # of the devices; auto: as many as the planner likes, one perhaps


CHOSEN: Final = "mesh-auto"  # the planner decides how many devices
MESH: Final[dict[str, Codes]] = {
    "mesh-16": Codes("vq", 16),
    "mesh-32": Codes("vq", 32),
    "mesh-128": Codes("vq", 128),
    CHOSEN: Codes("vq", 128, "auto"),
    "mesh-int8": Codes("int8"),
    "mesh-fp16": Codes("fp16"),
}
VARIANTS: Final = (*NAMES, *MESH)

# Of a process, beyond the weights' file, which all processes share. Seen with GPT-2 124M and 1,024
# tokens: 1.8 GiB a peer of eight without mesh-32, 0.8 a worker.
PEER_GIB: Final = 1.35
TABLES_GIB: Final = {"mesh-16": 0.2, "mesh-32": 0.4, "mesh-128": 0.3}  # more in each peer
WORKER_GIB: Final = 0.9
SHARED_GIB: Final = 0.8  # the weights' file
CLIENT_GIB: Final = 0.1  # on each device with a peer


class Shift(NamedTuple):
    """Variants that take turns in the rounds of a cell, and the processes that they need."""

    names: tuple[str, ...]
    peers: int
    workers: int

    @property
    def own(self) -> tuple[str, ...]:
        """Without the base of the ratios, which other shifts have too; or that, if it is alone."""
        return tuple(name for name in self.names if name != SINGLE) or self.names

    def only(self, names: Collection[str]) -> Shift:
        """The same processes, with fewer variants and the base of the ratios."""
        return self._replace(names=tuple(one for one in self.names if one in {SINGLE, *names}))

    @property
    def kind(self) -> str:
        """For the results: another one means other processes."""
        return f"{self.own[0]} to {self.own[-1]}"

    @property
    def gib(self) -> float:
        """About what its processes take."""
        peer = PEER_GIB + CLIENT_GIB + sum(TABLES_GIB.get(name, 0.0) for name in self.names)
        return SHARED_GIB + self.peers * peer + self.workers * WORKER_GIB


def shifts(names: Sequence[str], members: int, gib: float) -> list[Shift]:
    """One shift of all variants if that fits into so much memory; else baselines, then the mesh,
    the mesh in as few parts as fit.

    Each has :data:`SINGLE`, if it is wanted: the base of its ratios. One variant alone may still
    take more than there is; see :attr:`Shift.gib`.
    """
    whole = _shift(names, members)
    if whole.gib <= gib:
        return [whole]
    base = [name for name in names if name == SINGLE]
    found: list[Shift] = []
    for kind in (NAMES, MESH):
        some = list[str]()
        for name in (name for name in names if name in kind and name != SINGLE):
            if some and _shift([*base, *some, name], members).gib > gib:
                found.append(_shift([*base, *some], members))
                some.clear()
            some.append(name)
        if some:
            found.append(_shift([*base, *some], members))
    return found or [whole]


def _shift(names: Sequence[str], members: int) -> Shift:
    """With as few processes as its variants need: one worker is enough for :data:`SINGLE`."""
    peers = members if set(names) & set(MESH) else 0
    others = set(names) & set(NAMES) - {SINGLE}
    workers = members if others else int(SINGLE in names)
    return Shift(tuple(names), peers, workers)
