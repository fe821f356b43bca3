"""One running peer, put together from the rooms below."""

from astra_mesh.peer.config import DEFAULT_PORT, PeerConfig
from astra_mesh.peer.peer import Peer

__all__ = ["DEFAULT_PORT", "Peer", "PeerConfig"]
