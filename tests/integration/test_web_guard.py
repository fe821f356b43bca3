"""Who may ask the API, what its description promises, and bytes that no client would send."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import logging
import shutil
import sys
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import openai
import pytest

from astra_mesh import limits
from astra_mesh.web import answers
from tests.integration.mesh_fixtures import picture
from tests.integration.web_fixtures import (
    TOKEN,
    Live,
    live,
)
from tests.timings import patient

# --- who may ask ----------------------------------------------------------------------------------


async def test_other_sites_and_other_names_are_refused(models: Path) -> None:
    body = {"model": "words", "prompt": "w1", "max_tokens": 1}
    async with live(models, 1) as on:
        port = on.server.port
        table: list[tuple[dict[str, str], int, str]] = [
            ({}, 200, ""),
            ({"Host": f"localhost:{port}"}, 200, ""),
            ({"Host": f"[::1]:{port}"}, 200, ""),
            ({"Host": "198.51.100.7"}, 200, ""),  # no name, so nobody can bind it to this machine
            ({"Host": "198.51.100.7", "Origin": f"http://127.0.0.1:{port}"}, 403, "foreign_origin"),
            ({"Origin": f"http://127.0.0.1:{port}"}, 200, ""),
            ({"Origin": "http://evil.example"}, 403, "foreign_origin"),
            ({"Origin": "null"}, 403, "foreign_origin"),
            ({"Origin": f"http://localhost:{port + 1}"}, 403, "foreign_origin"),
            ({"Sec-Fetch-Site": "cross-site"}, 403, "foreign_origin"),
            ({"Host": "evil.example"}, 403, "unknown_host"),
            ({"Host": f"evil.example:{port}", "Origin": f"http://evil.example:{port}"}, 403, "u"),
            ({"Host": "127.0.0.1.evil.example"}, 403, "unknown_host"),
            ({"Host": ""}, 403, "unknown_host"),
            ({"Host": "a@[::1"}, 403, "unknown_host"),
            ({"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
        ]
        for headers, status, code in table:
            async with on.http.post(
                f"{on.root}/v1/completions",
                data=json.dumps(body),
                headers={"Content-Type": "application/json", **headers},
            ) as answer:
                found = await answer.json()
                assert answer.status == status, headers
                assert found.get("error", {}).get("code", "").startswith(code), headers


async def test_with_a_token_only_who_shows_it_may_ask(models: Path) -> None:
    async with live(models, 1, token=TOKEN) as on:
        assert (await on.client.models.list()).data
        for given in ("", "Bearer", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \u00e9"):
            headers = {"Authorization": given} if given else {}
            for path in ("/v1/models", "/metrics", "/nothing"):
                async with on.http.get(on.root + path, headers=headers) as answer:
                    assert answer.status == 401
                    assert (await answer.json())["error"]["code"] == "invalid_api_key"
                    assert answer.headers["WWW-Authenticate"] == "Bearer"
        for path in ("/health", "/docs", "/openapi.json"):
            async with on.http.get(on.root + path) as answer:
                assert answer.status == 200


async def test_without_a_token_it_listens_on_loopback_only(models: Path) -> None:
    async with live(models, 1) as on:
        found = [one for listener in on.server._listeners for one in listener.sockets]
        assert found
        assert {one.getsockname()[0] for one in found} <= {"127.0.0.1", "::1"}


# --- the description ------------------------------------------------------------------------------


async def test_answers_have_the_shapes_that_the_description_states(models: Path) -> None:
    text = {"model": "words", "prompt": "w1 w2", "max_tokens": 2}
    chat = {"model": "words", "messages": [{"role": "user", "content": "w1"}], "max_tokens": 2}
    image = {"model": "pictures", "image": base64.b64encode(picture()).decode()}
    table: list[tuple[str, dict[str, Any] | None, int, Any]] = [
        ("/v1/models", None, 200, answers.ModelsAnswer),
        ("/v1/models/words", None, 200, answers.ModelAnswer),
        ("/v1/models/absent", None, 404, answers.ErrorAnswer),
        ("/v1/completions", text, 200, answers.CompletionAnswer),
        ("/v1/completions", text | {"n": 2, "stop": "w3"}, 200, answers.CompletionAnswer),
        ("/v1/chat/completions", chat, 200, answers.ChatAnswer),
        ("/v1/chat/completions", chat | {"model": "plain"}, 400, answers.ErrorAnswer),
        ("/v1/embeddings", {"model": "feelings", "input": "w1"}, 200, answers.EmbeddingAnswer),
        ("/v1/images/classify", image, 200, answers.ClassifyAnswer),
        ("/v1/images/classify", {}, 400, answers.ErrorAnswer),
        ("/health", None, 200, answers.HealthAnswer),
        ("/absent", None, 404, answers.ErrorAnswer),
    ]
    async with live(models, 1) as on:
        for path, body, status, kind in table:
            method = "GET" if body is None else "POST"
            async with on.http.request(method, on.root + path, json=body) as answer:
                assert answer.status == status, path
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
                msgspec.json.decode(await answer.read(), type=kind)
        async with on.http.get(f"{on.root}/docs") as answer:
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]


# Of a code, the last character is computed from the others, which no schema can say.
SCHEMATHESIS = """
[[operations]]
include-path = "/v1/pairing/join"
checks.positive_data_acceptance.enabled = false
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_schemathesis_finds_nothing(models: Path, tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(SCHEMATHESIS)
    async with live(models, 1) as on:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{on.root}/openapi.json"),
            *("--max-examples", "10", "--seed", "1"),
            stdout=asyncio.subprocess.PIPE,
            cwd=tmp_path,
        )
        try:
            output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert process.returncode == 0, output.decode()[-3000:]
    assert b"16 selected / 16 total" in output


