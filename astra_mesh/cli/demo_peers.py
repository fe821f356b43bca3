"""Peers of the demonstration: processes that find each other, and that end with it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from astra_mesh.cli.demo_inputs import IMAGE_MODEL, TEXT_MODEL
from astra_mesh.errors import DeadlineError, PeerLostError

if TYPE_CHECKING:
    from astra_mesh.client import Mesh

START_S: Final = 40.0  # importing torch three times on two busy cores: about 10 s
MEET_S: Final = 15.0  # mDNS takes 1 s, on busy cores 5; longer means that multicast is dropped
STOP_S: Final = 5.0  # between asking a process to end and ending it
_LOOK_S: Final = 0.1
_LOG_CHARS: Final = 600

Say = Callable[[str], None]  # what is going on, for a status line


@dataclass
class DemoPeer:
    """One process."""

    name: str
    folder: Path
    process: Process
    started: dict[str, Any] = field(default_factory=dict)  # its first line

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.started["port"])

    @property
    def id(self) -> str:
        """Its peer id."""
        return str(self.started["id"])

    def check(self) -> None:
        """PeerLostError, with the end of its log, if the process ended."""
        status = self.process.returncode
        if status is not None:
            raise PeerLostError(f"the peer {self.name} ended (status {status}): {self.log()}")

    def log(self) -> str:
        """The end of what it wrote to standard error."""
        return (self.folder / "log").read_text(errors="replace").strip()[-_LOG_CHARS:]

    def introduced(self) -> bool:
        """Whether it wrote its first line."""
        line, end, _ = (self.folder / "output").read_text().partition("\n")
        if end and not self.started:
            self.started = json.loads(line)
        return bool(self.started)


@asynccontextmanager
async def demo_peers(
    names: Sequence[str], folder: Path, say: Say
) -> AsyncIterator[tuple[list[DemoPeer], list[Mesh], str]]:
    """Peers that see each other, a client of each, and how they met ("mDNS", or a sentence).

    Whatever happens inside, all processes have ended afterwards.
    """
    from astra_mesh.mesh.interfaces import multicast_interfaces

    missing = "this machine has no interface for multicast"
    async with AsyncExitStack() as stack:
        if multicast_interfaces():
            peers = await _start_all(stack, names, folder / "found", (), say)
            meshes = await _ask_all(stack, peers)
            if await _met(peers, meshes, say):
                yield peers, meshes, "by mDNS, no address was typed"
                return
            missing = f"mDNS found nobody within {MEET_S:g} s (is multicast blocked?)"
            await stack.aclose()
        why = f"{missing}, so they were given addresses with --peer"
        say(why)
        first = await _start_all(stack, names[:1], folder / "typed", (), say)
        known: tuple[str, ...] = ("--peer", f"127.0.0.1:{first[0].port}", "--no-discovery")
        rest = await _start_all(stack, names[1:-1], folder / "typed", known, say)
        known += tuple(f"--peer=127.0.0.1:{peer.port}" for peer in rest)
        rest += await _start_all(stack, names[-1:], folder / "typed", known, say)
        peers = first + rest
        meshes = await _ask_all(stack, peers)
        if not await _met(peers, meshes, say):
            raise DeadlineError(f"the peers did not reach each other within {MEET_S:g} s")
        yield peers, meshes, why


async def _start_all(
    stack: AsyncExitStack, names: Sequence[str], folder: Path, options: Sequence[str], say: Say
) -> list[DemoPeer]:
    """Processes that have introduced themselves; ``stack`` ends them."""
    peers: list[DemoPeer] = []
    stack.push_async_callback(end_all, peers)
    for name in names:
        peers.append(await _start(name, folder / name, options))
    deadline = time.monotonic() + START_S
    while not all(peer.introduced() for peer in peers):
        ready = sum(bool(peer.started) for peer in peers)
        say(f"starting {len(peers)} peers as separate processes: {ready} ready")
        for peer in peers:
            peer.check()
        if time.monotonic() > deadline:
            raise DeadlineError(f"the peers did not start within {START_S:g} s")
        await asyncio.sleep(_LOOK_S)
    return peers


async def _start(name: str, folder: Path, options: Sequence[str]) -> DemoPeer:
    folder.mkdir(parents=True)  # noqa: ASYNC240 - nothing else runs here
    environment = {
        **os.environ,
        "XDG_STATE_HOME": str(folder.parent),  # no record among the person's own peers
        "ASTRA_MESH_TRUST": str(trust_folder(folder.parent)),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    environment.pop("ASTRA_MESH_PEER", None)
    arguments = ("--name", name, "--port", "0", "--threads", "1", "--state-dir", str(folder))
    models = ("--model", TEXT_MODEL, "--model", IMAGE_MODEL)
    with (folder / "output").open("wb") as output, (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "astra_mesh", "peer", "--no-api", *arguments, *models, *options),
            *("--json", "--stop-with-stdin"),
            stdin=PIPE,  # closed when this process ends, however it ends
            stdout=output,
            stderr=log,
            env=environment,
        )
    return DemoPeer(name, folder, process)


async def _ask_all(stack: AsyncExitStack, peers: list[DemoPeer]) -> list[Mesh]:
    from astra_mesh.client import Mesh

    meshes = [
        Mesh(("127.0.0.1", peer.port), trust_dir=trust_folder(peer.folder.parent)) for peer in peers
    ]
    return [await stack.enter_async_context(mesh) for mesh in meshes]


def trust_folder(folder: Path) -> Path:
    """Where peers of one demonstration keep their device's key: it is forgotten with the folder."""
    return folder / "trust"


async def _met(peers: list[DemoPeer], meshes: list[Mesh], say: Say) -> bool:
    """Wait until every peer sees all others; False at the deadline."""
    wanted = {peer.id for peer in peers}
    deadline = time.monotonic() + MEET_S
    while time.monotonic() < deadline:
        seen = [{info.peer for info in await mesh.peers()} & wanted for mesh in meshes]
        if all(len(one) == len(wanted) for one in seen):
            return True
        views = (f"{peer.name} sees {len(one) - 1}" for peer, one in zip(peers, seen, strict=True))
        say(f"looking for each other: {', '.join(views)} of {len(wanted) - 1}")
        for peer in peers:
            peer.check()
        await asyncio.sleep(_LOOK_S)
    return False


async def end_all(peers: list[DemoPeer]) -> None:
    """End processes by their pids: ask, wait, insist."""
    running = [peer.process for peer in peers if peer.process.returncode is None]
    for process in running:
        process.terminate()
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_S):
                for process in running:
                    await process.wait()
    finally:
        for process in running:
            if process.returncode is None:
                process.kill()
                await process.wait()
