"""The API of live peers, asked by OpenAI's own client and by hostile bytes."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import numpy as np
import openai
import pytest
from openai import AsyncOpenAI

from astra_mesh import limits
from astra_mesh.client import Mesh
from astra_mesh.engine.pipeline import Pipeline
from astra_mesh.errors import DeadlineError, PeerLostError
from astra_mesh.peer import Peer
from astra_mesh.peer.answer import Answer
from astra_mesh.peer.models import ModelHost
from astra_mesh.peer.steps import StepQueue
from astra_mesh.web import ApiConfig, ApiServer, answers, serving
from tests.bundles import GPT2, gpt2_tensors, write_bundle
from tests.integration.mesh_fixtures import make_models, mesh_of, picture, until
from tests.timings import patient

TOKEN = "0123456789abcdefghij"
PROMPT = " ".join(f"w{7 * i % 64}" for i in range(40))
TEMPLATE = (
    "{{ bos_token }} {% for m in messages %}{% if m.role == 'system' %}w1{% else %}w2{% endif %} "
    "{{ m.content }} {% endfor %}{% if add_generation_prompt %}w3{% endif %}"
)
MESH = {"x_astra_mesh": {"use": "all"}}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``words`` holds conversations, ``plain`` does not."""
    folder = make_models(tmp_path_factory.mktemp("models") / "all")
    config = {"chat_template": TEMPLATE, "bos_token": {"content": "w5"}}
    (folder / "words" / "tokenizer_config.json").write_text(json.dumps(config))
    write_bundle(folder / "plain", GPT2, gpt2_tensors(GPT2, 3))
    return folder


@dataclass
class Live:
    """A mesh with an API on its last peer."""

    peers: list[Peer]
    server: ApiServer
    client: AsyncOpenAI
    http: aiohttp.ClientSession

    @property
    def root(self) -> str:
        return self.server.url.removesuffix("/v1")


@asynccontextmanager
async def live(models: Path, count: int = 2, **settings: Any) -> AsyncIterator[Live]:
    token = settings.get("token")
    names = [f"peer{i}" for i in range(count)]
    async with (
        mesh_of(names, models) as peers,
        serving(peers[-1], ApiConfig(port=0, **settings)) as server,
        AsyncOpenAI(base_url=server.url, api_key=token or "none", max_retries=0) as client,
        aiohttp.ClientSession() as http,
    ):
        yield Live(peers, server, client, http)


def busy(peer: Peer) -> bool:
    requests = peer._requests
    assert requests is not None
    return bool(requests._answers or requests._parts or requests._exchanges or requests._running)


# --- texts ----------------------------------------------------------------------------------------


async def test_a_completion_runs_on_the_mesh_and_says_what_it_cost(models: Path) -> None:
    async with live(models, 3) as on, Mesh(("127.0.0.1", on.peers[-1].port)) as mesh:
        done = await on.client.completions.create(
            model="words", prompt=PROMPT, max_tokens=8, temperature=0, extra_body=MESH
        )
        generation = mesh.generate("words", PROMPT, max_new_tokens=8, use="all")
        expected = "".join([token.text async for token in generation])
    assert done.choices[0].text == expected
    assert done.choices[0].finish_reason == "length"
    assert done.usage is not None
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (40, 8)
    (report,) = done.model_extra["x_astra_mesh"]  # type: ignore[index]
    names = [shard["peer"] for shard in report["plan"]["shards"]]
    assert sorted(names) == ["peer0", "peer1", "peer2"]
    assert report["plan"]["bits_per_token"] == 16
    assert report["predicted_s"] > 0
    assert report["actual_s"] > 0
    assert set(report["peers"][0]["sent_bytes"]) == set(names[1:])


