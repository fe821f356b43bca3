"""The models of one peer: what it offers, and loading and measuring them when they are wanted."""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from astra_mesh.bundle import Bundle
from astra_mesh.bundle.image import ImageProcessor
from astra_mesh.bundle.quality import Quality, read_quality
from astra_mesh.bundle.tensors import load_weights
from astra_mesh.bundle.text import NAME as TOKENIZER_FILE
from astra_mesh.bundle.text import TextTokenizer, eos_ids
from astra_mesh.engine.compute import ComputeThread
from astra_mesh.errors import BadBundleError, CodebookError, UnknownModelError
from astra_mesh.families import ModelSpec, build_model
from astra_mesh.families.model import check_ids, require
from astra_mesh.limits import MODELS_PER_PEER, NAMES_PER_MODEL, RESCAN_S
from astra_mesh.peer.choice import choose_codes
from astra_mesh.peer.code_times import measure_codebook
from astra_mesh.peer.complaints import Complaints
from astra_mesh.peer.config import Wanted
from astra_mesh.peer.loaded import AnyCodec, Loaded, choose_stages
from astra_mesh.peer.measure import measure
from astra_mesh.peer.precision import choose_precision, pack_if_faster
from astra_mesh.peer.shelf import Read, Shelf, offer_codebook, read_codebooks
from astra_mesh.quant.codecs import PlainCodec, VectorCodec
from astra_mesh.wire.messages import (
    CodebookOffer,
    ModelId,
    ModelOffer,
    Options,
    Task,
    Timing,
    names_of,
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
        self._complaints = Complaints()
        self._shelf = Shelf(names, self._complaints)
        self._entries: dict[ModelId, _Entry] = {}
        self._seen: frozenset[tuple[str, int]] = frozenset()  # the folders of models, and when

    async def start(self) -> None:
        """Look through the bundles on this device; broken ones are logged and left out.

        Raises:
            UnknownModelError, BadBundleError: of a model that was named.
        """
        self._take(await self._compute(self._shelf.read))
        if self._names is None:
            self._seen = await asyncio.to_thread(self._shelf.look)

    async def watch(self) -> None:
        """Offer models that come to this device while the peer runs, until cancelled."""
        while self._names is None:
            await asyncio.sleep(RESCAN_S)
            seen = await asyncio.to_thread(self._shelf.look)
            if seen == self._seen:
                continue
            self._seen = seen
            found = await self._compute(self._shelf.read)
            came = self._take(found)
            renewed = [await self._renew(*one) for one in found]
            if came or any(renewed):
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
        if await self._renew(*await self._compute(self._shelf.read_again, bundle.path)):
            self._on_change()

    async def _renew(self, bundle: Bundle, spec: ModelSpec, offer: ModelOffer, chat: bool) -> bool:
        """Take over codebooks that came to a model, or that went; whether there were any.

        Of two copies that with more codebooks counts.
        """
        entry = self._entries.get(offer.id)
        if entry is None:
            return False
        async with entry.lock:
            more = len(offer.codebooks) > len(entry.offer.codebooks)
            if entry.bundle.path != bundle.path and not more:
                return False
            known = {book.id for book in entry.offer.codebooks}
            if known == {book.id for book in offer.codebooks}:
                return False
            entry.bundle, books = bundle, offer.codebooks
            if entry.loaded is not None:
                books = await self._compute(_renew_codebooks, entry.loaded, bundle)
            entry.offer = replace(entry.offer, codebooks=books)
            return True

    def _take(self, found: Sequence[Read]) -> bool:
        """Offer what was read; whether anything is new."""
        new = False
        best_first = sorted(found, key=lambda one: -len(one[2].codebooks))
        for bundle, spec, offer, chat in best_first:
            if offer.id in self._entries:
                continue
            if len(self._entries) >= MODELS_PER_PEER:
                self._complaints.make(f"the model {offer.name} is left out: there are too many")
                continue
            self._entries[offer.id] = _Entry(bundle, spec, offer, chat)
            new = True
        return self._name_copies(found) or new

    def _name_copies(self, found: Sequence[Read]) -> bool:
        """Copies of a model are one, by all their names; whether names came or went."""
        names: dict[ModelId, dict[str, None]] = {}
        for _, _, offer, _ in found:
            names.setdefault(offer.id, {})[offer.name] = None
        changed = False
        for model, entry in self._entries.items():
            also = [name for name in names.get(model, ()) if name != entry.offer.name]
            if also[:NAMES_PER_MODEL] != entry.offer.also:
                entry.offer = replace(entry.offer, also=also[:NAMES_PER_MODEL])
                changed = True
        return changed

    def offers(self) -> list[ModelOffer]:
        """What this peer tells the others."""
        return [entry.offer for entry in self._entries.values()]

    def offer(self, model: ModelId) -> ModelOffer | None:
        """The offer of one model."""
        entry = self._entries.get(model)
        return None if entry is None else entry.offer

    def require(self, model: ModelId, task: Task) -> None:
        """WrongTaskError unless a model that is offered does a task."""
        offer = self._entries[model].offer
        require(offer.family, [one.value for one in offer.tasks], task.value)

    def check_tokens(self, model: ModelId, tokens: Sequence[int]) -> None:
        """InputError, or its kin, if a model that reads text cannot take these token ids."""
        spec = self._entries[model].spec
        if spec.vocab_size:
            check_ids(spec, len(tokens), min(tokens, default=0), max(tokens, default=0))

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
            if name in names_of(entry.offer) or (len(name) >= 8 and model.startswith(name)):
                return model
        known = sorted(name for offer in self.offers() for name in names_of(offer))
        names = ", ".join(known) or "none"
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


def _offers_of(loaded: Loaded) -> list[CodebookOffer]:
    """The codebooks of a loaded model, with what was measured of them."""
    return [offer_codebook(book, loaded.times.get(key)) for key, book in loaded.codebooks.items()]


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
