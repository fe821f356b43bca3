"""``/openapi.json``, and ``/docs``: the same for people, one page that loads nothing."""

from __future__ import annotations

from functools import cache
from html import escape
from typing import Any, Final

from aiohttp import web

from astra_mesh.web.jsons import json_response
from astra_mesh.web.openapi import description

_STYLE: Final = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem;
  overflow-wrap: anywhere }
code, pre { font: 14px/1.4 ui-monospace, monospace }
pre { background: #8881; padding: .7rem; overflow-x: auto }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; vertical-align: top; padding: .2rem .6rem .2rem 0 }
td:has(> code) { min-width: 8.5rem }
tr { border-bottom: 1px solid #8883 }
:root { color-scheme: light dark }
"""
_INTRODUCTION: Final = (
    "<p>In the manner of OpenAI's API: give the address of this peer and <code>/v1</code> as "
    "<code>base_url</code> to its clients. For programs: "
    '<a href="/openapi.json">openapi.json</a>.</p>'
)
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
}


async def openapi(request: web.Request) -> web.Response:
    """Handle ``GET /openapi.json``."""
    return json_response(description())


async def docs(request: web.Request) -> web.Response:
    """Handle ``GET /docs``."""
    return web.Response(text=page(), content_type="text/html", headers=_HEADERS)


@cache
def page() -> str:
    """The description as HTML."""
    about = description()
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>astra_mesh API</title><style>{_STYLE}</style></head><body>",
        "<h1>astra_mesh API</h1>",
        _INTRODUCTION,
    ]
    for path, methods in about["paths"].items():
        for method, operation in methods.items():
            parts += _operation(about, path, method, operation)
    return "\n".join([*parts, "</body></html>", ""])


def _operation(
    about: dict[str, Any], path: str, method: str, operation: dict[str, Any]
) -> list[str]:
    parts = [
        f"<h2><code>{method.upper()} {escape(path)}</code></h2>",
        f"<p>{escape(operation['summary'])}.</p>",
    ]
    if "description" in operation:
        parts.append(f"<p>{escape(operation['description'])}</p>")
    body = operation.get("requestBody")
    if body is not None:
        parts += _fields(about, body["content"]["application/json"]["schema"])
    codes = "".join(
        f"<tr><td>{code}</td><td>{escape(one['description'])}</td></tr>"
        for code, one in operation["responses"].items()
    )
    return [*parts, f"<details><summary>answers</summary><table>{codes}</table></details>"]


def _fields(about: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    found = _resolve(about, schema)
    required = set(found.get("required", ()))
    rows = [
        f"<tr><td><code>{escape(name)}</code>{'' if name not in required else ' (needed)'}</td>"
        f"<td>{escape(_told(about, one))}</td></tr>"
        for name, one in found["properties"].items()
    ]
    return [f"<table><tr><th>field</th><th>what</th></tr>{''.join(rows)}</table>"]


def _told(about: dict[str, Any], schema: dict[str, Any]) -> str:
    """A schema in a few words, and what is said of it."""
    return ": ".join(filter(None, [_kind(about, schema), schema.get("description", "")]))


def _kind(about: dict[str, Any], schema: dict[str, Any]) -> str:
    """A schema in a few words."""
    if "anyOf" in schema:
        return " or ".join(_kind(about, one) for one in schema["anyOf"] if one != {"type": "null"})
    if "$ref" in schema:
        fields = ", ".join(_resolve(about, schema)["properties"])
        return f"object ({fields})"
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if schema.get("type") == "array":
        return f"list of {_kind(about, schema.get('items') or {})}"
    bounds = [
        f"{word} {schema[key]:,}"
        for key, word in (
            ("minimum", "from"),
            ("exclusiveMinimum", "above"),
            ("maximum", "to"),
            ("exclusiveMaximum", "below"),
            ("maxLength", "at most"),
        )
        if key in schema
    ]
    return " ".join([schema.get("type", "anything"), *bounds])


def _resolve(about: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    name = schema["$ref"].rpartition("/")[2]
    found: dict[str, Any] = about["components"]["schemas"][name]
    return found
