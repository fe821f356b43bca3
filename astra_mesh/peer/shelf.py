"""The models on this device as a peer offers them, read from their folders. All calls block."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from astra_mesh.bundle import Bundle, find_bundle, model_folders, open_bundle
from astra_mesh.bundle.copies import Words, words_of
from astra_mesh.bundle.header import read_header
from astra_mesh.bundle.specs import spec_of
from astra_mesh.bundle.store import codebook_name, folders_by_name
from astra_mesh.errors import AstraMeshError
from astra_mesh.families import ModelSpec
from astra_mesh.limits import CODEBOOKS_PER_MODEL, NAME_CHARS
from astra_mesh.peer.code_times import CodeTimes
from astra_mesh.peer.complaints import Complaints
from astra_mesh.quant.codebook import Codebook, load_codebook
from astra_mesh.wire.codec import sanitise
from astra_mesh.wire.messages import CodebookOffer, ModelOffer, Task

_FLOAT_BYTES = 4
_READ = (".json", ".safetensors", ".jinja")  # endings of all files that are read of a model
Read = tuple[Bundle, ModelSpec, ModelOffer, Words]
Look = frozenset[tuple[Path, int, int, int]]  # a file or folder, its size, and when it changed


class Shelf:
    """The models on this device.

    Args:
        names: to read; None: all.
        complaints: of the peer, about those that cannot be used.
    """

    def __init__(self, names: tuple[str, ...] | None, complaints: Complaints) -> None:
        self._names, self._complaints = names, complaints
        self._named: dict[str, Path] = {}  # the folders of those
        self._failed: dict[Path, tuple[Look, AstraMeshError]] = {}  # with the files as they were
        self._left_out: dict[str, AstraMeshError] = {}  # by name, and why

    def look(self) -> Look:
        """The files of all models, and the folders."""
        return frozenset(stamp for path in self._folders() for stamp in _stamps(path))

    def _folders(self) -> Iterator[Path]:
        if self._names is not None:
            yield from self._named.values()
            return
        for folder in model_folders():
            with suppress(OSError):
                yield from [path for path in folder.iterdir() if not path.name.startswith(".")]

    def read_first(self) -> list[Read]:
        """As :meth:`read`, when the peer starts.

        Raises:
            UnknownModelError, BadBundleError: of a model that was named.
        """
        if self._names is None:
            return self.read()
        found = [self._read(find_bundle(name)) for name in self._names]
        self._named = {read[0].name: read[0].path for read in found}
        return found

    def read(self) -> list[Read]:
        """All that can be used; others are complained about, once each."""
        found = []
        self._left_out = {}
        folders = folders_by_name() if self._names is None else self._named
        for name, path in sorted(folders.items()):
            try:
                found.append(self._read(open_bundle(path)))
            except AstraMeshError as error:
                self._leave_out(name, error)
            except OSError:  # it went while it was read: the next look tells
                continue
        return found

    def does_not_load(self, bundle: Bundle, error: AstraMeshError) -> None:
        """Leave a model out until one of its files changes."""
        self._leave_out(bundle.name, error)
        self._failed[bundle.path] = (frozenset(_stamps(bundle.path)), self._left_out[bundle.name])

    def left_out_because(self, name: str) -> AstraMeshError | None:
        """Why a model of that name is not among those that were read."""
        error = self._left_out.get(name)
        return None if error is None else _anew(error)

    def _leave_out(self, name: str, error: AstraMeshError) -> None:
        # The error itself keeps its frames, and weights in them.
        self._left_out[name] = _anew(error)
        self._complaints.make(f"the model {name} is left out: {error.message}")

    def read_again(self, path: Path) -> Read:
        """One of them."""
        return self._read(open_bundle(path))

    def _read(self, bundle: Bundle) -> Read:
        stamps, error = self._failed.get(bundle.path, (None, None))
        if error is not None and stamps == frozenset(_stamps(bundle.path)):
            raise _anew(error)
        self._failed.pop(bundle.path, None)
        spec = spec_of(bundle)
        for path in bundle.weight_paths:
            read_header(path)
        books, problems = read_codebooks(bundle)
        for problem in problems:
            self._complaints.make(f"{bundle.name}: a codebook is left out: {problem}")
        offer = ModelOffer(
            id=bundle.model_id,
            name=sanitise(bundle.name, NAME_CHARS),
            family=spec.family,
            tasks=[Task(task) for task in spec.tasks],
            codebooks=[offer_codebook(book) for book in books.values()],
        )
        return bundle, spec, offer, words_of(bundle)


def _anew(error: AstraMeshError) -> AstraMeshError:
    return type(error)(error.message)


def _stamps(folder: Path) -> Iterator[tuple[Path, int, int, int]]:
    """The files of a folder and itself; the change time tells a mended permission too."""
    with suppress(OSError):
        for path in (folder, *(path for path in folder.iterdir() if path.suffix in _READ)):
            status = path.stat()
            yield path, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def read_codebooks(bundle: Bundle) -> tuple[dict[str, Codebook], list[str]]:
    """The usable codebooks of a bundle by name, and why others are left out."""
    found: dict[str, Codebook] = {}
    problems = []
    for suffix, path in bundle.codebook_paths.items():
        try:
            book = load_codebook(bundle.file(path.name), bundle.model_id)
        except AstraMeshError as error:
            problems.append(error.message)
            continue
        name = codebook_name(book.codec, suffix)
        if len(found) == CODEBOOKS_PER_MODEL:
            problems.append(f"{name}: there are too many")
        else:
            found[name] = book
    return found, problems


def float_bytes(bundle: Bundle) -> int:
    """The size of a model's weights as float32, by the headers of its files.

    Raises:
        BadBundleError: One is damaged.
    """
    headers = [read_header(path) for path in bundle.weight_paths]
    counts = [math.prod(one.shape) for header in headers for one in header.tensors.values()]
    return _FLOAT_BYTES * sum(counts)


def offer_codebook(book: Codebook, times: CodeTimes | None = None) -> CodebookOffer:
    """What others are told of a codebook, and of its costs where they were measured."""
    return CodebookOffer(
        id=book.id,
        codec=book.codec,
        rates=list(book.rates.values()),
        default_rate=book.rate(book.default_stages),
        encode_token_s=[] if times is None else [times.encode_s[one] for one in book.able],
        decode_token_s=[] if times is None else [times.decode_s[one] for one in book.able],
        project_token_s=[] if times is None else [times.project_s[one] for one in book.able],
    )
