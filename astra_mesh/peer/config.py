"""What a person may choose about a peer."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from astra_mesh.mesh.timings import Timings

DEFAULT_PORT: Final = 7475

Wanted = Literal["auto", "fp32", "bf16", "fp16", "int8"]  # number format of the products


@dataclass(frozen=True)
class PeerConfig:
    """Settings of one peer; the defaults need no thought.

    Attributes:
        name: For people; empty: the host name.
        port: None: :data:`DEFAULT_PORT`, or any free port if that is taken. A number that is taken
            is an error. 0: any free port.
        listen: Address to listen on; None: all interfaces.
        peers: Typed addresses, dialled for as long as the peer runs.
        names: Host names, with a port, that stand for many peers: all addresses behind each are
            dialled, as they come and go.
        threads: Of torch; 0: as many as the cores that this process may use.
        precision: Number format of the products; auto: the fastest here that keeps the answers.
        discovery: Whether to announce this peer and look for others by mDNS.
        state_dir: Where the identity is kept; None: the user's state folder.
        trust_dir: Where it is kept whom this device trusts; None: $ASTRA_MESH_TRUST, else the
            user's state folder, which all peers and clients of a user on one machine share.
        ephemeral: Identity in memory only, and no record for local clients.
        models: Names to offer; None: all on this device.
        timings: Of links.
        spot_check: Share of the requests that this peer plans in which one other peer's codes are
            computed once more; 0: none. See :mod:`astra_mesh.peer.spot_check`.
        preload: Whether models are loaded before somebody asks, while the peer has nothing to do
            and memory is plenty.
        low_memory: Whether codes are decoded without tables, which takes longer, and no model is
            loaded before somebody asks.
        pulse: Whether the peer looks now and then how fast it is, while it has nothing to do, and
            tells others: see :mod:`astra_mesh.peer.pace`.
        record: Folder for one JSON file per request with the time of each step; None: none.
    """

    name: str = ""
    port: int | None = None
    listen: str | None = None
    peers: tuple[tuple[str, int], ...] = ()
    names: tuple[tuple[str, int], ...] = ()
    threads: int = 0
    precision: Wanted = "fp32"
    discovery: bool = True
    state_dir: Path | None = None
    trust_dir: Path | None = None
    ephemeral: bool = False
    models: tuple[str, ...] | None = None
    timings: Timings = field(default_factory=Timings)
    spot_check: float = 0.0
    preload: bool = False
    low_memory: bool = False
    pulse: bool = False
    record: Path | None = None
