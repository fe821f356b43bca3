"""Files for tabs that compute: ``/tab/models``, ``/tab/blobs``, and embedded rows.

A model's files are made at its first use, in a thread, and kept in a folder that is gone when the
API stops (that of a peer that was killed: when the next one starts): :data:`limits.TAB_MODELS`
models at once, each as large as its manifest says. Where the system clears temporary folders, or a
file is damaged there, they are made again.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import msgpack  # type: ignore[import-untyped]
import msgspec
import numpy as np
from aiohttp import web

from astra_mesh import limits
from astra_mesh.browser.files import ModelFiles, make_files
from astra_mesh.browser.sizes import blocks_bytes, check_size, fetched_bytes
from astra_mesh.bundle import Bundle
from astra_mesh.bundle.specs import spec_of
from astra_mesh.bundle.tensors import is_half, load_weights
from astra_mesh.errors import (
    BadBundleError,
    CodebookError,
    ProtocolError,
    UnknownModelError,
    UnsupportedModelError,
)
from astra_mesh.families import ModelInput, build_model
from astra_mesh.peer import Peer
from astra_mesh.peer.choice import usual_rate
from astra_mesh.peer.inputs import read_inputs
from astra_mesh.peer.loaded import Loaded
from astra_mesh.peer.loading import quality_of
from astra_mesh.peer.shelf import read_codebooks
from astra_mesh.quant.codebook import Codebook
from astra_mesh.quant.codecs import make_codec
from astra_mesh.web.errors import bad, busy
from astra_mesh.web.jsons import json_response
from astra_mesh.web.tab_envelope import Envelopes
from astra_mesh.web.tab_folder import TabFolder
from astra_mesh.wire.messages import CodebookId, Inputs, ModelId, ModelOffer

log = logging.getLogger(__name__)

_HASH: Final = re.compile(r"[0-9a-f]{64}")
_FOR_EVER: Final = {"Cache-Control": "private, max-age=31536000, immutable"}
_Size = Annotated[int, msgspec.Meta(ge=0, le=limits.PROMPT_TOKENS)]


class Embed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which rows a tab wants."""

    inputs: Inputs
    start: _Size
    stop: _Size


