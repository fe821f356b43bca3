"""Server-sent events: a stream of ``data:`` lines, comments while there is no news."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from aiohttp import web

from astra_mesh.web.errors import ApiError
from astra_mesh.web.jsons import encode

_HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache, no-store",
    "X-Accel-Buffering": "no",  # proxies of the nginx kind hold streams back otherwise
}


class ReaderGoneError(Exception):
    """Whoever reads the stream takes nothing, or is gone."""


class EventStream:
    """The stream that answers ``request``. It starts with its first line."""

    def __init__(
        self, request: web.Request, write_s: float, headers: dict[str, str] | None = None
    ) -> None:
        self._request, self._write_s = request, write_s
        self._response = web.StreamResponse(headers={**_HEADERS, **(headers or {})})

    @property
    def started(self) -> bool:
        """Whether the status is out, so that an error can only come as an event."""
        return self._response.prepared

    async def send(self, value: Any) -> None:
        """One JSON value as an event."""
        await self._write(b"data: " + encode(value) + b"\n\n")

    async def comment(self, text: str) -> None:
        """A comment, which readers skip."""
        line = "".join(c if c.isprintable() else " " for c in text)
        await self._write(f": {line}\n\n".encode())

    async def fail(self, error: ApiError) -> None:
        """The last event, an error."""
        await self.send(error.body())
        await self._end()

    async def finish(self) -> web.StreamResponse:
        """``[DONE]``, and the end."""
        await self._write(b"data: [DONE]\n\n")
        return await self._end()

    async def _end(self) -> web.StreamResponse:
        await self._response.write_eof()
        return self._response

    async def _write(self, data: bytes) -> None:
        try:
            async with asyncio.timeout(self._write_s):
                if not self.started:
                    await self._response.prepare(self._request)
                await self._response.write(data)
        except (TimeoutError, ConnectionError) as error:
            if self._request.transport is not None:
                self._request.transport.abort()
            raise ReaderGoneError from error

    @property
    def response(self) -> web.StreamResponse:
        """What the handler returns."""
        return self._response
