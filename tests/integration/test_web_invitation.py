"""The address and QR that ask a phone to lend itself."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from astra_mesh.mesh.interfaces import own_addresses
from astra_mesh.peer import places
from astra_mesh.web import ApiConfig, invitation, serving
from astra_mesh.web.invitation import page_urls
from tests.integration.mesh_fixtures import mesh_of

TOKEN = "a/token+of~the=tests"


@pytest.fixture
def in_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if phones reached a peer of the tests, which listens on loopback only."""
    monkeypatch.setattr(invitation, "is_loopback", lambda host: False)
    monkeypatch.setattr(invitation, "is_alone", lambda listen: False)


async def test_an_invitation_holds_the_token_and_the_word(
    tmp_path: Path, in_a_network: None
) -> None:
    async with (
        mesh_of(["host"], tmp_path) as peers,
        serving(peers[0], ApiConfig(port=0, token=TOKEN)) as server,
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as http,
    ):
        root = server.url.removesuffix("/v1")
        async with http.get(f"{root}/tab/invitation") as answer:
            found = await answer.json()
            assert answer.status == 200, found
        wanted = f"http://127.0.0.1:{server.port}/#lend&token=a%2Ftoken%2Bof~the%3Dtests"
        assert found["address"] == wanted  # the peer listens there only
        assert found["qr"]["path"].startswith("M4 4h1")
        async with (
            aiohttp.ClientSession() as stranger,
            stranger.get(f"{root}/tab/invitation") as answer,
        ):
            assert answer.status == 401


async def test_without_a_token_no_phone_can_open_the_page(tmp_path: Path) -> None:
    async with (
        mesh_of(["host"], tmp_path) as peers,
        serving(peers[0], ApiConfig(port=0)) as server,
        aiohttp.ClientSession() as http,
        http.get(f"{server.url.removesuffix('/v1')}/tab/invitation") as answer,
    ):
        assert answer.status == 409
        assert "--lan" in (await answer.json())["error"]["message"]


async def test_a_peer_that_listens_on_loopback_shows_no_code(tmp_path: Path) -> None:
    async with (
        mesh_of(["host"], tmp_path) as peers,
        serving(peers[0], ApiConfig(port=0, token=TOKEN)) as server,
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as http,
        http.get(f"{server.url.removesuffix('/v1')}/tab/invitation") as answer,
    ):
        assert answer.status == 409
        said = (await answer.json())["error"]["message"]
        assert "this peer listens on 127.0.0.1 only; start it without --listen" in said


async def test_a_machine_without_a_network_invites_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        mesh_of(["host"], tmp_path) as peers,
        serving(peers[0], ApiConfig(port=0, token=TOKEN)) as server,
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as http,
    ):
        monkeypatch.setattr(places, "own_addresses", lambda: [ipaddress.ip_address("127.0.0.1")])
        monkeypatch.setattr(peers[0], "config", replace(peers[0].config, listen=None))
        async with http.get(f"{server.url.removesuffix('/v1')}/tab/invitation") as answer:
            assert answer.status == 409
            assert "no phone can open the page" in (await answer.json())["error"]["message"]


@pytest.mark.parametrize("word", ["", "lend"])
def test_every_address_of_this_machine_is_told(word: str) -> None:
    found = page_urls(None, 7476, TOKEN, word)
    own = [ip for ip in own_addresses() if not (ip.version == 6 and ip.is_link_local)]
    assert len(found) == len(own)
    assert all(
        ":7476/#" in url and url.endswith("token=a%2Ftoken%2Bof~the%3Dtests") for url in found
    )
    assert all(("#lend&" in url) is bool(word) for url in found)
