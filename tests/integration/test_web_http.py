"""What is refused before a model is looked at."""

from __future__ import annotations

from pathlib import Path

from tests.integration.web_fixtures import live


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
