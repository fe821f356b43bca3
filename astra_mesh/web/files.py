"""The files of the page, served without a token.

The page's own are read once at the start and served from memory. The libraries of its compute peer
(its folder ``vendor``, made by ``make runtime``) are large and served from the disk, gzipped where
a gzipped copy lies beside them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiohttp import web

from astra_mesh.web.guard import PAGE_FILES

_TYPES: Final = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".json": "application/json",
    ".wasm": "application/wasm",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
}
SIZE: Final = "X-Uncompressed-Bytes"  # of a library's file: how far it is, where it is gzipped
_SITE: Final = Path(__file__).parent / "site"
_VENDOR: Final = "vendor/"
# The page loads its own files only, runs no text as a program, and sits in no other page's frame.
# WebAssembly is compiled from what the page has loaded, which needs a word of its own.
_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self' 'wasm-unsafe-eval'",
        "worker-src 'self'",
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
# Alone in its process: WebAssembly may then use threads. Elsewhere browsers complain about them.
_WHERE_SECURE: Final = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
}
# What browsers send to origins only whose pages have a secure context: HTTPS, also through a proxy
# that this peer knows nothing of, and loopback (W3C Fetch Metadata Request Headers, section 2).
_SECURE: Final = "Sec-Fetch-Mode"


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
        headers = _headers_for(request)
        response = web.Response(status=304, headers=headers)
        if not known:
            response = web.Response(
                body=self.data, content_type=self.kind, charset="utf-8", headers=headers
            )
        response.etag = self.etag
        return response


@dataclass(frozen=True)
class VendorFile:
    """One file of a library and its address."""

    address: str
    kind: str
    path: Path
    size: int  # bytes, not gzipped

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Handle its ``GET``."""
        about = {"Content-Type": self.kind, SIZE: str(self.size)}
        headers = _headers_for(request) | about
        return web.FileResponse(self.path, headers=headers)


def _headers_for(request: web.Request) -> dict[str, str]:
    return _HEADERS | (_WHERE_SECURE if _SECURE in request.headers else {})


def read_all(site: Path = _SITE) -> list[PageFile | VendorFile]:
    """All files: ``index.html`` at ``/``, the others below ``/page/``."""
    found: list[PageFile | VendorFile] = []
    for path in sorted(site.rglob("*")):
        if path.suffix not in _TYPES or not path.is_file():
            continue
        name, kind = path.relative_to(site).as_posix(), _TYPES[path.suffix]
        if name.startswith(_VENDOR):
            found.append(VendorFile(PAGE_FILES + name, kind, path, path.stat().st_size))
            continue
        data = path.read_bytes()
        address = "/" if name == "index.html" else PAGE_FILES + name
        found.append(PageFile(address, kind, data, hashlib.sha256(data).hexdigest()[:16]))
    return found