async def test_a_stream_has_the_same_text_and_ends_with_the_usage(models: Path) -> None:
    given: dict[str, Any] = {"model": "words", "prompt": PROMPT, "max_tokens": 8, "temperature": 0}
    async with live(models) as on:
        whole = await on.client.completions.create(**given)
        stream = await on.client.completions.create(
            **given, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    assert len({chunk.id for chunk in chunks}) == 1
    assert [c.choices[0].finish_reason for c in chunks[:-1]][-2:] == [None, "length"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 48
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].model_extra["x_astra_mesh"][0]["actual_s"] > 0


async def test_the_raw_stream_is_lines_of_data_up_to_done(models: Path) -> None:
    body = {"model": "words", "prompt": PROMPT, "max_tokens": 3, "stream": True}
    async with live(models) as on:
        async with on.http.post(f"{on.root}/v1/completions", json=body) as answer:
            text = await answer.text()
        assert answer.status == 200
        assert answer.content_type == "text/event-stream"
    *events, end, rest = text.split("\n\n")
    assert end == "data: [DONE]"
    assert rest == ""
    last = json.loads(events[-1].removeprefix("data: "))
    assert last["x_astra_mesh"][0]["plan"]["shards"]
    assert "usage" not in last


async def test_a_conversation_is_written_as_the_template_says(models: Path) -> None:
    messages: list[Any] = [
        {"role": "developer", "content": "w10"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "w11 "}, {"type": "text", "text": "w12"}],
        },
    ]
    given: dict[str, Any] = {"model": "words", "temperature": 0}
    async with live(models) as on:
        chat = await on.client.chat.completions.create(messages=messages, max_tokens=6, **given)
        plain = await on.client.completions.create(
            prompt="w5 w1 w10 w2 w11 w12 w3", max_tokens=6, **given
        )
        stream = await on.client.chat.completions.create(
            messages=messages, max_completion_tokens=6, stream=True, **given
        )
        chunks = [chunk async for chunk in stream]
    assert chat.choices[0].message.content == plain.choices[0].text
    assert chat.choices[0].message.role == "assistant"
    assert chat.usage is not None
    assert chat.usage.prompt_tokens == 7
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert deltas[0].role == "assistant"
    assert "".join(d.content or "" for d in deltas) == chat.choices[0].message.content


async def test_a_model_without_a_template_says_so(models: Path) -> None:
    async with live(models, 1) as on:
        with pytest.raises(
            openai.BadRequestError, match=r"plain has no chat template.*v1/completions"
        ):
            await on.client.chat.completions.create(
                model="plain", messages=[{"role": "user", "content": "w1"}]
            )


async def test_the_same_seed_gives_the_same_texts_and_n_differ(models: Path) -> None:
    given: dict[str, Any] = {"model": "words", "prompt": PROMPT, "max_tokens": 24, "n": 2}
    given["temperature"] = 2.0  # random weights are sure of themselves
    async with live(models) as on:
        one = await on.client.completions.create(**given, seed=7)
        two = await on.client.completions.create(**given, seed=7)
        stream = await on.client.completions.create(**given, seed=7, stream=True)
        streamed = {0: "", 1: ""}
        async for chunk in stream:
            for choice in chunk.choices:
                streamed[choice.index] += choice.text
    texts = [choice.text for choice in one.choices]
    assert texts == [choice.text for choice in two.choices] == list(streamed.values())
    assert texts[0] != texts[1]
    assert [choice.index for choice in one.choices] == [0, 1]
    assert one.usage is not None
    assert (one.usage.prompt_tokens, one.usage.completion_tokens) == (40, 48)


async def test_several_prompts_and_token_ids(models: Path) -> None:
    ids = [7 * i % 64 for i in range(40)]
    given: dict[str, Any] = {"model": "words", "max_tokens": 4, "temperature": 0}
    async with live(models, 1) as on:
        texts = await on.client.completions.create(prompt=[PROMPT, "w1 w2"], **given)
        tokens = await on.client.completions.create(prompt=[ids, [1, 2]], **given)
        alone = await on.client.completions.create(prompt=ids, **given)
    assert [one.text for one in texts.choices] == [one.text for one in tokens.choices]
    assert alone.choices[0].text == texts.choices[0].text
    assert texts.usage is not None
    assert texts.usage.prompt_tokens == 42


