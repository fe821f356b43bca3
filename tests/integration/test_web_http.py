"""What is refused before a model is looked at: bytes that are no HTTP, token ids; and the port."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from astra_mesh.web import ApiServer
from tests.integration.web_fixtures import live


@pytest.mark.parametrize(
    "data",
    [
        b"NO HTTP AT ALL\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /" + 9_000 * b"x" + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + 9_000 * b"x" + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
    ],
)
async def test_what_is_no_http_request_is_told_in_json(models: Path, data: bytes) -> None:
    async with live(models, 1) as on:
        reader, writer = await asyncio.open_connection("127.0.0.1", on.server.port)
        writer.write(data)
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()
    assert head.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400"))
    assert b"application/json" in head
    assert b"nosniff" in head
    error = json.loads(body)["error"]
    assert error["message"].startswith("this is no HTTP request that can be read: ")
    assert (error["type"], error["param"], error["code"]) == (
        "invalid_request_error",
        None,
        "bad_http",
    )


async def test_token_ids_are_judged_before_the_model_is_loaded(models: Path) -> None:
    async with live(models, 1) as on:
        for path, body, param in (
            ("completions", {"model": "words", "prompt": [99999]}, "prompt"),
            ("completions", {"model": "words", "prompt": [99999], "logprobs": 1}, "prompt"),
            ("completions", {"model": "words", "prompt": [[1], [64]]}, "prompt[1]"),
            ("embeddings", {"model": "feelings", "input": [99999]}, "input"),
        ):
            async with on.http.post(f"{on.root}/v1/{path}", json=body) as answer:
                error = (await answer.json())["error"]
            assert (answer.status, error["param"]) == (400, param), error
            assert "token ids must lie in 0..63" in error["message"]
        body = {"model": "words", "prompt": [1] * 200, "logprobs": 1}
        async with on.http.post(f"{on.root}/v1/completions", json=body) as answer:
            error = (await answer.json())["error"]
        assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
        assert not any(offer.loaded for offer in on.peers[0].models.offers())


async def test_a_free_port_is_one_for_all_addresses(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = socket.getaddrinfo

    def two(host: str, *args: Any, **options: Any) -> list[Any]:
        hosts = ("127.0.0.1", "127.0.0.2") if host == "two.test" else (host,)
        return [one for each in hosts for one in original(each, *args, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", two)
    monkeypatch.setattr(ApiServer, "_hosts", lambda self: ("two.test",))
    async with live(models, 1) as on:
        places = {one.sockets[0].getsockname() for one in on.server._listeners}
    port = next(iter(places))[1]
    assert places == {("127.0.0.1", port), ("127.0.0.2", port)}