# --- hostile bytes --------------------------------------------------------------------------------


def _post(body: bytes, headers: str = "", path: str = "/v1/completions") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    length = (
        "" if "ength" in headers or "chunked" in headers else f"Content-Length: {len(body)}\r\n"
    )
    return f"{head}{headers}{length}Connection: close\r\n\r\n".encode() + body


def _raw() -> Iterator[tuple[str, bytes, int]]:
    ok = b'{"model": "words", "prompt": "w1", "max_tokens": 1'
    big = limits.API_BODY_BYTES + 1
    yield "fine", _post(ok + b"}"), 200
    yield "empty", _post(b""), 400
    yield "no JSON", _post(b"\xff\xfe"), 400
    yield "bad UTF-8", _post(b'{"model": "\xff"}'), 400
    yield "a half surrogate", _post(ok[:-19] + b'"\\ud800"}'), 400
    yield "NaN", _post(ok + b', "temperature": NaN}'), 400
    yield "a huge number", _post(ok + b', "temperature": 1e999}'), 400
    yield "a huge integer", _post(ok + b', "seed": ' + b"9" * 400 + b"}"), 400
    yield "deep", _post(b"[" * 200_000), 400
    yield (
        "deep metadata",
        _post(ok + b', "response_format": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        400,
    )
    yield "announced too large", _post(b"", f"Content-Length: {big}\r\n"), 413
    yield "two lengths", _post(b"{}", "Content-Length: 2\r\nContent-Length: 3\r\n"), 400
    yield "a bad chunk", _post(b"zz\r\n", "Transfer-Encoding: chunked\r\n"), 400
    yield "unknown coding", _post(b"abc", "Content-Encoding: gzip\r\n"), 400
    yield "no HTTP", b"\x16\x03\x01\x00\x00\r\n\r\n", 400
    yield "a long header", _post(b"{}", "X-Long: " + "x" * 20_000 + "\r\n"), 400
    yield (
        "wrong method",
        b"DELETE /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        405,
    )
    yield (
        "unknown path",
        b"GET /v1/../etc/passwd HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        404,
    )
    yield "an old protocol", b"GET /health HTTP/1.0\r\n\r\n", 403


@pytest.mark.parametrize(("name", "data", "status"), list(_raw()), ids=[x[0] for x in _raw()])
async def test_hostile_bytes_get_an_answer(
    one_live: Live, name: str, data: bytes, status: int
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", one_live.server.port)
    writer.write(data)
    async with asyncio.timeout(patient(10.0)):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    assert int(head.split()[1]) == status, head + body[:300]
    if status not in (200,) and b"application/json" in head:
        assert json.loads(body)["error"]["message"]


@pytest.fixture
async def one_live(models: Path) -> AsyncIterator[Live]:
    async with live(models, 1) as on:
        yield on


async def test_a_slow_body_and_a_large_one_without_a_length(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "API_BODY_BYTES", 100_000)

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 10_000

    kind = {"Content-Type": "application/json"}
    async with live(models, 1, body_s=0.3) as on:
        async with on.http.post(
            f"{on.root}/v1/completions", data=endless(), headers=kind
        ) as answer:
            assert answer.status == 413
        reader, writer = await asyncio.open_connection("127.0.0.1", on.server.port)
        writer.write(_post(b"{", "Content-Length: 100\r\n"))
        async with asyncio.timeout(patient(5.0)):
            text = await reader.read()
        writer.close()
        await writer.wait_closed()
        assert text.startswith(b"HTTP/1.1 408")
        assert b"within 0.3 s" in text


async def test_fields_that_cannot_be_used_are_named(models: Path) -> None:
    base = {"model": "words", "prompt": "w1", "max_tokens": 1}
    table: list[tuple[dict[str, Any], str]] = [
        ({"model": 3}, "model"),
        ({"model": ""}, "model"),
        ({"prompt": None}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["w1", 3]}, "prompt"),
        ({"prompt": [[-1]]}, "prompt[0][0]"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "", "stream": True}, "prompt"),
        ({"prompt": ["w1", ""]}, "prompt[1]"),
        ({"prompt": [64]}, "prompt"),
        ({"prompt": [[1], [64]]}, "prompt[1]"),
        ({"prompt": "w1 " * 100}, "prompt"),
        ({"model": "pictures"}, "model"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "3"}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 1000}, "n"),
        ({"prompt": ["w1"] * 20, "n": 20}, "n"),
        ({"stop": [""]}, "stop[0]"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": False, "stream_options": {}}, "stream_options"),
        ({"x_astra_mesh": {"max_peers": 0}}, "x_astra_mesh.max_peers"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"presence_penalty": 1}, "presence_penalty"),
        ({"nonsense": 1}, "nonsense"),
        ({"x_astra_mesh": {"use": "most"}}, "x_astra_mesh.use"),
        ({"x_astra_mesh": {"nonsense": 1}}, "x_astra_mesh.nonsense"),
        ({"x_astra_mesh": {"codec": "zip"}}, "x_astra_mesh.codec"),
        ({"model": "plain", "x_astra_mesh": {"codec": "vq"}}, "x_astra_mesh.codec"),
        ({"x_astra_mesh": {"codec": "a\nb"}}, "x_astra_mesh.codec"),
        ({"x_astra_mesh": {"rate": 7}}, "x_astra_mesh.rate"),
        ({"x_astra_mesh": {"codec": "fp16", "rate": 7}}, "x_astra_mesh.rate"),
    ]
    async with live(models, 1) as on:
        for change, param in table:
            async with on.http.post(f"{on.root}/v1/completions", json=base | change) as answer:
                assert answer.status == 400, change
                error = (await answer.json())["error"]
                assert error["type"] == "invalid_request_error"
                assert (error["param"] or "") == param, (change, error)
                assert error["message"]


