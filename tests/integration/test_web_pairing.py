"""Pairing over the API: two devices, each with trust of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from astra_mesh.peer import Peer, PeerConfig
from astra_mesh.web import ApiConfig, serving


@pytest.fixture
async def roots(tmp_path: Path) -> AsyncIterator[tuple[list[str], list[Peer]]]:
    """The APIs of two devices that are strangers, and their peers."""
    async with AsyncExitStack() as stack:
        urls, peers = [], []
        for name in ("one", "two"):
            config = PeerConfig(
                name=name,
                port=0,
                discovery=False,
                listen="127.0.0.1",
                threads=1,
                ephemeral=True,
                models=(),
                trust_dir=tmp_path / name,
            )
            peer = await stack.enter_async_context(Peer(config))
            server = await stack.enter_async_context(serving(peer, ApiConfig(port=0)))
            urls.append(server.url.removesuffix("/v1"))
            peers.append(peer)
        yield urls, peers


async def post(http: aiohttp.ClientSession, url: str, body: Any, **headers: str) -> tuple[int, Any]:
    async with http.post(url, json=body, headers=headers) as answer:
        return answer.status, await answer.json()


async def test_two_devices_pair_and_part(roots: tuple[list[str], list[Peer]]) -> None:
    (one, two), peers = roots
    at = [f"127.0.0.1:{peers[0].port}"]
    async with aiohttp.ClientSession() as http:
        status, shown = await post(http, f"{one}/v1/pairing/open", {})
        assert status == 200, shown
        assert shown["window"]["open"]
        assert shown["qr"]["path"].startswith("M4 4h1")
        async with http.get(f"{one}/v1/pairing") as answer:
            assert shown["code"] not in await answer.text()  # told once
        status, joined = await post(
            http, f"{two}/v1/pairing/join", {"code": shown["code"], "at": at}
        )
        assert status == 200, joined
        assert len(joined["devices"]) == 2
        (other,) = (entry for entry in joined["devices"] if not entry["self"])
        status, again = await post(
            http, f"{two}/v1/pairing/join", {"code": shown["code"], "at": at}
        )
        assert status == 409, again
        status, left = await post(http, f"{two}/v1/pairing/unpair", {"id": other["id"]})
        assert status == 200, left
        assert [entry["self"] for entry in left["devices"]] == [True]


async def test_what_is_refused(roots: tuple[list[str], list[Peer]]) -> None:
    (one, _), _peers = roots
    async with aiohttp.ClientSession() as http:
        for name in ("open", "close", "join", "unpair"):
            url = f"{one}/v1/pairing/{name}"
            status, _ = await post(http, url, {}, Origin="http://evil.example")
            assert status == 403
            async with http.post(url, data=b"{}", headers={"Content-Type": "text/plain"}) as plain:
                assert plain.status == 415
        status, error = await post(http, f"{one}/v1/pairing/join", {"code": "2345-678A"})
        assert status == 400
        assert "mistyped" in error["error"]["message"]
        status, error = await post(http, f"{one}/v1/pairing/unpair", {"id": "00"})
        assert status == 400
        await post(http, f"{one}/v1/pairing/open", {})
        _, closed = await post(http, f"{one}/v1/pairing/close", {})
        assert closed["window"] is None
