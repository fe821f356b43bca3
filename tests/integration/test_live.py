"""The WebSocket of the page, and the files of the page, without a browser."""

from __future__ import annotations

import asyncio
import base64
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from astra_mesh import limits
from astra_mesh.client import Mesh
from astra_mesh.peer import Peer
from astra_mesh.web import ApiConfig, ApiServer, serving
from astra_mesh.web.answers import MeshAnswer
from astra_mesh.web.live import Feed
from tests.integration.mesh_fixtures import WAIT_S, mesh_of, until

PROMPT = " ".join(f"w{7 * i % 64}" for i in range(40))
TOKEN = "0123456789abcdef/+~"


@asynccontextmanager
async def live(
    models: Path, count: int = 2, **settings: Any
) -> AsyncIterator[tuple[list[Peer], ApiServer, aiohttp.ClientSession]]:
    async with (
        mesh_of([f"peer{i}" for i in range(count)], models) as peers,
        serving(peers[-1], ApiConfig(**{"port": 0, **settings})) as server,
        aiohttp.ClientSession(base_url=server.url.removesuffix("/v1")) as http,
    ):
        yield peers, server, http


async def told(socket: aiohttp.ClientWebSocketResponse, kind: str) -> dict[str, Any]:
    """The next message of a kind."""
    async with asyncio.timeout(WAIT_S):
        while (found := await socket.receive_json())["type"] != kind:
            pass
    return dict(found)


def ends(marks: dict[str, list[int]]) -> list[int]:
    """How many blocks each peer told the end of."""
    return [some[1::4].count(5) for some in marks.values()]


async def ask(peer: Peer) -> None:
    async with Mesh(("127.0.0.1", peer.port)) as mesh:
        async for _ in mesh.generate("words", PROMPT, max_new_tokens=4, use="all"):
            pass


async def test_a_page_sees_the_mesh_and_a_request_on_all_its_peers(models: Path) -> None:
    async with live(models, 3) as (peers, _, http), http.ws_connect("/live") as socket:
        mesh = await told(socket, "mesh")
        assert [one["name"] for one in mesh["peers"]] == ["peer2", "peer0", "peer1"]
        assert mesh["models"][0]["here"] is True
        asking = asyncio.create_task(ask(peers[-1]))
        about: dict[str, Any] = {}
        marks: dict[str, list[int]] = {}
        while about.get("outcome") != "answered" or ends(marks) != [3, 3, 3]:
            async with asyncio.timeout(WAIT_S):
                found = await socket.receive_json()
            if found["type"] == "request":
                about = found
            elif found["type"] == "marks":
                marks.setdefault(found["peer"], []).extend(found["marks"])
        await asking
    assert about["new_tokens"] == 4
    assert about["noted"] is True
    assert [one["id"] for one in about["shards"]]
    assert set(marks) == {one.id for one in peers}
    took_us = about["cost"]["actual_s"] * 1e6
    for some in marks.values():  # on the clock of the peer that answers
        assert max(some[::4]) <= took_us * 1.5 + 20_000


