"""Giving models to other peers: plain HTTP beside the links: codes never queue behind files.

``GET /share/MODEL`` lists the files of a model with their hashes; ``GET /share/MODEL/SHA256``, with
``Range`` if only a part is wanted, gives one. While requests run on this peer it gives a trickle.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
from aiohttp import web

from astra_mesh import limits
from astra_mesh.bundle import Bundle
from astra_mesh.bundle.configs import member
from astra_mesh.bundle.hashing import file_sha256
from astra_mesh.bundle.install import is_wanted
from astra_mesh.errors import AstraMeshError
from astra_mesh.wire.messages import ModelId

log = logging.getLogger(__name__)

PATH: Final = "/share"
_CHUNK_BYTES: Final = 64 * limits.KIB  # as much as may wait in the kernel before a link's codes
_LOOK_S: Final = 0.02  # whether requests still run


class SharedFile(msgspec.Struct, frozen=True):
    """One file of a model."""

    name: str
    size: int
    sha256: str


class Listing(msgspec.Struct, frozen=True):
    """The files of a model."""

    model: str
    name: str
    files: list[SharedFile]


class Share:
    """What this peer gives.

    Args:
        find: A model of this peer; None if it has no such.
        busy: Whether requests run.
    """

    def __init__(self, find: Callable[[ModelId], Bundle | None], busy: Callable[[], bool]) -> None:
        self._find, self._busy = find, busy
        self._known: dict[ModelId, tuple[Bundle, Listing, dict[str, Path]]] = {}
        self._giving = 0

    def add_routes(self, app: web.Application) -> None:
        """Serve at :data:`PATH`."""
        app.router.add_get(f"{PATH}/{{model}}", self._list)
        app.router.add_get(f"{PATH}/{{model}}/{{sha256}}", self._give)

    async def _list(self, request: web.Request) -> web.Response:
        listing, _ = await self._files(ModelId(request.match_info["model"]))
        return web.Response(body=msgspec.json.encode(listing), content_type="application/json")

    async def _give(self, request: web.Request) -> web.StreamResponse:
        _, paths = await self._files(ModelId(request.match_info["model"]))
        path = paths.get(request.match_info["sha256"])
        if path is None:
            raise web.HTTPNotFound(text="the model has no such file\n")
        if self._giving >= limits.SHARE_TRANSFERS:
            raise web.HTTPServiceUnavailable(text="busy\n", headers={"Retry-After": "1"})
        self._giving += 1
        try:
            return await self._stream(request, path)
        finally:
            self._giving -= 1

    async def _files(self, model: ModelId) -> tuple[Listing, dict[str, Path]]:
        bundle = self._find(model)
        if bundle is None:
            raise web.HTTPNotFound(text="this peer has no such model\n")
        known = self._known.get(model)
        if known is None or known[0] is not bundle:  # its codebooks are others now
            try:
                known = (bundle, *await asyncio.to_thread(_hashed, model, bundle))
            except AstraMeshError as error:
                raise web.HTTPNotFound(text=f"{error.message}\n") from error
            except OSError as error:
                raise _went(error) from error
            self._known[model] = known
        return known[1:]

    async def _stream(self, request: web.Request, path: Path) -> web.StreamResponse:
        try:
            size = (await asyncio.to_thread(path.stat)).st_size
        except OSError as error:
            raise _went(error) from error
        try:
            start, stop, _ = request.http_range.indices(size)
        except ValueError:
            raise web.HTTPRequestRangeNotSatisfiable(text="no such range\n") from None
        partial = "Range" in request.headers
        response = web.StreamResponse(status=206 if partial else 200)
        response.content_type = "application/octet-stream"
        response.content_length = max(0, stop - start)
        if partial:
            response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        await response.prepare(request)
        while start < stop:
            data = await asyncio.to_thread(_read, path, start, min(_CHUNK_BYTES, stop - start))
            if not data:  # the file became shorter: the reader misses bytes, and sees that
                break
            start += len(data)
            await self._wait()
            try:
                async with asyncio.timeout(limits.SHARE_WRITE_S):
                    await response.write(data)
            except (ConnectionError, TimeoutError) as error:
                log.info("%s was not wanted to its end: %r", path.name, error)
                break
        return response

    async def _wait(self) -> None:
        """Let requests go first, but not for ever."""
        waited = 0.0
        while self._busy() and waited < limits.SHARE_TRICKLE_S:
            await asyncio.sleep(_LOOK_S)
            waited += _LOOK_S


def _went(error: OSError) -> web.HTTPNotFound:
    """A file, or all of a model's, cannot be read any more."""
    log.info("a file that was asked for cannot be read: %s", error)
    return web.HTTPNotFound(text="the model's files are no longer here\n")


def _hashed(model: ModelId, bundle: Bundle) -> tuple[Listing, dict[str, Path]]:
    files, paths = [], {}
    for name in sorted(path.name for path in bundle.path.iterdir() if is_wanted(path.name)):
        path = member(bundle.path, name)
        found = SharedFile(name, path.stat().st_size, file_sha256(path))
        files.append(found)
        paths[found.sha256] = path
    return Listing(model, bundle.name, files), paths


def _read(path: Path, start: int, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(size)
    except OSError:
        return b""


def listing_of(data: bytes) -> Listing:
    """A listing from another peer.

    Raises:
        ValueError: It is none, or names files that no bundle has.
    """
    try:
        found: Any = msgspec.json.decode(data, type=Listing)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError) as error:
        raise ValueError(str(error)) from error
    for one in found.files:
        if not is_wanted(one.name) or not 0 <= one.size < 2**43 or not _is_hash(one.sha256):
            raise ValueError("it lists a file that no model has")
    if len({one.name for one in found.files}) != len(found.files):
        raise ValueError("it lists a file twice")
    return Listing(found.model, found.name, found.files)


def _is_hash(text: str) -> bool:
    return len(text) == 64 and not set(text) - set("0123456789abcdef")
