"""``/v1/models/NAME/quality``: what ``astra-mesh eval --save`` stored with a model."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from astra_mesh.bundle.quality import Measured, TaskQuality, code_name
from astra_mesh.errors import UnknownModelError
from astra_mesh.web.jsons import json_response
from astra_mesh.web.state import STATE


async def quality(request: web.Request) -> web.Response:
    """Handle ``GET /v1/models/NAME/quality``: quality against bits, by task; {} if not measured."""
    models, name = request.app[STATE].peer.models, request.match_info["model"]
    if not name.isprintable():
        raise UnknownModelError("no model has such a name; /v1/models lists those here")
    found = await models.quality(models.find(name[:200]))
    tasks = {} if found is None else {task: _of_task(one) for task, one in found.tasks.items()}
    return json_response({"object": "quality", "model": name, "tasks": tasks})


def _of_task(task: TaskQuality) -> dict[str, Any]:
    best = task.recommended
    return {
        "data": task.data,
        "sequences": task.sequences,
        "measure": task.measure,
        "limit": task.limit,
        "baseline": task.baseline,
        "definitions": task.definitions,
        "measured": [_of_row(one) for one in task.measured],
        "recommended_bits": None if best is None else best.bits,
    }


def _of_row(one: Measured) -> dict[str, Any]:
    return {
        "codec": code_name(one.codec, one.history),
        "bits": one.bits,
        "peers": one.peers,
        "loss": one.loss,
        "metrics": one.metrics,
    }