async def test_a_page_sees_the_links_between_others(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LINKS_TELL_S", 0.05)
    monkeypatch.setattr(limits, "API_LIVE_MESH_S", 0.05)
    async with live(models, 3) as (peers, _, http), http.ws_connect("/live") as socket:
        one, other, me = (peer.id for peer in peers)
        found: dict[str, Any] = {}
        while not found.get(one, {}).get("round_trip_s"):
            mesh = await told(socket, "mesh")
            (entry,) = (peer for peer in mesh["peers"] if peer["id"] == other)
            found = {link["id"]: link for link in entry["links"]}
        assert set(found) <= {one, me}
        async with http.get("/v1/mesh") as answer:
            listed = msgspec.json.decode(await answer.read(), type=MeshAnswer)
        assert [peer.name for peer in listed.peers] == ["peer2", "peer0", "peer1"]
        assert "words" in listed.peers[0].holds
        links = {peer.id: {link.id for link in peer.links} for peer in listed.peers}
        assert one in links[other]
        assert links[me] == set()


async def test_nothing_is_noted_while_nobody_looks_on(models: Path) -> None:
    async with live(models) as (peers, _, http):
        await ask(peers[-1])
        async with http.ws_connect("/live") as socket:
            about = await told(socket, "request")
            assert (about["outcome"], about["noted"]) == ("answered", False)
            (shown,) = peers[-1].watch.shown()
            assert shown.marks({}) == {}
            assert peers[-1].watch.active
        await until(lambda: not peers[-1].watch.active)
        for _ in range(limits.SHOWN_REQUESTS + 2):
            await ask(peers[-1])
        assert len(peers[-1].watch.shown()) == limits.SHOWN_REQUESTS


async def test_a_peer_that_leaves_is_told_at_once(models: Path) -> None:
    async with live(models) as (peers, _, http), http.ws_connect("/live") as socket:
        assert len((await told(socket, "mesh"))["peers"]) == 2
        await peers[0].stop()
        async with asyncio.timeout(5):
            while len((await told(socket, "mesh"))["peers"]) > 1:
                pass


async def test_stopping_the_api_ends_its_pages(models: Path) -> None:
    async with live(models, 1) as (_, server, http), http.ws_connect("/live") as socket:
        await told(socket, "mesh")
        async with asyncio.timeout(5):
            await server.stop()
            while (await socket.receive()).type is aiohttp.WSMsgType.TEXT:
                pass


async def test_what_a_page_says_is_not_heard_and_long_words_end_it(models: Path) -> None:
    async with live(models, 1) as (peers, _, http):
        async with http.ws_connect("/live") as socket:
            await socket.send_str("hello")
            await told(socket, "mesh")
            await socket.send_str("x" * 10_000)
            async with asyncio.timeout(WAIT_S):
                while (await socket.receive()).type is aiohttp.WSMsgType.TEXT:
                    pass
            assert socket.close_code == aiohttp.WSCloseCode.MESSAGE_TOO_BIG
        await until(lambda: not peers[0].watch.active)


async def test_a_token_goes_as_a_protocol_and_the_files_need_none(
    models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    coded = base64.urlsafe_b64encode(TOKEN.encode()).decode().rstrip("=")
    async with live(models, 1, token=TOKEN) as (_, _, http):
        for word in ("bearer.bm90IGl0", "bearer.%", f"basic.{coded}"):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await http.ws_connect("/live", protocols=("astra-mesh.live", word))
            assert refused.value.status == 401
        for path in ("/live", "/tab"):  # aiohttp would log the token
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await http.ws_connect(path, protocols=(f"bearer.{coded}",))
            assert refused.value.status == 400
        assert coded not in caplog.text
        protocols = ("astra-mesh.live", f"bearer.{coded}")
        async with http.ws_connect("/live", protocols=protocols) as socket:
            assert socket.protocol == "astra-mesh.live"
            await told(socket, "mesh")
        for path in ("/", "/page/app.js", "/page/style.css", "/page/icon.svg"):
            async with http.get(path) as answer:
                assert answer.status == 200
                assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
                etag = answer.headers["ETag"]
            async with http.get(path, headers={"If-None-Match": etag}) as answer:
                assert answer.status == 304
        for path in ("/live", "/v1/models/words/quality", "/page/../secret", "/page/none.js"):
            async with http.get(path) as answer:
                assert answer.status in (401, 404)


async def test_a_page_of_another_site_hears_nothing(models: Path) -> None:
    async with live(models, 1) as (_, _, http):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await http.ws_connect("/live", headers={"Origin": "https://evil.example"})
        assert refused.value.status == 403
        async with http.get("/live") as answer:  # no WebSocket
            assert answer.status == 426
            assert "WebSocket" in (await answer.json())["error"]["message"]


async def test_quality_of_models(models: Path) -> None:
    async with live(models, 1) as (_, _, http):
        async with http.get("/v1/models/words/quality") as answer:
            assert (await answer.json())["tasks"] == {}
        async with http.get("/v1/models/nothing/quality") as answer:
            assert answer.status == 404


async def test_a_file_that_comes_to_a_model_is_seen(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "RESCAN_S", 0.1)
    monkeypatch.setattr("astra_mesh.peer.models.RESCAN_S", 0.1)
    await asyncio.to_thread(shutil.copytree, models / "words", tmp_path / "models" / "words")
    file = tmp_path / "models" / "words" / "tokenizer.json"
    data = await asyncio.to_thread(file.read_bytes)
    await asyncio.to_thread(file.unlink)
    async with live(tmp_path / "models", 1) as (peers, _, http):
        body = {"model": "words", "prompt": "w1", "max_tokens": 1}
        async with http.ws_connect("/live") as socket:
            (model,) = (await told(socket, "mesh"))["models"]
            assert (model["lacks"], model["loaded"]) == ("tokenizer.json", False)
            async with http.post("/v1/completions", json=body) as answer:
                assert answer.status == 400
                assert "it is taken within seconds" in (await answer.json())["error"]["message"]
            assert (await told(socket, "mesh"))["models"][0]["loaded"] is True
            await asyncio.to_thread(file.write_bytes, data[:100])  # it is being copied
            await asyncio.sleep(0.5)
            await asyncio.to_thread(file.write_bytes, data)
            while model["lacks"]:
                (model,) = (await told(socket, "mesh"))["models"]
        (model_id,) = [offer.id for offer in peers[0].models.offers()]
        loaded = await peers[0].models.load(model_id)
        await until(lambda: loaded.tokenizer is not None)
        async with http.post("/v1/completions", json=body) as answer:
            assert answer.status == 200


async def test_a_page_hears_something_where_nothing_changes(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "API_LIVE_WORD_S", 0.05)

    async def slow(feed: Feed) -> None:
        """A folder of models on a card that hangs."""
        await asyncio.Event().wait()

    monkeypatch.setattr(Feed, "look", slow)
    async with live(models, 1) as (_, _, http), http.ws_connect("/live") as socket:
        for _ in range(3):
            assert await told(socket, "beat") == {"type": "beat"}


async def test_a_peer_that_stops_sends_its_pages_away(models: Path) -> None:
    async with live(models, 1) as (_, server, http), http.ws_connect("/live") as socket:
        await told(socket, "mesh")
        stopping = asyncio.create_task(server.stop())
        while (await asyncio.wait_for(socket.receive(), WAIT_S)).type is aiohttp.WSMsgType.TEXT:
            pass
        assert socket.close_code == aiohttp.WSCloseCode.GOING_AWAY
        await stopping
