"""One running peer, put together from the rooms below.

``Peer`` brings torch along, so it is imported at its first use: who only looks for local peers does
not wait for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from astra_mesh.peer.config import DEFAULT_PORT, PeerConfig

if TYPE_CHECKING:
    from astra_mesh.peer.peer import Peer

__all__ = ["DEFAULT_PORT", "Peer", "PeerConfig"]


def __getattr__(name: str) -> Any:
    """``Peer``, imported when it is wanted."""
    if name != "Peer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from astra_mesh.peer.peer import Peer

    return Peer
