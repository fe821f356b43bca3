"""Peers that meet through a name with an address for each of them."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from astra_mesh import limits
from astra_mesh.peer import Peer, PeerConfig
from astra_mesh.peer.config import DEFAULT_PORT
from tests.forks import python
from tests.integration.mesh_fixtures import until

DAEMON = Path(__file__).parents[2] / "peers" / "cluster" / "daemonset.yaml"

pytestmark = pytest.mark.usefixtures("forks")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the name stands for; empty: it is not known."""
    found: list[str] = []

    async def getaddrinfo(self: Any, host: str, port: int, **more: Any) -> list[Any]:
        if host != "peers.example":
            return await real(self, host, port, **more)
        if not found:
            raise socket.gaierror(-2, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in found]

    real = asyncio.BaseEventLoop.getaddrinfo
    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(limits, "NAMES_POLL_S", 0.05)
    return found


async def test_peers_behind_one_name_meet_as_they_come(addresses: list[str]) -> None:
    port = free_port()  # the same on each address, as in a cluster

    def peer(place: int) -> Peer:
        return Peer(
            PeerConfig(
                name=f"pod{place}",
                listen=f"127.0.0.{place}",
                port=port,
                names=(("peers.example", port),),
                discovery=False,
                ephemeral=True,
                models=(),
            )
        )

    async with peer(2) as first, peer(3) as second:
        assert not first.others()  # the name is not known yet
        addresses += ["127.0.0.2", "127.0.0.3"]
        await until(lambda: len(first.others()) == len(second.others()) == 1)
        async with peer(4) as third:
            addresses.append("127.0.0.4")
            await until(lambda: len(first.others()) == len(third.others()) == 2)
            addresses.remove("127.0.0.4")
        await until(lambda: len(first.others()) == len(second.others()) == 1)
        assert first.others()[second.id].name == "pod3"


async def test_the_probe_of_a_cluster_passes_only_where_a_peer_runs() -> None:
    text = await asyncio.to_thread(DAEMON.read_text)
    (container,) = yaml.safe_load(text)["spec"]["template"]["spec"]["containers"]
    port = free_port()
    _, *words = container["startupProbe"]["exec"]["command"]
    argv = [word.replace(str(DEFAULT_PORT), str(port)) for word in words]
    assert await status_of(argv) != 0
    config = PeerConfig(
        name="pod", listen="127.0.0.1", port=port, discovery=False, ephemeral=True, models=()
    )
    async with Peer(config):
        assert await status_of(argv) == 0
    assert await status_of(argv) != 0


async def status_of(argv: list[str]) -> int | None:
    process = await asyncio.create_subprocess_exec(
        *(*python(), "-m", "astra_mesh", *argv),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    return await process.wait()
