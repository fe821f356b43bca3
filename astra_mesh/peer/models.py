"""The models of one peer: what it offers, and loading and measuring them when they are wanted."""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace

from astra_mesh.bundle import Bundle, find_bundle, list_bundles, model_folders, open_bundle
from astra_mesh.bundle.header import read_header
from astra_mesh.bundle.image import ImageProcessor
from astra_mesh.bundle.quality import Quality, read_quality
from astra_mesh.bundle.store import codebook_name
from astra_mesh.bundle.tensors import load_weights
from astra_mesh.bundle.text import NAME as TOKENIZER_FILE
from astra_mesh.bundle.text import TextTokenizer, eos_ids
from astra_mesh.engine.compute import ComputeThread
from astra_mesh.errors import AstraMeshError, BadBundleError, CodebookError, UnknownModelError
from astra_mesh.families import ModelSpec, build_model, read_spec
from astra_mesh.limits import CODEBOOKS_PER_MODEL, MODELS_PER_PEER, NAME_CHARS, RESCAN_S
from astra_mesh.peer.choice import choose_codes
from astra_mesh.peer.code_times import CodeTimes, measure_codebook
from astra_mesh.peer.loaded import AnyCodec, Loaded, choose_stages
from astra_mesh.peer.measure import measure
from astra_mesh.peer.precision import Wanted, choose_precision, pack_if_faster
from astra_mesh.quant.codebook import Codebook, load_codebook
from astra_mesh.quant.codecs import PlainCodec, VectorCodec
from astra_mesh.wire.codec import sanitise
from astra_mesh.wire.messages import (
    CodebookOffer,
    ModelId,
    ModelOffer,
    Options,
    Task,
    Timing,
)

__all__ = ["AnyCodec", "Loaded", "ModelHost", "choose_stages"]

log = logging.getLogger(__name__)

MOST_DIVERGENCE = 1e6  # that is told: JSON and the wire know no infinity
_TURNS = 25  # of the compute thread, to time one


@dataclass
class _Entry:
    bundle: Bundle
    spec: ModelSpec
    offer: ModelOffer
    chat: bool  # it has a chat template
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    loaded: Loaded | None = None


_Read = tuple[Bundle, ModelSpec, ModelOffer, bool]  # the last: it has a chat template


