"""JSON answers."""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec
from aiohttp import web

_AS_IT_IS: Final[dict[str, Any]] = {"parse_int": str, "parse_float": str, "parse_constant": str}

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


class _RepeatedError(Exception):
    pass


def repeated(data: bytes) -> str:
    """The first field that an object in valid JSON has twice, as ``stop.name``; "" if none has.

    Readers of JSON take one of the two, and not all the same.
    """
    text = data.decode()
    try:
        json.loads(text, object_pairs_hook=_once, **_AS_IT_IS)
    except _RepeatedError:
        return _place(json.loads(text, object_pairs_hook=tuple, **_AS_IT_IS))
    return ""


def _once(pairs: list[tuple[str, Any]]) -> None:
    if len({name for name, _ in pairs}) < len(pairs):
        raise _RepeatedError


def _place(value: Any) -> str:
    """Where a name comes twice; objects are tuples of pairs."""
    seen: set[str] = set()
    for place, one in enumerate(value if isinstance(value, list | tuple) else ()):
        name, inner = one if isinstance(value, tuple) else (f"[{place}]", one)
        if name in seen:
            return str(name)
        seen.add(name)
        if found := _place(inner):
            return f"{name}{found if found.startswith('[') else f'.{found}'}"
    return ""
