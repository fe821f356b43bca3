"""JSON answers."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

_encoder = msgspec.json.Encoder()


def encode(value: Any) -> bytes:
    """Compact JSON. A NaN or infinity becomes null."""
    return _encoder.encode(value)


def json_response(
    value: Any, *, status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    """An answer that is one JSON value."""
    return web.Response(
        body=encode(value), status=status, content_type="application/json", headers=headers
    )
