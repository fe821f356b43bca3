"""Which peers of this user run on this machine: one small record each, for clients to find."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec
import platformdirs

from astra_mesh.wire.messages import PeerId


@dataclass(frozen=True)
class LocalPeer:
    """A peer of this user on this machine."""

    pid: int
    port: int
    id: PeerId
    name: str


def _folder() -> Path:
    return platformdirs.user_state_path("astra-mesh") / "running"


def write_record(peer: LocalPeer) -> Path:
    """Leave a record; whoever wrote it removes it when the peer stops."""
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / f"{peer.pid}-{peer.port}.json"
    temporary = path.with_suffix(".new")
    temporary.write_bytes(msgspec.json.encode(peer))
    temporary.replace(path)
    return path


def local_peers() -> list[LocalPeer]:
    """Peers that are alive, the newest last; records of dead ones are removed."""
    found: list[tuple[float, LocalPeer]] = []
    for path in _folder().glob("*.json"):
        try:
            peer = msgspec.json.decode(path.read_bytes(), type=LocalPeer)
            age = path.stat().st_mtime
        except (OSError, msgspec.MsgspecError):
            continue
        if _alive(peer.pid):
            found.append((age, peer))
        else:
            path.unlink(missing_ok=True)
    return [peer for _, peer in sorted(found, key=lambda item: item[0])]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
