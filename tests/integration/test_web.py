"""The API of live peers, asked by OpenAI's own client."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from astra_mesh.client import Mesh
from tests.integration.mesh_fixtures import picture, until
from tests.integration.web_fixtures import (
    MESH,
    PROMPT,
    busy,
    live,
)

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


async def test_a_template_that_changes_is_read_anew(models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    shutil.copytree(models, folder)
    asked = {"model": "words", "messages": [{"role": "user", "content": "w8"}], "max_tokens": 1}
    counts = []
    async with live(folder, 1) as mesh:
        for template in (None, "{{ messages[0].content }} w1 w2", "{{ messages[0].content }}"):
            if template is not None:
                (folder / "words" / "chat_template.jinja").write_text(template)
            async with mesh.http.post(f"{mesh.root}/v1/chat/completions", json=asked) as response:
                counts.append((await response.json())["usage"]["prompt_tokens"])
    assert counts[1:] == [3, 1]
    assert counts[0] > 3


async def test_of_copies_that_with_a_template_holds_conversations_by_either_name(
    models: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "models"
    shutil.copytree(models / "plain", folder / "plain")
    shutil.copytree(models / "plain", folder / "quiet")
    asked = {"messages": [{"role": "user", "content": "w8"}], "max_tokens": 1}
    async with live(folder, 1) as mesh:
        url = f"{mesh.root}/v1/chat/completions"
        async with mesh.http.post(url, json=asked | {"model": "quiet"}) as response:
            assert (await response.json())["error"]["message"].startswith("quiet has no chat")
    (folder / "quiet" / "chat_template.jinja").write_text("{{ messages[0].content }} w1")
    async with live(folder, 1) as mesh:
        for name in ("plain", "quiet"):
            url = f"{mesh.root}/v1/chat/completions"
            async with mesh.http.post(url, json=asked | {"model": name}) as response:
                assert (await response.json())["usage"]["prompt_tokens"] == 2


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
        for _ in range(2):
            async with on.http.get(f"{on.root}/metrics") as answer:
                figures = await answer.text()
    assert [m.id for m in found] == ["feelings", "pictures", "plain", "words"]
    assert one.model_extra["x_astra_mesh"]["peers"] == ["peer1", "peer0"]  # type: ignore[index]
    lines = figures.splitlines()
    assert 'astra_mesh_api_requests_total{path="/v1/completions",status="200"} 1.0' in lines
    assert 'astra_mesh_api_requests_total{path="/v1/models/{model}",status="404"} 1.0' in lines
    assert not any("/health" in line or "/metrics" in line for line in lines if "{" in line)
    assert "astra_mesh_api_running 0.0" in lines
    assert "astra_mesh_new_tokens_total 4.0" in lines
    assert "astra_mesh_peers 2.0" in lines