class ModelHost:
    """The models of this peer.

    Args:
        names: to offer; None: all on this device.
        compute: the thread in which they are loaded and measured.
        precision: to run them in.
        on_change: called when the offers change.
    """

    def __init__(
        self,
        names: tuple[str, ...] | None,
        compute: ComputeThread,
        on_change: Callable[[], None] = lambda: None,
        precision: Wanted = "fp32",
    ) -> None:
        self._names, self._compute, self._on_change = names, compute, on_change
        self._precision: Wanted = precision
        self._entries: dict[ModelId, _Entry] = {}
        self._seen: frozenset[tuple[str, int]] = frozenset()  # the folders of models, and when

    async def start(self) -> None:
        """Look through the bundles on this device; broken ones are logged and left out.

        Raises:
            UnknownModelError, BadBundleError: of a model that was named.
        """
        self._take(await self._compute(_read_all, self._names))
        if self._names is None:
            self._seen = await asyncio.to_thread(_look)

    async def watch(self) -> None:
        """Offer models that come to this device while the peer runs, until cancelled."""
        while self._names is None:
            await asyncio.sleep(RESCAN_S)
            seen = await asyncio.to_thread(_look)
            if seen == self._seen:
                continue
            self._seen, before = seen, len(self._entries)
            found = await self._compute(_read_all, None)
            self._take([one for one in found if one[2].id not in self._entries])
            renewed = [await self._renew(*one) for one in found]
            if len(self._entries) > before or any(renewed):
                self._on_change()

    async def renew(self, model: ModelId) -> None:
        """Take over codebooks that came to a model, without waiting for :meth:`watch`.

        Raises:
            UnknownModelError: This peer has no such model.
            BadBundleError: Its folder cannot be used any more.
        """
        bundle = self.bundle(model)
        if bundle is None:
            raise UnknownModelError(f"no model {model[:12]} on this device")
        if await self._renew(*await self._compute(_read_again, bundle.path)):
            self._on_change()

    async def _renew(self, bundle: Bundle, spec: ModelSpec, offer: ModelOffer, chat: bool) -> bool:
        """Take over codebooks that came to a model, or that went; whether there were any."""
        entry = self._entries.get(offer.id)
        if entry is None or entry.bundle.path != bundle.path:
            return False
        async with entry.lock:
            known = {book.id for book in entry.offer.codebooks}
            if known == {book.id for book in offer.codebooks}:
                return False
            entry.bundle, books = bundle, offer.codebooks
            if entry.loaded is not None:
                books = await self._compute(_renew_codebooks, entry.loaded, bundle)
            entry.offer = replace(entry.offer, codebooks=books)
            return True

    def _take(self, found: list[_Read]) -> None:
        for bundle, spec, offer, chat in found:
            if offer.id in self._entries:
                same = self._entries[offer.id].offer.name
                log.warning("the model %s is left out: it is the same as %s", offer.name, same)
            elif len(self._entries) >= MODELS_PER_PEER:
                log.warning("the model %s is left out: there are too many", offer.name)
            else:
                self._entries[offer.id] = _Entry(bundle, spec, offer, chat)

    def offers(self) -> list[ModelOffer]:
        """What this peer tells the others."""
        return [entry.offer for entry in self._entries.values()]

    def offer(self, model: ModelId) -> ModelOffer | None:
        """The offer of one model."""
        entry = self._entries.get(model)
        return None if entry is None else entry.offer

    def bundle(self, model: ModelId) -> Bundle | None:
        """The files of a model of this peer."""
        entry = self._entries.get(model)
        return None if entry is None else entry.bundle

    def holds_conversations(self, model: ModelId) -> bool:
        """Whether a model of this peer has a chat template."""
        entry = self._entries.get(model)
        return entry is not None and entry.chat

    def find(self, name: str) -> ModelId:
        """The model of that name, or whose id begins so (8 digits at least).

        Raises:
            UnknownModelError: none; the text lists what there is.
        """
        for model, entry in self._entries.items():
            if name == entry.offer.name or (len(name) >= 8 and model.startswith(name)):
                return model
        names = ", ".join(sorted(offer.name for offer in self.offers())) or "none"
        raise UnknownModelError(
            f"no model {name!r} on this device; it has: {names}. `astra-mesh models` lists them"
        )

    async def quality(self, model: ModelId) -> Quality | None:
        """What was measured of a model and stored with it; it need not be loaded."""
        entry = self._entries.get(model)
        return None if entry is None else await self._compute(_quality, entry.bundle)

    async def load(self, model: ModelId) -> Loaded:
        """The model in memory, loaded and measured at its first use.

        Cancelling it lets the loading in the thread run to its end.
        """
        entry = self._entries.get(model)
        if entry is None:
            raise UnknownModelError(f"no model {model[:12]} on this device")
        async with entry.lock:
            if entry.loaded is None:
                loaded, timing = await self._compute(_load, entry.bundle, self._precision)
                turns = 2 * await self._turn_s()  # a block takes the compute thread once or twice
                timing = replace(timing, fixed_s=timing.fixed_s + turns)
                entry.loaded = loaded
                entry.offer = replace(
                    entry.offer,
                    timing=timing,
                    loaded=True,
                    codebooks=_offers_of(loaded),
                    precision=loaded.chosen.precision,
                    divergence=min(loaded.chosen.divergence, MOST_DIVERGENCE),
                )
                self._on_change()
            return entry.loaded

    @property
    def lacks_tables(self) -> bool:
        """Whether requests went without tables that can be made now."""
        loaded = [entry.loaded for entry in self._entries.values() if entry.loaded is not None]
        return any(one.next_table() is not None for one in loaded)

    async def make_tables(self, idle: Callable[[], bool]) -> None:
        """The tables that requests went without, block by block, as long as nothing else runs."""
        for entry in list(self._entries.values()):
            while entry.loaded is not None and idle() and (make := entry.loaded.next_table()):
                await self._compute(make)

    async def _turn_s(self) -> float:
        """Seconds for one turn of the compute thread, from the event loop and back: the median."""
        times = []
        for _ in range(_TURNS):
            began = time.perf_counter()
            await self._compute(int)
            times.append(time.perf_counter() - began)
        return statistics.median(times)


def _look() -> frozenset[tuple[str, int]]:
    """The folders of models on this device, and when something in each came or went."""
    found = set()
    for folder in model_folders():
        with suppress(OSError):
            for path in folder.iterdir():
                if not path.name.startswith("."):
                    found.add((str(path), path.stat().st_mtime_ns))
    return frozenset(found)


