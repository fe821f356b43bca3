"""The page's files: where they are served, as what, and with which headers."""

from __future__ import annotations

import asyncio
import gzip
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from astra_mesh.web.files import read_all


async def _client(site: Path) -> TestClient:
    app = web.Application()
    for one in await asyncio.to_thread(read_all, site):
        app.router.add_get(one.address, one.serve)
    client = TestClient(TestServer(app))
    await client.start_server()
    return client


def _put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    _put(tmp_path / "index.html", "<p>page</p>")
    _put(tmp_path / "peer" / "worker.js", "export {}")
    _put(tmp_path / "vendor" / "ort" / "ort.mjs", "export {}")
    _put(tmp_path / "vendor" / "ort" / "LICENSE", "not a file of the page")
    _put(tmp_path / "vendor" / "ort" / "ort.wasm", "plain" * 100)
    (tmp_path / "vendor" / "ort" / "ort.wasm.gz").write_bytes(gzip.compress(b"plain" * 100))
    return tmp_path


async def test_pages_and_libraries_are_served_with_their_types(site: Path) -> None:
    client = await _client(site)
    try:
        for address, kind in (
            ("/", "text/html"),
            ("/page/peer/worker.js", "text/javascript"),
            ("/page/vendor/ort/ort.mjs", "text/javascript"),
            ("/page/vendor/ort/ort.wasm", "application/wasm"),
        ):
            answer = await client.get(address)
            assert (answer.status, answer.content_type) == (200, kind)
            assert "'wasm-unsafe-eval'" in answer.headers["Content-Security-Policy"]
        assert (await client.get("/page/vendor/ort/LICENSE")).status == 404
    finally:
        await client.close()


@pytest.mark.parametrize("address", ["/", "/page/peer/worker.js", "/page/vendor/ort/ort.wasm"])
async def test_pages_are_alone_in_their_process_where_that_can_be(site: Path, address: str) -> None:
    """Browsers say how they fetch only where a page's context can be secure."""
    wanted = {
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Embedder-Policy": "require-corp",
    }
    client = await _client(site)
    try:
        secure = await client.get(address, headers={"Sec-Fetch-Mode": "navigate"})
        assert wanted.items() <= dict(secure.headers).items()
        known = {"Sec-Fetch-Mode": "cors", "If-None-Match": secure.headers["ETag"]}
        again = await client.get(address, headers=known)
        assert again.status == 304
        if not address.startswith("/page/vendor"):  # of those aiohttp answers
            assert wanted.items() <= dict(again.headers).items()
        plain = await client.get(address)
        assert not wanted.keys() & set(plain.headers)
    finally:
        await client.close()


async def test_a_gzipped_copy_is_sent_to_those_who_take_it(site: Path) -> None:
    client = await _client(site)
    try:
        packed = await client.get("/page/vendor/ort/ort.wasm", headers={"Accept-Encoding": "gzip"})
        assert packed.headers["Content-Encoding"] == "gzip"
        assert packed.content_type == "application/wasm"
        assert packed.headers["X-Uncompressed-Bytes"] == "500"
        assert await packed.read() == b"plain" * 100  # the client unpacked it
        plain = await client.get(
            "/page/vendor/ort/ort.wasm", headers={"Accept-Encoding": "identity"}
        )
        assert "Content-Encoding" not in plain.headers
        again = await client.get(
            "/page/vendor/ort/ort.wasm",
            headers={"Accept-Encoding": "identity", "If-None-Match": plain.headers["ETag"]},
        )
        assert again.status == 304
    finally:
        await client.close()


def test_a_peer_without_the_libraries_serves_its_page(tmp_path: Path) -> None:
    _put(tmp_path / "index.html", "<p>page</p>")
    assert [one.address for one in read_all(tmp_path)] == ["/"]