class TabFiles:
    """The files of one API. Its methods are handlers."""

    def __init__(self, peer: Peer, envelopes: Envelopes) -> None:
        self._peer, self._envelopes = peer, envelopes
        self._folder: TabFolder | None = None
        self._known: dict[ModelId, ModelFiles] = {}  # the last one used is last
        self._made_for: dict[ModelId, frozenset[CodebookId]] = {}  # what the peer offered then
        self._half: dict[ModelId, bool] = {}  # whether it is stored in 16 bits
        self._lock = threading.Lock()  # of making: one model is in memory at a time
        self._making = self._embedding = 0

    async def close(self) -> None:
        """Remove all files."""
        self._known.clear()
        self._made_for.clear()
        if self._folder is not None:
            await asyncio.to_thread(self._folder.remove)

    async def models(self, request: web.Request) -> web.Response:
        """Handle ``GET /tab/models``."""
        found = [(one, self._bundle(one.id)) for one in self._offers()]
        return json_response(
            [_listed(one, bundle, await self._bytes(one.id, bundle)) for one, bundle in found]
        )

    async def manifest(self, request: web.Request) -> web.Response:
        """Handle ``GET /tab/models/{model}``; slow at a model's first use."""
        found = await self._ready(self._asked(request))
        return json_response(found.manifest)

    async def blob(self, request: web.Request) -> web.StreamResponse:
        """Handle ``GET /tab/blobs/{sha256}``; who says ``no-cache`` got what its name does not say,
        so what lies on the disk is checked.
        """
        sha256 = request.match_info["sha256"]
        if _HASH.fullmatch(sha256) is None:
            raise bad("a file for tabs is named by its SHA-256: 64 digits", "sha256")
        for model, files in list(self._known.items()):
            path = files.paths.get(sha256)
            if path is None or self._peer.models.bundle(model) is None:
                continue
            if "no-cache" in request.headers.get("Cache-Control", ""):
                await asyncio.to_thread(self._remove_damaged, model, path)
            if not await asyncio.to_thread(path.is_file):
                path = (await self._ready(model)).paths[sha256]
            headers = {"Content-Type": "application/octet-stream", **_FOR_EVER}
            return web.FileResponse(path, headers=headers)
        raise UnknownModelError("no such file for tabs here; ask for its model again first")

    async def embed(self, request: web.Request, data: bytes) -> web.Response:
        """Handle ``POST /tab/models/{model}/embed``: rows (stop - start, D) float32. Question and
        answer are sealed (:mod:`astra_mesh.web.tab_envelope`): they are of other peers' requests.
        """
        try:
            body, envelope = self._envelopes.open(data, request.path)
        except ProtocolError as error:
            raise bad(str(error)) from None
        model, asked = self._asked(request), _decode(body)
        if self._embedding >= limits.TAB_EMBED_AT_ONCE:
            raise busy("this peer embeds other tabs' tokens; try again later")
        self._embedding += 1
        try:
            loaded = await self._peer.models.load(model)
            sealed = await self._peer.compute(lambda: envelope.seal(_embed(loaded, asked)))
        finally:
            self._embedding -= 1
        return web.Response(body=sealed, content_type="application/octet-stream")

    def _offers(self) -> list[ModelOffer]:
        return self._peer.models.offers()

    def _asked(self, request: web.Request) -> ModelId:
        model = ModelId(request.match_info["model"])
        if self._peer.models.bundle(model) is None:
            raise UnknownModelError("this peer has no such model; /tab/models lists those it has")
        return model

    def _bundle(self, model: ModelId) -> Bundle:
        bundle = self._peer.models.bundle(model)
        assert bundle is not None
        return bundle

    async def _bytes(self, model: ModelId, bundle: Bundle) -> int:
        """What a tab fetches of the blocks: as it is, once the files are made; else at most."""
        if files := self._known.get(model):
            return sum(one["bytes"] for one in files.manifest["weights"])
        if model not in self._half:
            self._half[model] = await asyncio.to_thread(_is_half, bundle)
        return fetched_bytes(spec_of(bundle), self._half[model])

    async def _ready(self, model: ModelId) -> ModelFiles:
        """The files of a model that this peer has; ApiError (429) while it makes others."""
        if self._making >= limits.TAB_MAKING:
            raise busy("this peer prepares other models for tabs; try again later")
        self._making += 1
        try:
            # Whoever leaves, the thread goes on, and the next one finds what it made.
            return await asyncio.to_thread(
                self._made, model, self._bundle(model), self._books(model)
            )
        finally:
            self._making -= 1

    def _books(self, model: ModelId) -> frozenset[CodebookId]:
        return frozenset(
            book.id for one in self._offers() if one.id == model for book in one.codebooks
        )

    def _made(self, model: ModelId, bundle: Bundle, books: frozenset[CodebookId]) -> ModelFiles:
        """The files of a model, made anew where the system cleared them away, or codebooks came or
        went since; in a thread.
        """
        with self._lock:
            known = self._known.pop(model, None)
            made_for = self._made_for.pop(model, None)
            if known is None or made_for != books or not _are_there(known):
                # What is left goes: who still reads a file keeps it, whole.
                shutil.rmtree(self._room(model), ignore_errors=True)
                known = _make(bundle, self._room(model))
            self._known[model], self._made_for[model] = known, books
            for old in list(self._known)[: -limits.TAB_MODELS]:
                del self._known[old], self._made_for[old]
                shutil.rmtree(self._room(old), ignore_errors=True)
            return known

    def _remove_damaged(self, model: ModelId, path: Path) -> None:
        """Remove a file that is not what its name says; in a thread."""
        if _is_whole(path):
            return
        with self._lock:  # another request may have made it anew by now
            if path.is_file() and not _is_whole(path):
                log.warning(
                    "a file of %s for tabs was damaged on this device's disk; it is made anew: %s",
                    self._bundle(model).name,
                    path,
                )
                path.unlink(missing_ok=True)

    def _room(self, model: ModelId) -> Path:
        if self._folder is not None and not self._folder.is_there:
            self._folder.remove()
            self._folder = None
        if self._folder is None:
            self._folder = TabFolder()
        room = self._folder.path / model
        room.mkdir(exist_ok=True)
        return room


