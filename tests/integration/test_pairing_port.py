"""A peer that starts while ``astra-mesh pair`` answers at the port that it would have."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from astra_mesh import limits
from astra_mesh.cli.pair import _show_code
from astra_mesh.client import pairing_post
from astra_mesh.errors import PortInUseError
from astra_mesh.mesh.codes import read_secret
from astra_mesh.mesh.invitations import Invitations
from astra_mesh.mesh.pairing_guest import pair_at
from astra_mesh.mesh.trust import Trust
from astra_mesh.peer import Peer, PeerConfig
from astra_mesh.peer import port as port_module
from tests.integration.test_peer_life import free_port
from tests.timings import patient

WAIT_S = 20.0


def config(trust: Path, **more: Any) -> PeerConfig:
    given: dict[str, Any] = {"port": None, "models": (), "discovery": False, "trust_dir": trust}
    return PeerConfig(**given | {"state_dir": trust / "state"} | more)


@asynccontextmanager
async def shown_code(
    trust: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[int, asyncio.Task[None]]]:
    """``astra-mesh pair`` of a device without a peer, and its port."""
    port = free_port()
    for module in (port_module, pairing_post):
        monkeypatch.setattr(module, "DEFAULT_PORT", port)
    monkeypatch.setattr(pairing_post, "_announced", lambda *_: nullcontext())
    opened = await asyncio.to_thread(Trust.open, trust)
    task = asyncio.create_task(_show_code(opened, 0, as_json=True))
    try:
        async with asyncio.timeout(patient(WAIT_S)):
            while not await asyncio.to_thread(Invitations(trust).still_open):
                await asyncio.sleep(0.05)
        yield port, task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_a_peer_that_starts_gets_the_port_of_pair_and_lets_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The address that the other device keeps stays good."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    async with shown_code(ours, monkeypatch) as (port, pairing):
        code = json.loads(capsys.readouterr().out)["code"]
        async with Peer(config(ours)) as peer:
            assert peer.port == port
            guest = await asyncio.to_thread(Trust.open, theirs)
            async with asyncio.timeout(patient(WAIT_S)):
                await pair_at(guest, read_secret(code), ("127.0.0.1", port))
                await pairing
        assert json.loads(capsys.readouterr().out)["type"] == "paired"


@pytest.mark.parametrize("chosen", [False, True])
async def test_a_peer_that_starts_during_a_pairing_says_who_has_the_port(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    chosen: bool,
) -> None:
    monkeypatch.setattr(limits, "PAIR_PORT_S", 0.5)
    async with shown_code(tmp_path, monkeypatch) as (port, _):
        assert await asyncio.to_thread(Invitations(tmp_path).try_one, b"")
        peer = Peer(config(tmp_path, port=port if chosen else None))
        if chosen:
            with pytest.raises(PortInUseError, match="is that of `astra-mesh pair`"):
                await peer.start()
            return
        async with peer:
            assert peer.port not in (0, port)
            assert f"port {port} is that of `astra-mesh pair`" in caplog.text


async def test_a_peer_on_loopback_leaves_pair_its_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other device would reach it there."""
    async with (
        shown_code(tmp_path, monkeypatch) as (port, _),
        Peer(config(tmp_path, listen="127.0.0.1")) as peer,
    ):
        assert peer.port != port
