"""A server that speaks as much of the hub's API as fetching a model takes."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves the files of a folder as ``org/NAME`` at one commit.

    Attributes:
        cut_after: A connection that gives more than so many bytes, from the first on, ends there.
        ranges: ``Range`` headers that came.
        damaged: Large files come with other bytes than their hashes say.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.cut_after = 0
        self.damaged = False
        self.ranges: list[str] = []
        self.asked: list[str] = []
        self.url = ""

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/api/models/{org}/{name}", self._info)
        app.router.add_get("/api/models/{org}/{name}/revision/{revision}", self._info)
        app.router.add_get("/{org}/{name}/resolve/{revision}/{file}", self._file)
        return app

    async def _info(self, request: web.Request) -> web.Response:
        if request.match_info["name"] != self.name:
            return web.Response(status=404, headers={"X-Error-Code": "RepoNotFound"})
        if request.match_info.get("revision", "main") not in ("main", SHA):
            return web.Response(status=404, headers={"X-Error-Code": "RevisionNotFound"})
        siblings = []
        for path in sorted(self.folder.iterdir()):
            about: dict[str, object] = {"rfilename": path.name, "size": path.stat().st_size}
            if _is_large(path):
                sha = hashlib.sha256(path.read_bytes()).hexdigest()
                about["lfs"] = {"sha256": sha, "size": about["size"], "pointerSize": 100}
            siblings.append(about)
        return web.json_response({"id": f"org/{self.name}", "sha": SHA, "siblings": siblings})

    async def _file(self, request: web.Request) -> web.StreamResponse:
        path = self.folder / request.match_info["file"]
        if request.match_info["revision"] != SHA or not path.exists():
            return web.Response(status=404, headers={"X-Error-Code": "EntryNotFound"})
        data = path.read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Repo-Commit": SHA,
            "Accept-Ranges": "bytes",
        }
        if request.method == "HEAD":
            return web.Response(headers={**headers, "Content-Length": str(len(data))})
        self.asked.append(path.name)
        if self.damaged and _is_large(path):
            data = data[:-1] + bytes([data[-1] ^ 1])
        start = request.http_range.start or 0
        response = web.StreamResponse(status=206 if start else 200, headers=headers)
        if start:
            self.ranges.append(request.headers["Range"])
            response.headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        response.content_length = len(data) - start
        await response.prepare(request)
        if 0 < self.cut_after < len(data) and not start:
            await response.write(data[: self.cut_after])
            assert request.transport is not None
            request.transport.close()
            return response
        await response.write(data[start:])
        return response


def _is_large(path: Path) -> bool:
    return path.suffix == ".safetensors"


@asynccontextmanager
async def serving_hub(folder: Path, name: str) -> AsyncIterator[Hub]:
    hub = Hub(folder, name)
    runner = web.AppRunner(hub.app(), handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    hub.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield hub
    finally:
        await runner.cleanup()
