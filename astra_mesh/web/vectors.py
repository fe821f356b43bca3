"""``/v1/embeddings``."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from astra_mesh import limits
from astra_mesh.client import Embedding, Mesh
from astra_mesh.web.body import decode
from astra_mesh.web.choices import Prompt, named_places
from astra_mesh.web.errors import bad, blaming
from astra_mesh.web.jsons import json_response
from astra_mesh.web.reports import Summary
from astra_mesh.web.requests import EmbeddingRequest
from astra_mesh.web.side import side_by_side
from astra_mesh.web.state import STATE
from astra_mesh.web.texts import prompts_of


async def embed(request: web.Request, data: bytes) -> web.StreamResponse:
    """Handle ``POST /v1/embeddings``."""
    asked, state = decode(data, EmbeddingRequest), request.app[STATE]
    state.peer.models.find(asked.model)  # named before anything else is judged
    if asked.dimensions is not None:
        text = "vectors have the model's own number of dimensions: leave dimensions out"
        raise bad(text, "dimensions", "unsupported_parameter")
    texts = prompts_of(asked.input, "input")
    if len(texts) > limits.API_TEXTS:
        raise bad(f"at most {limits.API_TEXTS} texts fit in one request", "input")
    mesh = await state.door.mesh()
    async with asyncio.timeout(state.config.request_s):
        found = await _embed_all(mesh, asked, texts)
    summaries = [summary for _, summary in found]
    state.metrics.note(summaries)
    return json_response(_answer(asked, [one for one, _ in found], summaries))


async def _embed_all(
    mesh: Mesh, asked: EmbeddingRequest, texts: Sequence[Prompt]
) -> list[tuple[Embedding, Summary]]:
    options = asked.x_astra_mesh

    async def one(named: tuple[str, Prompt]) -> tuple[Embedding, Summary]:
        began, (field, text) = time.perf_counter(), named
        with blaming(field):
            found = await mesh.embed(asked.model, text, **options.given())
        tokens = found.planned.prompt_tokens if found.planned is not None else 0
        took = time.perf_counter() - began
        return found, Summary(tokens, 0, found.planned, found.report, took)

    return await side_by_side(one, named_places("input", texts), limits.API_SIDE_BY_SIDE)


def _answer(
    asked: EmbeddingRequest, found: Sequence[Embedding], summaries: Sequence[Summary]
) -> dict[str, Any]:
    tokens = sum(one.prompt_tokens for one in summaries)
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _vector(asked, one)}
            for index, one in enumerate(found)
        ],
        "model": asked.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "x_astra_mesh": [one.mesh for one in summaries],
    }


def _vector(asked: EmbeddingRequest, one: Embedding) -> str | list[float]:
    if asked.encoding_format == "base64":
        return base64.b64encode(one.vector.astype("<f4").tobytes()).decode()
    return [float(number) for number in one.vector]
