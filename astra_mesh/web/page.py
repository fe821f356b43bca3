"""``/openapi.json`` and ``/docs``."""

from __future__ import annotations

from aiohttp import web

from astra_mesh.web.jsons import json_response


async def openapi(request: web.Request) -> web.Response:
    """Handle ``GET /openapi.json``."""
    return json_response({})


async def docs(request: web.Request) -> web.Response:
    """Handle ``GET /docs``."""
    return web.Response(text="")
