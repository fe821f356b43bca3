"""``/v1/images/classify``: not OpenAI's, but in the same manner."""

from __future__ import annotations

import asyncio
import base64
import binascii
import time

from aiohttp import web

from astra_mesh.web.body import decode
from astra_mesh.web.errors import ApiError, bad, blaming
from astra_mesh.web.jsons import json_response
from astra_mesh.web.query import takes_picture
from astra_mesh.web.reports import Summary
from astra_mesh.web.requests import ClassifyRequest
from astra_mesh.web.state import STATE


async def classify(request: web.Request, data: bytes) -> web.StreamResponse:
    """Handle ``POST /v1/images/classify``: JSON, or the picture's file as body."""
    state, began = request.app[STATE], time.perf_counter()
    if takes_picture(request):
        asked, picture = _of_query(request), data
    else:
        asked = decode(data, ClassifyRequest)
        state.peer.models.find(asked.model)  # named before anything else is judged
        picture = await asyncio.to_thread(picture_bytes, asked.image)
    options = asked.x_astra_mesh
    mesh = await state.door.mesh()
    async with asyncio.timeout(state.config.request_s):
        with blaming("image"):
            found = await mesh.classify(asked.model, picture, top=asked.top, **options.given())
    tokens = found.planned.prompt_tokens if found.planned is not None else 0
    summary = Summary(tokens, 0, found.planned, found.report, time.perf_counter() - began)
    state.metrics.note([summary])
    return json_response(
        {
            "object": "list",
            "data": [
                {"object": "label", "index": index, "label": one.label, "score": one.probability}
                for index, one in enumerate(found.labels)
            ],
            "model": asked.model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            "x_astra_mesh": [summary.mesh],
        }
    )


def _of_query(request: web.Request) -> ClassifyRequest:
    """What is asked for, where the body is the picture itself."""
    model, top = request.query.get("model", ""), request.query.get("top", "5")
    if not model:
        raise bad(
            "name the model in the address: /v1/images/classify?model=NAME", "model", "missing"
        )
    if not (top.isascii() and top.isdigit() and 1 <= int(top[:9]) <= 100):
        raise bad("top is a number of labels from 1 to 100", "top")
    return ClassifyRequest(model=model, image="", top=int(top))


def picture_bytes(text: str) -> bytes:
    """The file in base64, or in a data: URL. Blocks for some ms.

    Raises:
        ApiError: It is neither.
    """
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise _no_picture("a data: URL must have the form data:image/jpeg;base64,...")
    elif text.startswith(("http:", "https:", "file:")):
        raise _no_picture(
            "this peer loads nothing from the network: send the file itself in base64"
        )
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise _no_picture("it is no base64: send a JPEG or PNG file in base64") from None


def _no_picture(sentence: str) -> ApiError:
    return bad(f"image: {sentence}", "image", "bad_image")
