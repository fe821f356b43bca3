"""Which peers of this user run on this machine: one small record each, for clients to find."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec
import platformdirs

from astra_mesh import limits
from astra_mesh.errors import PortInUseError
from astra_mesh.mesh.connect import Address
from astra_mesh.mesh.files import make_folder
from astra_mesh.naming import device_name
from astra_mesh.peer.places import own_address
from astra_mesh.wire.messages import DeviceId, PeerId

Compute = Callable[[Callable[["LocalPeer"], Path], "LocalPeer"], Awaitable[Path]]


@dataclass(frozen=True)
class LocalPeer:
    """A peer of this user on this machine."""

    pid: int
    port: int
    id: PeerId
    name: str
    listen: str = ""  # the one address that it listens on; "": all
    device: str = ""  # its id
    problem: str | None = None  # why it finds no others by itself; "": it does; None: too early
    state: str = ""  # the state folder that was chosen for it; "": the user's

    @property
    def address(self) -> Address:
        """Where programs of this machine reach it."""
        return own_address(self.listen, self.port)


_EARLY_S: Final = 0.2  # between two looks whether a peer that has just started knows


def _folder() -> Path:
    return platformdirs.user_state_path("astra-mesh") / "running"


def _path(peer: LocalPeer) -> Path:
    return _folder() / f"{peer.pid}-{peer.port}.json"


def write_record(peer: LocalPeer) -> Path:
    """Leave a record, which only this user can read; :func:`remove_record` when the peer stops."""
    path = _path(peer)
    make_folder(path.parent)
    temporary = path.with_suffix(f".{secrets.token_hex(4)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(msgspec.json.encode(peer))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


async def follow_problem(
    peer: LocalPeer, problem: Callable[[], str | None], compute: Compute
) -> None:
    """Until cancelled: keep in a peer's record why it finds no others by itself."""
    while True:
        if (now := problem()) != peer.problem:
            peer = replace(peer, problem=now)
            with suppress(OSError):  # it was told at the start
                await compute(write_record, peer)
        await asyncio.sleep(_EARLY_S if now is None else limits.INTERFACE_POLL_S)


def remove_record(peer: LocalPeer) -> None:
    """Take the record away; if that fails, whoever finds it stale tries again."""
    _remove(_path(peer))


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def local_peers() -> list[LocalPeer]:
    """Peers that are alive, the newest last; records of dead ones are removed."""
    found: list[tuple[float, LocalPeer]] = []
    for path in _folder().glob("*.json"):
        try:
            peer = msgspec.json.decode(path.read_bytes(), type=LocalPeer)
            age = path.stat().st_mtime
        except (OSError, ValueError, RecursionError, msgspec.MsgspecError):
            continue
        if not (0 < peer.pid < 2**31 and 0 < peer.port < 2**16):
            continue
        if _alive(peer.pid):
            found.append((age, peer))
        else:
            _remove(path)
    return [peer for _, peer in sorted(found, key=lambda item: item[0])]


def name_of(device: DeviceId) -> str:
    """How a device of this user is called: by the name of its peers that run here; "" where none
    does, or they differ.
    """
    return device_name("", (peer.name for peer in local_peers() if peer.device == device))


def check_own_port(port: int) -> None:
    """PortInUseError that says so if a peer of this user has a port that is taken."""
    for peer in local_peers():
        if peer.port == port:
            raise PortInUseError(
                f"port {port} is that of {peer.name}, an astra-mesh peer which runs here already: "
                "commands ask it by themselves (`astra-mesh peers`); for one more peer choose "
                "another port with --port, or --port 0 for any free one"
            )


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
