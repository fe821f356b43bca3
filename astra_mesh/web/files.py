"""The files of the page: read once at the start, served from memory, without a token."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import Final

from aiohttp import web

from astra_mesh.web.guard import PAGE_FILES

_TYPES: Final = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
}
# The page loads its own files only, runs no text as a program, and sits in no other page's frame.
_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "media-src 'self' blob:",
        "connect-src 'self'",
        "manifest-src 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'none'",
    )
)
_HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "Cache-Control": "no-cache",  # asked for each time, and mostly "not modified"
}


@dataclass(frozen=True)
class PageFile:
    """One file and its address."""

    address: str
    kind: str
    data: bytes
    etag: str

    async def serve(self, request: web.Request) -> web.Response:
        """Handle its ``GET``."""
        etags = request.if_none_match or ()
        known = any(one.value == self.etag for one in etags)
        response = web.Response(status=304, headers=_HEADERS)
        if not known:
            response = web.Response(
                body=self.data, content_type=self.kind, charset="utf-8", headers=_HEADERS
            )
        response.etag = self.etag
        return response


def read_all() -> list[PageFile]:
    """All files of the page; ``index.html`` is at ``/``, the others below ``/page/``."""
    found = []
    for file in sorted(resources.files("astra_mesh.web").joinpath("site").iterdir(), key=str):
        suffix = file.name[file.name.rfind(".") :]
        if suffix in _TYPES:
            data = file.read_bytes()
            address = "/" if file.name == "index.html" else PAGE_FILES + file.name
            etag = hashlib.sha256(data).hexdigest()[:16]
            found.append(PageFile(address, _TYPES[suffix], data, etag))
    return found