async def test_fields_in_an_address_are_refused_where_they_mean_nothing(models: Path) -> None:
    kind = {"Content-Type": "image/png"}
    table: list[tuple[str, str, dict[str, str], int, str]] = [
        ("GET", "/v1/models?foo=1", {}, 400, "foo"),
        ("GET", "/v1/models/words?foo=1", {}, 400, "foo"),
        ("GET", "/v1/nothing?foo=1", {}, 404, ""),
        ("DELETE", "/v1/models?foo=1", {}, 405, ""),
        ("POST", "/v1/images/classify?model=pictures&tpo=2", kind, 400, "tpo"),
        ("POST", "/v1/images/classify?model=pictures&top=2", kind, 200, ""),
        ("POST", "/v1/images/classify?top=2", {}, 400, "top"),
        ("GET", "/health?foo=1", {}, 200, ""),
        ("GET", "/metrics?foo=1", {}, 200, ""),
        ("GET", "/?foo=1", {}, 200, ""),
    ]
    body = {"model": "pictures", "image": base64.b64encode(picture()).decode()}
    async with live(models, 1) as on:
        for method, path, headers, status, param in table:
            sent = {"data": picture(), "headers": headers} if headers else {"json": body}
            async with on.http.request(method, on.root + path, **sent) as answer:
                assert answer.status == status, path
                if status == 400:
                    error = (await answer.json())["error"]
                    assert (error["param"], error["code"]) == (param, "invalid_value"), path
                    assert f"'{param}'" in error["message"]
        with pytest.raises(openai.BadRequestError, match="no fields after a question mark") as slip:
            await on.client.models.list(extra_query={"limit": 3})
        assert slip.value.param == "limit"