def _are_there(files: ModelFiles) -> bool:
    return all(path.is_file() for path in files.paths.values())


def _is_whole(path: Path) -> bool:
    """Whether a file is there, and is what its name says."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == path.name
    except OSError:
        return False


def _is_half(bundle: Bundle) -> bool:
    """False where its files are bad, too; whoever asks for the model is told."""
    try:
        return is_half(bundle)
    except BadBundleError:
        return False


def _listed(offer: ModelOffer, bundle: Bundle, size: int) -> dict[str, Any]:
    """A line of the list; ``why`` says what keeps tabs from running the model, if anything does."""
    spec = spec_of(bundle)
    found = {
        "id": offer.id,
        "name": offer.name,
        "family": offer.family,
        "tasks": [task.value for task in offer.tasks],
        "bytes": size,
        "memory_bytes": blocks_bytes(spec),
        "codebooks": [
            {
                "id": book.id,
                "codec": book.codec,
                "rates": book.rates,
                "default_rate": book.default_rate,
            }
            for book in offer.codebooks
        ],
    }
    try:
        check_size(offer.name, spec)
    except UnsupportedModelError as error:
        found["why"] = error.message
    return found


def first_rates(bundle: Bundle, books: Mapping[CodebookId, Codebook]) -> dict[CodebookId, int]:
    """Bits of each codebook that requests without a wish use, as its stored quality says."""
    quality = quality_of(bundle)
    tasks = [] if quality is None else quality.tasks.values()
    return {key: usual_rate(book, tasks) for key, book in books.items()}


def _make(bundle: Bundle, folder: Path) -> ModelFiles:
    """Read a model once more, in float32, for nobody but tabs; nothing is left where it fails."""
    spec = spec_of(bundle)
    try:
        check_size(bundle.name, spec)
        model = build_model(bundle.config, load_weights(bundle))
        books: dict[CodebookId, Codebook] = {}
        for book in read_codebooks(bundle)[0].values():
            try:
                make_codec(book.codec, model, book)
            except CodebookError:
                continue  # the peer itself left it out and said so
            books[book.id] = book
        first = first_rates(bundle, books)
        return make_files(bundle.name, bundle.model_id, model, books, folder, first)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _decode(data: bytes) -> Embed:
    """The body, within the wire's limits."""
    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_str_len=limits.NAME_CHARS,
            max_bin_len=limits.IMAGE_BYTES,
            max_array_len=limits.PROMPT_TOKENS,
            max_map_len=len(Inputs.__struct_fields__) + len(Embed.__struct_fields__),
            max_ext_len=0,
        )
        asked = msgspec.convert(value, Embed, builtin_types=(bytes,))
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise bad(f"the body is no msgpack of inputs, start and stop: {str(error)[:200]}") from None
    if asked.start >= asked.stop:
        raise bad("stop must be above start", "stop")
    return asked


def _embed(loaded: Loaded, asked: Embed) -> bytes:
    """In the compute thread."""
    inputs, tokens = _read(loaded, asked.inputs)
    size = 4 * (asked.stop - asked.start) * loaded.spec.hidden_size
    if asked.stop > tokens:
        raise bad(f"the input has {tokens} tokens, not {asked.stop}", "stop")
    if size > limits.TAB_EMBED_BYTES:
        raise bad(f"{size} bytes of rows are too many; ask for less at once", "stop")
    rows = loaded.model.embed(inputs, asked.start, asked.stop).float().numpy()
    return np.ascontiguousarray(rows, "<f4").tobytes()


def _read(loaded: Loaded, inputs: Inputs) -> tuple[ModelInput, int]:
    if inputs.tokens and (min(inputs.tokens) < 0 or max(inputs.tokens) >= 2**31):
        raise bad("a token id is out of range", "inputs.tokens")
    if inputs.token_types and not all(0 <= one < 2**31 for one in inputs.token_types):
        raise bad("a token type is out of range", "inputs.token_types")
    return read_inputs(loaded, inputs)
