"""Log-probabilities over the API, asked by OpenAI's own client."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from astra_mesh.bundle import open_bundle
from astra_mesh.bundle.tensors import load_weights
from astra_mesh.engine.reference import hidden_rows, run_solo
from astra_mesh.families import ModelInput, build_model
from tests.integration.web_fixtures import PROMPT, live

NEW = 6
GIVEN: dict[str, Any] = {"model": "words", "prompt": PROMPT, "temperature": 0}


def reference(models: Path, text: str) -> tuple[list[int], torch.Tensor]:
    """The ids of the new text, and the log-probabilities (tokens, vocab) before each of them."""
    bundle = open_bundle(models / "words")
    model = build_model(bundle.config, load_weights(bundle))
    prompt, new = ([int(word[1:]) for word in words.split()] for words in (PROMPT, text))
    run = run_solo(model, ModelInput(tokens=torch.tensor([*prompt, *new])), "all")
    logits = model.logits(hidden_rows([run]))
    return new, torch.log_softmax(logits.float(), -1)[len(prompt) - 1 : -1]


@pytest.mark.parametrize("use", ["solo", "all"])
async def test_a_completion_tells_what_the_model_thought(models: Path, use: str) -> None:
    mesh = {"x_astra_mesh": {"use": use, "codec": "fp32"}}
    async with live(models, 2) as on:
        done = await on.client.completions.create(
            **GIVEN, max_tokens=NEW, logprobs=3, extra_body=mesh
        )
        assert on.peers[-1].likelihoods._wanted == {}
    found = done.choices[0].logprobs
    assert found is not None
    assert found.tokens is not None
    assert found.token_logprobs is not None
    assert found.top_logprobs is not None
    ids, expected = await asyncio.to_thread(reference, models, done.choices[0].text)
    assert "".join(found.tokens) == done.choices[0].text
    for at, token in enumerate(ids):
        assert found.token_logprobs[at] == pytest.approx(float(expected[at, token]), abs=1e-3)
        best = expected[at].topk(3)
        top = {text.strip(): value for text, value in found.top_logprobs[at].items()}
        assert list(top) == [f"w{one}" for one in best.indices.tolist()]
        assert list(top.values()) == pytest.approx(best.values.tolist(), abs=1e-3)
    text = done.choices[0].text
    assert found.text_offset is not None
    for at, offset in enumerate(found.text_offset):
        assert text[offset:].startswith(found.tokens[at])


async def test_a_stream_tells_the_same_and_a_stop_string_ends_both(models: Path) -> None:
    async with live(models, 1) as on:
        create = on.client.completions.create
        whole = await create(**GIVEN, max_tokens=12, logprobs=0)
        text = whole.choices[0].text
        words = text.split()
        stop = f" {words[-2]} "
        cut = await create(**GIVEN, max_tokens=12, logprobs=0, stop=stop)
        stream = await create(**GIVEN, max_tokens=12, logprobs=0, stop=stop, stream=True)
        chunks = [chunk.choices[0] async for chunk in stream]
    assert whole.choices[0].logprobs is not None
    assert cut.choices[0].logprobs is not None
    expected, found = whole.choices[0].logprobs, cut.choices[0].logprobs
    assert found.tokens is not None
    count = len(cut.choices[0].text.split())
    assert 0 < count < len(words)
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        streamed = [
            one for chunk in chunks if chunk.logprobs for one in getattr(chunk.logprobs, name)
        ]
        assert getattr(found, name) == getattr(expected, name)[:count] == streamed
    assert all(len(one) == 1 for one in found.top_logprobs or [{}])  # the chosen one only


async def test_a_conversation_in_the_shape_of_openai(models: Path) -> None:
    given: dict[str, Any] = {"model": "words", "max_tokens": 4, "seed": 1}
    given["messages"] = [{"role": "user", "content": "w9 w8"}]
    async with live(models, 1) as on:
        create = on.client.chat.completions.create
        done = await create(**given, logprobs=True, top_logprobs=2)
        plain = await create(**given)
        stream = await create(**given, logprobs=True, top_logprobs=2, stream=True)
        streamed = [
            token
            async for chunk in stream
            if chunk.choices[0].logprobs
            for token in chunk.choices[0].logprobs.content or ()
        ]
        with pytest.raises(openai.BadRequestError, match="needs logprobs") as error:
            await create(**given, top_logprobs=2)
    assert plain.choices[0].logprobs is None
    assert error.value.param == "top_logprobs"
    found = done.choices[0].logprobs
    assert found is not None
    assert found.content is not None
    assert [one.model_dump() for one in found.content] == [one.model_dump() for one in streamed]
    assert len(found.content) == 4
    content = done.choices[0].message.content
    assert (
        "".join(one.token for one in found.content) == content == plain.choices[0].message.content
    )
    for one in found.content:
        assert one.bytes == list(one.token.encode())
        first, second = one.top_logprobs
        assert 0 >= first.logprob >= second.logprob
        assert one.logprob <= first.logprob
