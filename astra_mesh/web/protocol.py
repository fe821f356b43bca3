"""What serves a connection, and what it says of HTTP that is no request."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import ContentEncodingError

from astra_mesh.mesh.http_log import without_bad_requests
from astra_mesh.web.body import unknown_coding
from astra_mesh.web.errors import INTERNAL, ApiError

HEADERS: Final = {  # of every answer
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}
_KEEPALIVE_S: Final = 10.0  # of idle connections
_LINGER_S: Final = 2.0  # for the rest of a body that is refused, so that its sender reads why
_DETAIL_CHARS: Final = 200


class Speaker(web.RequestHandler):
    """Serves one connection."""

    __slots__ = ()

    def __init__(self, server: web.Server) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=_KEEPALIVE_S,
            lingering_time=_LINGER_S,
            access_log=None,  # type: ignore[arg-type]  # it takes none
            logger=without_bad_requests(__name__),
        )

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """As its base, which logs it and raises where an answer has begun; but in JSON."""
        super().handle_error(request, status, exc, message)
        coded = isinstance(exc, ContentEncodingError)
        error = unknown_coding() if coded else refused(status, message)
        response = error.response()
        response.headers.update(HEADERS)
        response.force_close()
        return response


def refused(status: int, message: str | None) -> ApiError:
    """What is said of a request that cannot be read."""
    if status >= web.HTTPInternalServerError.status_code:
        return ApiError(status, INTERNAL, "internal")
    detail = " ".join((message or "").split())[:_DETAIL_CHARS]
    text = f"this is no HTTP request that can be read: {detail}"
    return ApiError(status, text, "bad_http")