def _read_all(names: tuple[str, ...] | None) -> list[_Read]:
    if names is not None:
        return [_read(find_bundle(name)) for name in names]
    found = []
    for bundle in list_bundles():
        try:
            found.append(_read(bundle))
        except AstraMeshError as error:
            log.warning("the model %s is left out: %s", bundle.name, error.message)
    return found


def _read_again(path: Path) -> _Read:
    return _read(open_bundle(path))


def _read(bundle: Bundle) -> _Read:
    spec = read_spec(bundle.config)
    for path in bundle.weight_paths:
        read_header(path)
    books, problems = read_codebooks(bundle)
    for problem in problems:
        log.warning("%s: a codebook is left out: %s", bundle.name, problem)
    offer = ModelOffer(
        id=bundle.model_id,
        name=sanitise(bundle.name, NAME_CHARS),
        family=spec.family,
        tasks=[Task(task) for task in spec.tasks],
        codebooks=[_offer_codebook(book) for book in books.values()],
    )
    return bundle, spec, offer, _has_chat_template(bundle)


def _has_chat_template(bundle: Bundle) -> bool:
    if bundle.has("chat_template.jinja"):
        return True
    return bool(bundle.optional_json("tokenizer_config.json").get("chat_template"))


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


def _offer_codebook(book: Codebook, times: CodeTimes | None = None) -> CodebookOffer:
    return CodebookOffer(
        id=book.id,
        codec=book.codec,
        rates=list(book.rates.values()),
        default_rate=book.rate(book.default_stages),
        encode_token_s=[] if times is None else [times.encode_s[one] for one in book.able],
        decode_token_s=[] if times is None else [times.decode_s[one] for one in book.able],
    )


def _offers_of(loaded: Loaded) -> list[CodebookOffer]:
    """The codebooks of a loaded model, with what was measured of them."""
    return [_offer_codebook(book, loaded.times.get(key)) for key, book in loaded.codebooks.items()]


def _renew_codebooks(loaded: Loaded, bundle: Bundle) -> list[CodebookOffer]:
    """In the compute thread: the model in memory gets the codebooks that its folder has now."""
    books, problems = read_codebooks(bundle)
    loaded.bundle, loaded.problems, loaded.quality = bundle, tuple(problems), _quality(bundle)
    loaded.codebooks = {book.id: book for book in books.values()}
    loaded.names = {book.id: name for name, book in books.items()}
    _measure_codebooks(loaded)
    return _offers_of(loaded)


def _quality(bundle: Bundle) -> Quality | None:
    """What was measured of a bundle; a bad file is logged and counts as none."""
    try:
        return read_quality(bundle)
    except BadBundleError as error:
        log.warning("%s: its measured quality is left out: %s", bundle.name, error.message)
        return None


def _load(bundle: Bundle, precision: Wanted = "fp32") -> tuple[Loaded, Timing]:
    """In the compute thread."""
    model = build_model(bundle.config, load_weights(bundle))
    chosen = choose_precision(model, precision)
    log.info(
        "%s runs in %s%s: %.1f times as fast as fp32, divergence %.2g",
        bundle.name,
        chosen.precision,
        ", weights packed" if pack_if_faster(model) else "",
        chosen.speedup,
        chosen.divergence,
    )
    books, problems = read_codebooks(bundle)
    loaded = Loaded(
        bundle=bundle,
        model=model,
        codebooks={book.id: book for book in books.values()},
        names={book.id: name for name, book in books.items()},
        problems=tuple(problems),
        tokenizer=TextTokenizer.from_bundle(bundle) if bundle.has(TOKENIZER_FILE) else None,
        processor=ImageProcessor.from_bundle(bundle) if model.spec.vocab_size == 0 else None,
        stop_ids=eos_ids(bundle),
        chosen=chosen,
        quality=_quality(bundle),
    )
    _measure_codebooks(loaded)
    for code in choose_codes(loaded, Options(), model.spec.tasks[0])[0]:
        if isinstance(code.codec, VectorCodec):
            code.codec.prepare(code.stages)
    return loaded, measure(model, PlainCodec("fp16", model), 1)


def _measure_codebooks(loaded: Loaded) -> None:
    """One that does not fit the model's blocks is left out."""
    for key, book in list(loaded.codebooks.items()):
        try:
            loaded.codec(book.codec, key)
        except CodebookError as error:
            del loaded.codebooks[key]
            loaded.problems = (*loaded.problems, error.message)
        else:
            if key not in loaded.times:
                loaded.times[key] = measure_codebook(loaded.model, book)
