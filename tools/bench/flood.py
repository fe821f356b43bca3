"""What a flood of connections does to requests that run: ``python -m tools.bench.flood``.

Two peers on this machine answer one request after the other, in turns: quiet; while another process
opens 1,000 connections that say nothing, again and again, or 1,000 that begin TLS and go (the same
first message each time, which costs the attacker nothing); while it holds 200 that send one byte a
second, half of them before TLS and half before the upgrade to a WebSocket. The figure is the median
time of a request in each turn.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from astra_mesh.client import Mesh
from astra_mesh.mesh.trust import Trust, pairing_tls
from astra_mesh.peer import Peer, PeerConfig

FLOOD: Final = 1_000
SLOW: Final = 200
PAUSE_S: Final = 5.0  # between two floods: they are 200 new connections a second on average
PROMPT: Final = "To be, or not to be, that is the question: " * 8


# --- the other process ----------------------------------------------------------------------------


async def _open(
    port: int, context: ssl.SSLContext | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
    name = "astra-mesh" if context else None
    with suppress(OSError):
        return await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
    return None


async def flood(port: int) -> None:
    """Open connections without a word, drop them, begin again."""
    while True:
        opened = [await _open(port, None) for _ in range(FLOOD)]
        await asyncio.sleep(PAUSE_S)
        for one in filter(None, opened):
            one[1].transport.abort()


def client_hello() -> bytes:
    """The first message of a TLS handshake."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = pairing_tls().wrap_bio(incoming, outgoing, server_hostname="astra-mesh")
    with suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


async def greet(port: int) -> None:
    """Open connections that begin a handshake and end, begin again."""
    hello = client_hello()
    while True:
        for _ in range(FLOOD):
            if (opened := await _open(port, None)) is not None:
                opened[1].write(hello)
                opened[1].close()
        await asyncio.sleep(PAUSE_S)


async def drip(port: int, context: ssl.SSLContext | None) -> None:
    """One byte a second, and a new connection whenever it is cut off."""
    while True:
        opened = await _open(port, context)
        if opened is not None:
            with suppress(OSError):
                while not opened[1].is_closing():
                    opened[1].write(b"\x16" if context is None else b"G")
                    await asyncio.sleep(1.0)
        await asyncio.sleep(1.0)


async def attack(kind: str, port: int, trust: Path) -> None:
    """Until it is ended. It stands for other machines, so it leaves the cores to the peers."""
    os.nice(15)
    if kind == "flood":
        await flood(port)
    if kind == "hello":
        await greet(port)
    known = Trust.open(trust)
    tls = known.tls(known.device.issue()).client
    async with asyncio.TaskGroup() as group:
        for number in range(SLOW):
            group.create_task(drip(port, tls if number % 2 else None))


# --- the figure -----------------------------------------------------------------------------------


@asynccontextmanager
async def attacked(kind: str, port: int, trust: Path) -> AsyncIterator[None]:
    """While another process attacks a port."""
    if kind == "quiet":
        yield
        return
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tools.bench.flood", "--attack", kind, str(port), str(trust)
    )
    try:
        await asyncio.sleep(3.0)
        yield
    finally:
        process.kill()
        await process.wait()


async def measure(rounds: int, requests: int) -> dict[str, float]:
    """Median seconds of a request under each kind of attack."""
    times: dict[str, list[float]] = {"quiet": [], "flood": [], "hello": [], "slow": []}
    async with AsyncExitStack() as stack:
        trust = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        peers: list[Peer] = []
        for name in ("one", "two"):
            typed = tuple(("127.0.0.1", peer.port) for peer in peers)
            config = PeerConfig(
                name=name,
                port=0,
                listen="127.0.0.1",
                peers=typed,
                threads=1,
                discovery=False,
                ephemeral=True,
                trust_dir=trust,
                models=("tiny-gpt2",),
            )
            peers.append(await stack.enter_async_context(Peer(config)))
        mesh = await stack.enter_async_context(Mesh(("127.0.0.1", peers[0].port), trust_dir=trust))
        await _ask(mesh)
        for _ in range(rounds):
            for kind, found in times.items():
                async with attacked(kind, peers[0].port, trust):
                    for _ in range(requests):
                        found.append(await _ask(mesh))
    return {kind: statistics.median(found) for kind, found in times.items()}


async def _ask(mesh: Mesh) -> float:
    began = time.perf_counter()
    async for _ in mesh.generate("tiny-gpt2", PROMPT, max_new_tokens=16, use="all"):
        pass
    return time.perf_counter() - began


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--attack", nargs=3, metavar=("KIND", "PORT", "TRUST"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=20)
    parsed = parser.parse_args()
    if parsed.attack:
        kind, port, trust = parsed.attack
        asyncio.run(attack(kind, int(port), Path(trust)))
        return
    found = asyncio.run(measure(parsed.rounds, parsed.requests))
    ratios = {kind: found[kind] / found["quiet"] for kind in found}
    print(json.dumps({"seconds": found, "times_quiet": ratios}, indent=2))


if __name__ == "__main__":
    main()