@pytest.mark.parametrize("kind", ["application/pdf", "text/plain", "multipart/form-data"])
async def test_what_is_no_picture_is_told_how_to_send_one(one_live: Live, kind: str) -> None:
    address = f"{one_live.root}/v1/images/classify?model=pictures"
    headers = {"Content-Type": kind}
    async with one_live.http.post(address, data=picture(), headers=headers) as answer:
        assert answer.status == 415
        assert "-H 'Content-Type: image/jpeg'" in (await answer.json())["error"]["message"]


async def test_junk_is_told_from_a_body_that_is_compressed(one_live: Live) -> None:
    body = b'{"model": "words", "prompt": "w1", "max_tokens": 1}'
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    address = f"{one_live.root}/v1/completions"
    async with one_live.http.post(address, data=gzip.compress(body), headers=headers) as answer:
        assert answer.status == 200
    async with one_live.http.post(address, data=body, headers=headers) as answer:
        assert answer.status == 400
        error = (await answer.json())["error"]
    assert error["code"] == "invalid_encoding"
    assert "is not 'gzip'" in error["message"]


CODINGS = {
    "deflate": zlib.compress(b'{"model": "words", "prompt": "w1"}'),
    "br": b"\x0b\x02\x80junk",
    "zstd": b"\x28\xb5\x2f\xfdjunk",
    "gzip, deflate": b"junk",
    "x-gzip": b"junk",
    "\x01": b"junk",
}


