"""Pairing over the API: two devices, each with trust of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from astra_mesh.client import pairing_search
from astra_mesh.mesh.codes import new_code, read_secret
from astra_mesh.mesh.invitations import Invitations
from astra_mesh.mesh.pairing_guest import pair_at
from astra_mesh.peer import Peer
from astra_mesh.web.answers import JoinedAnswer, LeftAnswer, OpenedAnswer, PairingAnswer
from tests.integration.web_fixtures import Device, strangers
from tests.timings import patient


@pytest.fixture
async def devices(tmp_path: Path) -> AsyncIterator[list[Device]]:
    async with strangers(tmp_path, "one", "two") as found:
        yield found


async def post(http: aiohttp.ClientSession, url: str, body: Any, **headers: str) -> tuple[int, Any]:
    async with http.post(url, json=body, headers=headers) as answer:
        return answer.status, await answer.json()


async def test_two_devices_pair_and_part(devices: list[Device]) -> None:
    one, two = (device.root for device in devices)
    at = [devices[0].place]
    async with aiohttp.ClientSession() as http:
        status, shown = await post(http, f"{one}/v1/pairing/open", {})
        assert status == 200, shown
        msgspec.convert(shown, OpenedAnswer)
        assert shown["window"]["open"]
        assert shown["qr"]["path"].startswith("M4 4h1")
        assert shown["addresses"] == [devices[0].place]
        assert "listens on 127.0.0.1 only" in shown["note"]
        assert "at=" not in shown["uri"], "no other device can dial it"
        async with http.get(f"{one}/v1/pairing") as answer:
            assert shown["code"] not in await answer.text()  # told once
            now = msgspec.json.decode(await answer.read(), type=PairingAnswer)
        assert now.window is not None
        assert now.window.until == shown["window"]["until"]
        status, joined = await post(
            http, f"{two}/v1/pairing/join", {"code": shown["code"], "at": at}
        )
        assert status == 200, joined
        msgspec.convert(joined, JoinedAnswer)
        assert len(joined["devices"]) == 2
        (other,) = (entry for entry in joined["devices"] if not entry["self"])
        assert (joined["paired"], joined["paired_id"]) == ("one", other["id"])
        assert other["name"] == "one", "as its peer is called, not as the machine is"
        async with http.get(f"{one}/v1/pairing") as answer:
            listed = await answer.json()
        (came,) = (entry for entry in listed["devices"] if not entry["self"])
        assert came["name"] == "two"
        assert listed["window"]["came"] == ["two"]
        assert listed["window"]["came_ids"] == [came["id"]]
        status, again = await post(
            http, f"{two}/v1/pairing/join", {"code": shown["code"], "at": at}
        )
        assert status == 409, again
        status, left = await post(http, f"{two}/v1/pairing/unpair", {"id": other["id"]})
        assert status == 200, left
        assert [entry["self"] for entry in left["devices"]] == [True]


async def test_a_device_is_called_as_its_peer_is_now(devices: list[Device], tmp_path: Path) -> None:
    """Its peer is started again under another name, which its mesh does not keep."""
    one, two = devices
    async with aiohttp.ClientSession() as http:
        _, shown = await post(http, f"{one.root}/v1/pairing/open", {})
        body = {"code": shown["code"], "at": [one.place]}
        await post(http, f"{two.root}/v1/pairing/join", body)
        assert one.peer.trust is not None
        assert two.peer.trust is not None
        other = two.peer.trust.device.id
        assert one.peer.trust.members()[other].name == "two"
        config = replace(two.peer.config, name="attic", state_dir=tmp_path / "another")
        async with Peer(config), asyncio.timeout(patient(20.0)):
            while (await _named(http, one))[other] != "two":  # as long as both run
                await asyncio.sleep(0.05)
            await two.peer.stop()
            while (await _named(http, one))[other] != "attic":
                await asyncio.sleep(0.05)
        assert one.peer.trust.members()[other].name == "two"


async def _named(http: aiohttp.ClientSession, device: Device) -> dict[str, str]:
    async with http.get(f"{device.root}/v1/pairing") as answer:
        return {one["id"]: one["name"] for one in (await answer.json())["devices"]}


async def test_a_device_leaves(devices: list[Device]) -> None:
    one, two = devices
    async with aiohttp.ClientSession() as http:
        status, error = await post(http, f"{two.root}/v1/pairing/leave", {})
        assert (status, error["error"]["code"]) == (409, "no_mesh")
        _, shown = await post(http, f"{one.root}/v1/pairing/open", {})
        body = {"code": shown["code"], "at": [one.place]}
        await post(http, f"{two.root}/v1/pairing/join", body)
        status, left = await post(http, f"{two.root}/v1/pairing/leave", {})
        assert status == 200, left
        msgspec.convert(left, LeftAnswer)
        assert [entry["self"] for entry in left["devices"]] == [True]
        assert len(left["said"]) == 1
        assert "knows that this device has left" in left["said"][0]
        async with http.get(f"{one.root}/v1/pairing") as answer:
            assert len((await answer.json())["devices"]) == 1


async def test_what_is_refused(devices: list[Device]) -> None:
    one = devices[0].root
    async with aiohttp.ClientSession() as http:
        for name in ("open", "close", "join", "unpair", "leave"):
            url = f"{one}/v1/pairing/{name}"
            status, _ = await post(http, url, {}, Origin="http://evil.example")
            assert status == 403
            async with http.post(url, data=b"{}", headers={"Content-Type": "text/plain"}) as plain:
                assert plain.status == 415
        status, error = await post(http, f"{one}/v1/pairing/join", {"code": "2345-678A"})
        assert status == 400
        assert "mistyped" in error["error"]["message"]
        status, error = await post(http, f"{one}/v1/pairing/unpair", {"id": "00"})
        assert (status, error["error"]["code"]) == (404, "device_not_found")
        status, error = await post(http, f"{one}/v1/pairing/open", {"minutes": 5})
        assert (status, error["error"]["param"]) == (400, "minutes")
        await post(http, f"{one}/v1/pairing/open", {})
        _, closed = await post(http, f"{one}/v1/pairing/close", {})
        assert closed["window"] is None


async def test_a_guest_opens_no_window(devices: list[Device]) -> None:
    one, two = devices
    code = read_secret(new_code())
    assert one.peer.trust is not None
    assert two.peer.trust is not None
    await asyncio.to_thread(Invitations(one.peer.trust.folder).open_window, code, 600)
    await pair_at(two.peer.trust, code, ("127.0.0.1", one.peer.port))
    async with aiohttp.ClientSession() as http:
        status, error = await post(http, f"{two.root}/v1/pairing/open", {})
        assert status == 409
        assert "limited time only" in error["error"]["message"]
        device = {"id": one.peer.trust.device.id}
        status, error = await post(http, f"{two.root}/v1/pairing/unpair", device)
        assert status == 409
        assert "the others would not follow" in error["error"]["message"]
        status, _ = await post(http, f"{one.root}/v1/pairing/open", {})
        assert status == 200


async def test_where_nobody_is_found_the_page_names_its_own_field(
    devices: list[Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nobody() -> AsyncIterator[Any]:
        for address in list[Any]():
            yield address

    monkeypatch.setattr(pairing_search, "search", nobody)
    async with aiohttp.ClientSession() as http:
        body = {"code": new_code()}
        status, error = await post(http, f"{devices[0].root}/v1/pairing/join", body)
    assert status == 409
    message = error["error"]["message"]
    assert "give its address too (HOST:PORT, in the field beside it)" in message
    assert "--" not in message