async def test_a_stop_string_ends_the_text_across_tokens(models: Path) -> None:
    given: dict[str, Any] = {"model": "words", "prompt": PROMPT, "temperature": 0}
    async with live(models) as on:
        whole = (await on.client.completions.create(**given, max_tokens=12)).choices[0].text
        border = whole.index(" ", len(whole) // 2)
        stop = whole[border - 1 : border + 3]
        for stream in (False, True):
            made: Any = await on.client.completions.create(
                **given, max_tokens=50, stop=["absent", stop], stream=stream
            )
            chunks = [one async for one in made] if stream else [made]
            text = "".join(one.choices[0].text for one in chunks)
            assert text == whole[: whole.index(stop)]
            assert chunks[-1].choices[0].finish_reason == "stop"
            assert chunks[-1].model_extra["x_astra_mesh"][0]["ended_early"]
        await until(lambda: not any(busy(peer) for peer in on.peers))


# --- vectors and pictures -------------------------------------------------------------------------


async def test_embeddings_by_openai_s_client(models: Path) -> None:
    async with live(models) as on, Mesh(("127.0.0.1", on.peers[-1].port)) as mesh:
        made = await on.client.embeddings.create(model="feelings", input=[PROMPT, "w1 w2", PROMPT])
        floats = await on.client.embeddings.create(
            model="feelings", input=[1, 2], encoding_format="float"
        )
        expected = await mesh.embed("feelings", PROMPT)
    vectors = [np.array(one.embedding) for one in made.data]
    np.testing.assert_allclose(vectors[0], expected.vector, atol=1e-6)
    np.testing.assert_allclose(vectors[2], vectors[0], atol=1e-6)
    np.testing.assert_allclose(vectors[1], floats.data[0].embedding, atol=1e-6)
    assert made.usage.prompt_tokens == 82
    assert len(made.model_extra["x_astra_mesh"]) == 3  # type: ignore[index]


async def test_a_picture_is_labelled_from_base64_from_a_url_and_as_it_is(models: Path) -> None:
    text = base64.b64encode(picture()).decode()
    async with live(models) as on:
        address = f"{on.root}/v1/images/classify"
        answers = []
        for image in (text, f"data:image/png;base64,{text}"):
            body = {"model": "pictures", "image": image, "top": 2}
            async with on.http.post(address, json=body) as answer:
                answers.append((await answer.json())["data"])
        query, kind = {"model": "pictures", "top": "2"}, {"Content-Type": "image/png"}
        async with on.http.post(address, params=query, data=picture(), headers=kind) as answer:
            answers.append((await answer.json())["data"])
    assert [label["label"][:5] for label in answers[0]] == ["class", "class"]
    assert answers[0][0]["score"] > answers[0][1]["score"]
    assert answers[0] == answers[1] == answers[2]


# --- looking --------------------------------------------------------------------------------------


async def test_models_health_and_figures(models: Path) -> None:
    async with live(models) as on:
        found = [one async for one in await on.client.models.list()]
        one = await on.client.models.retrieve("words")
        with pytest.raises(
            openai.NotFoundError, match=r"'absent'.*feelings, pictures, plain, words"
        ):
            await on.client.models.retrieve("absent")
        await on.client.completions.create(model="words", prompt=PROMPT, max_tokens=4)
        async with on.http.get(f"{on.root}/health") as answer:
            assert (await answer.json())["status"] == "ok"
        async with on.http.get(f"{on.root}/metrics") as answer:
            figures = await answer.text()
    assert [m.id for m in found] == ["feelings", "pictures", "plain", "words"]
    assert one.model_extra["x_astra_mesh"]["peers"] == ["peer1", "peer0"]  # type: ignore[index]
    lines = figures.splitlines()
    assert 'astra_mesh_api_requests_total{path="/v1/completions",status="200"} 1.0' in lines
    assert 'astra_mesh_api_requests_total{path="/v1/models/{model}",status="404"} 1.0' in lines
    assert "astra_mesh_new_tokens_total 4.0" in lines
    assert "astra_mesh_peers 2.0" in lines


# --- errors ---------------------------------------------------------------------------------------


async def test_openai_s_client_raises_the_errors_that_it_knows(models: Path) -> None:
    async with live(models, 1) as on:
        create = on.client.completions.create
        with pytest.raises(openai.NotFoundError) as unknown:
            await create(model="absent", prompt="w1")
        with pytest.raises(openai.BadRequestError, match=r"context|tokens") as long:
            await create(model="words", prompt=" ".join(["w1"] * 200))
        with pytest.raises(openai.BadRequestError, match=r"classif|task|generate") as wrong:
            await create(model="pictures", prompt="w1")
        with pytest.raises(openai.BadRequestError, match="is not supported") as penalty:
            await create(model="words", prompt="w1", echo=True)
        with pytest.raises(openai.NotFoundError):
            await create(model="absent", prompt="w1", stream=True)
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    assert long.value.code == "context_length_exceeded"
    assert wrong.value.code == "wrong_task"
    assert (penalty.value.code, penalty.value.param) == ("unsupported_parameter", "echo")


async def test_busy_lost_late_and_broken(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def lost(self: Answer) -> None:
        raise PeerLostError("kitchen went away")

    async def late(self: Answer) -> None:
        raise DeadlineError("no codes came within 60 s")

    async def broken(self: Answer) -> None:
        raise RuntimeError("secret detail")

    async with live(models, 1) as on:
        create = on.client.completions.create
        for work, status, code in ((lost, 503, "peer_lost"), (late, 504, "deadline")):
            monkeypatch.setattr(Answer, "run", work)
            with pytest.raises(openai.InternalServerError) as error:
                await create(model="words", prompt="w1")
            assert (error.value.status_code, error.value.code) == (status, code)
        monkeypatch.setattr(Answer, "run", broken)
        with pytest.raises(openai.InternalServerError) as error:
            await create(model="words", prompt="w1")
        assert error.value.status_code == 500
        assert "secret" not in str(error.value)
        assert "RuntimeError" not in str(error.value)
        monkeypatch.setattr(limits, "REQUESTS_PER_PEER", 0)
        with pytest.raises(openai.RateLimitError, match="as many requests as it takes") as full:
            await create(model="words", prompt="w1")
        assert full.value.response.headers["retry-after"] == "1"


async def test_an_error_in_mid_stream_is_the_last_event(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(self: StepQueue, *args: Any) -> int | None:
        left.pop()
        if not left:
            raise PeerLostError("kitchen went away")
        return await original(self, *args)

    original, left = StepQueue.step, [0, 1, 2, 3]
    monkeypatch.setattr(StepQueue, "step", lost)
    async with live(models, 1) as on:
        stream = await on.client.completions.create(
            model="words", prompt=PROMPT, max_tokens=8, stream=True
        )
        with pytest.raises(openai.APIError, match="kitchen went away"):
            async for _ in stream:
                pass


# --- leaving --------------------------------------------------------------------------------------


@pytest.fixture
def slow_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each new token takes 50 ms longer."""
    original = StepQueue.step

    async def slow(self: StepQueue, *args: Any) -> int | None:
        await asyncio.sleep(0.05)
        return await original(self, *args)

    monkeypatch.setattr(StepQueue, "step", slow)


async def test_leaving_a_stream_frees_the_request_everywhere(
    models: Path, slow_steps: None
) -> None:
    async with live(models, 3) as on:
        stream = await on.client.completions.create(
            model="words", prompt=PROMPT, max_tokens=50, n=2, stream=True, extra_body=MESH
        )
        async for _ in stream:
            break
        assert busy(on.peers[-1])
        await stream.close()
        await until(lambda: not any(busy(peer) for peer in on.peers), patient(1.0))
        async with on.http.get(f"{on.root}/metrics") as answer:
            assert 'path="/v1/completions",status="499"} 1.0' in await answer.text()


async def test_leaving_before_the_answer_frees_the_participants_too(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = asyncio.Event()

    async def stuck(self: Pipeline) -> None:
        reached.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(Pipeline, "prefill", stuck)
    async with live(models, 3) as on:
        asking = asyncio.create_task(
            on.client.completions.create(model="words", prompt=PROMPT, extra_body=MESH)
        )
        await reached.wait()
        await until(lambda: all(busy(peer) for peer in on.peers))
        asking.cancel()
        await asyncio.wait([asking])
        await until(lambda: not any(busy(peer) for peer in on.peers), patient(1.0))


async def test_a_stream_without_news_says_that_it_lives(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ModelHost.load

    async def slow(self: ModelHost, model: Any) -> Any:
        await asyncio.sleep(0.35)
        return await original(self, model)

    monkeypatch.setattr(ModelHost, "load", slow)
    body = {"model": "words", "prompt": PROMPT, "max_tokens": 2, "stream": True}
    async with (
        live(models, 1, keepalive_s=0.1) as on,
        on.http.post(f"{on.root}/v1/completions", json=body) as answer,
    ):
        text = await answer.text()
    assert text.startswith(": keep-alive\n\n: keep-alive\n\n")
    assert text.endswith("data: [DONE]\n\n")


async def test_a_request_that_takes_too_long_ends(models: Path, slow_steps: None) -> None:
    async with live(models, 1, request_s=1.0) as on:
        await on.client.completions.create(model="words", prompt="w1", max_tokens=1)
        with pytest.raises(openai.InternalServerError, match="within 1 s; ask for fewer") as error:
            await on.client.completions.create(model="words", prompt=PROMPT, max_tokens=50)
        assert error.value.status_code == 504
        await until(lambda: not busy(on.peers[0]))


async def test_a_lost_line_to_the_own_peer_is_opened_again(models: Path) -> None:
    async with live(models, 1) as on:
        first = await on.server._state.door.mesh()
        await first._open_line().close()
        done = await on.client.completions.create(model="words", prompt="w1", max_tokens=1)
        assert done.choices[0].finish_reason == "length"


# --- who may ask ----------------------------------------------------------------------------------


async def test_other_sites_and_other_names_are_refused(models: Path) -> None:
    body = {"model": "words", "prompt": "w1", "max_tokens": 1}
    async with live(models, 1) as on:
        port = on.server.port
        table: list[tuple[dict[str, str], int, str]] = [
            ({}, 200, ""),
            ({"Host": f"localhost:{port}"}, 200, ""),
            ({"Host": f"[::1]:{port}"}, 200, ""),
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
        assert on.server._runner is not None
        assert {address[0] for address in on.server._runner.addresses} <= {"127.0.0.1", "::1"}


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


@pytest.mark.skipif(shutil.which("schemathesis") is None, reason="schemathesis is not installed")
@pytest.mark.slow
async def test_schemathesis_finds_nothing(models: Path, tmp_path: Path) -> None:
    async with live(models, 1) as on:
        process = await asyncio.create_subprocess_exec(
            *("schemathesis", "run", f"{on.root}/openapi.json", "--max-examples", "20"),
            stdout=asyncio.subprocess.PIPE,
            cwd=tmp_path,
        )
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()[-3000:]


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
        ({"prompt": ["w1", 3]}, ""),
        ({"prompt": [[-1]]}, "prompt[0][0]"),
        ({"prompt": ""}, ""),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "3"}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 1000}, "n"),
        ({"prompt": ["w1"] * 20, "n": 20}, "n"),
        ({"stop": [""]}, "stop[0]"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"logprobs": 0}, "logprobs"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"presence_penalty": 1}, "presence_penalty"),
        ({"nonsense": 1}, "nonsense"),
        ({"x_astra_mesh": {"use": "most"}}, "x_astra_mesh.use"),
        ({"x_astra_mesh": {"nonsense": 1}}, "x_astra_mesh.nonsense"),
    ]
    async with live(models, 1) as on:
        for change, param in table:
            async with on.http.post(f"{on.root}/v1/completions", json=base | change) as answer:
                error = (await answer.json())["error"]
                assert answer.status == 400, change
                assert error["type"] == "invalid_request_error"
                assert (error["param"] or "") == param, (change, error)
                assert error["message"]


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
        assert (await reader.read()).startswith(b"HTTP/1.1 413")
        writer.close()
        await writer.wait_closed()