@pytest.mark.parametrize("junk", [True, False])
@pytest.mark.parametrize("coding", CODINGS)
async def test_codings_that_are_not_taken(
    one_live: Live, coding: str, junk: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Some of them aiohttp knows, or would with more packages: they get no words of its own."""
    body = b'{"model": "words"}' if junk else CODINGS[coding]
    request = _post(body, f"Content-Encoding: {coding}\r\n")
    for split in (len(request), len(request) - len(body), len(request) - 1):
        reader, writer = await asyncio.open_connection("127.0.0.1", one_live.server.port)
        writer.write(request[:split])
        await asyncio.sleep(0.02)
        writer.write(request[split:])
        async with asyncio.timeout(patient(10.0)):
            head, _, said = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()
        assert b"nosniff" in head
        error = json.loads(said)["error"]
        if coding == "\x01":
            assert (head.split()[1], error["code"]) == (b"400", "bad_http")
            continue
        assert (head.split()[1], error["code"]) == (b"415", "unsupported_encoding"), said
        assert "gzip" in error["message"]
        assert b"Accept-Encoding: gzip" in head
        for word in ("aiohttp", "rotli", "install"):
            assert word not in error["message"]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_an_input_that_is_too_long_is_called_so(one_live: Live) -> None:
    with pytest.raises(openai.BadRequestError, match="the input has 101 tokens") as long:
        await one_live.client.embeddings.create(model="feelings", input=[[1] * 101])
    assert (long.value.code, long.value.param) == ("context_length_exceeded", "input")


async def test_a_model_without_a_tokenizer_says_what_it_lacks(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(models / "words", tmp_path / "mute")
    (tmp_path / "mute" / "tokenizer.json").unlink()
    (tmp_path / "mute" / "manifest.json").unlink(missing_ok=True)
    async with live(tmp_path, 1) as on:
        with pytest.raises(openai.BadRequestError) as mute:
            await on.client.completions.create(model="mute", prompt="w1")
        await on.client.completions.create(model="mute", prompt=[1], max_tokens=1)
    assert "copy the model's tokenizer.json" in mute.value.message
    assert "image" not in mute.value.message


async def test_other_addresses_name_the_field_too(models: Path) -> None:
    user = {"role": "user", "content": "w1"}
    image = base64.b64encode(picture()).decode()
    table: list[tuple[str, dict[str, Any], str]] = [
        ("chat/completions", {"model": "pictures", "messages": [user]}, "model"),
        ("chat/completions", {"model": "plain", "messages": [user]}, "model"),
        (
            "chat/completions",
            {"model": "words", "messages": [user | {"content": "w1 " * 100}]},
            "messages",
        ),
        ("embeddings", {"model": "feelings", "input": ""}, "input"),
        ("embeddings", {"model": "feelings", "input": ["w1", [64]]}, "input[1]"),
        ("embeddings", {"model": "feelings", "input": ["w1", 3]}, "input"),
        ("images/classify", {"model": "words", "image": image}, "model"),
        ("images/classify", {"model": "pictures", "image": "aGVsbG8="}, "image"),
        ("pairing/join", {"code": "abc"}, "code"),
        ("pairing/join", {"code": "K7QM-2XR8", "at": ["127.0.0.1", "[[["]}, "at[1]"),
    ]
    async with live(models, 1) as on:
        for path, body, param in table:
            async with on.http.post(f"{on.root}/v1/{path}", json=body) as answer:
                error = (await answer.json())["error"]
                assert (answer.status, error["param"]) == (400, param), (path, body, error)


async def test_a_form_is_told_how_to_send_the_file(models: Path) -> None:
    async with live(models, 1) as on:
        address = f"{on.root}/v1/images/classify"
        example = f"curl '{address}?model=NAME' -H 'Content-Type: image/jpeg' --data-binary @photo"
        for query in ("", "?model=pictures"):
            form = aiohttp.FormData()
            form.add_field("file", picture(), filename="a.png", content_type="image/png")
            async with on.http.post(address + query, data=form) as answer:
                error = (await answer.json())["error"]
            assert (answer.status, error["code"]) == (415, "unsupported_media_type")
            assert f"no form, but the file itself like this: {example}" in error["message"]
        for text in ("completions", "embeddings"):
            async with on.http.post(f"{on.root}/v1/{text}", data={"model": "words"}) as answer:
                error = (await answer.json())["error"]
            assert answer.status == 415
            assert error["message"] == "send the header Content-Type: application/json"


async def test_pictures_that_cannot_be_used(models: Path) -> None:
    async with live(models, 1) as on:
        for image, word in (
            ("%%%", "base64"),
            ("http://elsewhere/photo.png", "the file itself"),
            ("data:image/png,abc", "data: URL"),
            (base64.b64encode(b"no picture").decode(), "image"),
            (base64.b64encode(picture()[:200]).decode(), "image"),
            ("", "image"),
        ):
            body = {"model": "pictures", "image": image}
            async with on.http.post(f"{on.root}/v1/images/classify", json=body) as answer:
                assert answer.status == 400
                assert word in (await answer.json())["error"]["message"]
        size = limits.API_IMAGE_BODY_BYTES + 1
        head = _post(b"", f"Content-Length: {size}\r\n", "/v1/images/classify")
        reader, writer = await asyncio.open_connection("127.0.0.1", on.server.port)
        writer.write(head)
        found = await reader.read()
        assert found.startswith(b"HTTP/1.1 413")
        assert b"is larger than the 14 MiB taken here" in found
        writer.close()
        await writer.wait_closed()
