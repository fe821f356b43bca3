"""The models of one peer: what it offers, and loading and measuring them when they are wanted."""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from astra_mesh.bundle import Bundle
from astra_mesh.bundle.copies import Words
from astra_mesh.bundle.quality import Quality
from astra_mesh.bundle.text import NAME as TOKENIZER_FILE
from astra_mesh.bundle.text import TextTokenizer
from astra_mesh.engine.compute import ComputeThread
from astra_mesh.errors import (
    AstraMeshError,
    BadBundleError,
    ModelError,
    UnsupportedModelError,
)
from astra_mesh.families import ModelSpec
from astra_mesh.limits import (
    CONTRADICTED,
    PRELOAD_FACTOR,
    PRELOAD_LOOK_S,
    PRELOAD_SHARE,
    RECHECK_S,
    RESCAN_S,
)
from astra_mesh.memory import give_back
from astra_mesh.peer.config import Wanted
from astra_mesh.peer.device import free_memory_bytes, usable_cores
from astra_mesh.peer.loaded import AnyCodec, Loaded, choose_stages
from astra_mesh.peer.loading import (
    loading,
    measuring_again,
    quality_of,
    renew_codebooks,
    renew_words,
)
from astra_mesh.peer.measure import comparing
from astra_mesh.peer.measured import Conditions, Measured, conditions
from astra_mesh.peer.offers import Entry, Offers
from astra_mesh.peer.pace import bounded, differ, slowed, slowed_codes
from astra_mesh.peer.parts import at_once, in_turns
from astra_mesh.peer.shelf import Look, float_bytes, offer_codebook
from astra_mesh.wire.messages import CodebookOffer, ModelId, ModelOffer

__all__ = ["AnyCodec", "Loaded", "ModelHost", "choose_stages"]

log = logging.getLogger(__name__)

_TURNS = 25  # of the compute thread, to time one


class _Interrupted(Exception):
    """A request came while something was measured that can wait."""


class ModelHost(Offers):
    """The models of this peer.

    Args:
        names: to offer; None: all on this device.
        compute: the thread in which they are loaded and measured.
        precision: to run them in.
        on_change: called when the offers change.
        measured: what is known of their speed from before.
        tables: whether codes may be decoded by tables.
    """

    def __init__(
        self,
        names: tuple[str, ...] | None,
        compute: ComputeThread,
        on_change: Callable[[], None] = lambda: None,
        precision: Wanted = "fp32",
        measured: Measured | None = None,
        tables: bool = True,
    ) -> None:
        super().__init__(names)
        self._measured = measured or Measured(None)
        self._names, self._compute, self._on_change = names, compute, on_change
        self._precision: Wanted = precision
        self._tables = tables
        self._seen: Look = frozenset()  # when the models were read
        self._last: Look = frozenset()  # a moment ago

    async def start(self) -> None:
        """Look through the bundles on this device; broken ones are logged and left out.

        Raises:
            UnknownModelError, BadBundleError: of a model that was named.
        """
        self._take(await self._compute(self._shelf.read_first))
        self._seen = await asyncio.to_thread(self._shelf.look)

    async def watch(self) -> None:
        """Offer models that come to this device while the peer runs, and those no more that go or
        are damaged; take over tokenizers that come to those in memory. Until cancelled."""
        while True:
            await asyncio.sleep(RESCAN_S)
            for entry in list(self._entries.values()):
                if entry.loaded is not None and entry.loaded.tokenizer is None:
                    await self._compute(_take_tokenizer, entry.loaded)
            await self._rescan()

    async def _rescan(self) -> None:
        seen = await asyncio.to_thread(self._shelf.look)
        before, self._last = self._last, seen
        if seen == self._seen or (_paths(seen) == _paths(self._seen) and seen != before):
            return  # nothing changed, or a file still grows
        self._seen = seen
        found = await self._compute(self._shelf.read)
        went = self._withdraw({offer.id for _, _, offer, _ in found})
        came = self._take(found)
        await self._take_words()
        renewed = [await self._renew(*one) for one in found]
        if went or came or any(renewed):
            self._on_change()

    async def renew(self, model: ModelId) -> None:
        """Take over codebooks that came to a model, without waiting for :meth:`watch`.

        Raises:
            UnknownModelError: This peer has no such model.
            BadBundleError: Its folder cannot be used any more.
        """
        path = self._entry(model).bundle.path
        if await self._renew(*await self._compute(self._shelf.read_again, path)):
            self._on_change()

    async def _take_words(self) -> None:
        """Texts of a model in memory are read by another folder now."""
        for entry in list(self._entries.values()):
            async with entry.lock:
                if entry.loaded is not None and entry.loaded.words.path != entry.words.path:
                    await self._compute(renew_words, entry.loaded, entry.words)

    async def _renew(
        self, bundle: Bundle, spec: ModelSpec, offer: ModelOffer, words: Words
    ) -> bool:
        """Take over codebooks that came to a model, or that went; whether there were any.

        Of two copies that with more codebooks counts.
        """
        entry = self._entries.get(offer.id)
        if entry is None:
            return False
        if entry.words.path == bundle.path:
            entry.chat = words.chat
        async with entry.lock:
            more = len(offer.codebooks) > len(entry.offer.codebooks)
            if entry.bundle.path != bundle.path and not more:
                return False
            known = {book.id for book in entry.offer.codebooks}
            if known == {book.id for book in offer.codebooks}:
                return False
            entry.bundle, books = bundle, offer.codebooks
            if entry.loaded is not None:
                await self._compute(renew_codebooks, entry.loaded, bundle)
                books = slowed_codes(_offers_of(entry.loaded), entry.pace)
                await self._keep(entry, entry.loaded)
            entry.offer = replace(entry.offer, codebooks=books)
            return True

    async def quality(self, model: ModelId) -> Quality | None:
        """What was measured of a model and stored with it; it need not be loaded."""
        entry = self._entries.get(model)
        return None if entry is None else await self._compute(quality_of, entry.bundle)

    async def load(self, model: ModelId) -> Loaded:
        """The model in memory, loaded at its first use, and measured if nothing is known of it.

        Cancelling it lets the part of the loading that runs in the thread end.
        """
        entry = self._entry(model)
        entry.wanted += 1
        try:
            return await self._load(entry, at_once)
        finally:
            entry.wanted -= 1

    async def _load(self, entry: Entry, between: Callable[[], Awaitable[None]]) -> Loaded:
        async with entry.lock:
            if entry.loaded is not None:
                return entry.loaded
            about = await self._about(entry)
            known = await self._compute(self._measured.read, about)
            async with self._measured.turn(about, needed=known is None):
                known = known or await self._compute(self._measured.read, about)
                parts = loading(
                    entry.bundle, self._precision, known, entry.words, tables=self._tables
                )
                try:
                    loaded, figures = await in_turns(self._compute, parts, between)
                except (BadBundleError, UnsupportedModelError) as error:
                    await self._leave_out(entry, error)
                    raise
                if figures != known:
                    await self._compute(self._measured.write, about, figures)
            entry.turns_s = 2 * await self._turn_s()  # a block takes the thread once or twice
            entry.about, entry.figures, entry.loaded = about, figures, loaded
            entry.doubtful = known is not None
            self._tell(entry, loaded)
            await self._compute(loaded.drop_pages)
            await self._compute(give_back)
            return loaded

    async def _leave_out(self, entry: Entry, error: ModelError) -> None:
        """It does not load: offer it no more until its files change."""
        await self._compute(self._shelf.does_not_load, entry.bundle, error)
        self._seen = frozenset()  # there may be a copy
        if self._entries.get(entry.offer.id) is entry and self._withdraw(
            self._entries.keys() - {entry.offer.id}
        ):
            self._on_change()

    async def _about(self, entry: Entry) -> Conditions:
        cores = await asyncio.to_thread(usable_cores)
        model = entry.offer.id
        return await self._compute(conditions, model, self._precision, cores, self._tables)

    def _tell(self, entry: Entry, loaded: Loaded) -> None:
        """What a model in memory can do, to the others."""
        figures = entry.figures
        assert figures is not None
        timing = slowed(figures.timing, entry.pace)
        entry.offer = replace(
            entry.offer,
            timing=replace(timing, fixed_s=timing.fixed_s + entry.turns_s),
            loaded=True,
            codebooks=slowed_codes(_offers_of(loaded), entry.pace),
            precision=loaded.chosen.precision,
            divergence=figures.divergence,
        )
        self._on_change()

    async def _keep(self, entry: Entry, loaded: Loaded) -> None:
        """Keep what was measured of other codebooks."""
        if entry.figures is None or entry.about is None:
            return
        codes = {str(key): times for key, times in loaded.times.items()}
        entry.figures = replace(entry.figures, codes=codes)
        await self._compute(self._measured.write, entry.about, entry.figures)

    # --- while nothing else is to be done ---------------------------------------------------------

    async def preload(self, idle: Callable[[], bool], among: int = 1) -> None:
        """Load the models of this device while nothing else runs, those first that were used last,
        then the smallest; as long as half of the memory that is free now stays so, where so many
        peers of this device do the same.
        """
        free = await asyncio.to_thread(free_memory_bytes)
        left = PRELOAD_SHARE * free / max(among, 1)
        spared = free - left

        async def between() -> None:
            while not (idle() or entry.wanted):  # noqa: ASYNC110  nothing tells when requests end
                await asyncio.sleep(PRELOAD_LOOK_S)

        for entry, needed in await self._in_order():
            free = await asyncio.to_thread(free_memory_bytes)
            if entry.loaded is not None or needed > min(left, free - spared):
                continue
            left -= needed
            try:
                await between()
                await self._load(entry, between)
            except AstraMeshError as error:
                log.info("%s is not loaded ahead: %s", entry.offer.name, error.message)
        await self.look_again(idle)

    async def _in_order(self) -> list[tuple[Entry, float]]:
        """The models to load ahead, with the bytes that loading each takes."""
        found = []
        for entry in list(self._entries.values()):
            about = await self._about(entry)
            used = await asyncio.to_thread(self._measured.used_s, about)
            try:
                size = await asyncio.to_thread(float_bytes, entry.bundle)
            except AstraMeshError:
                continue  # a request will say why
            found.append((entry, used, PRELOAD_FACTOR * size))
        found.sort(key=lambda one: (-one[1], one[2]))
        return [(entry, needed) for entry, _, needed in found]

    def doubt(self, model: ModelId) -> None:
        """Requests contradict the figures of a model: compare them when there is time."""
        entry = self._entries.get(model)
        if entry is not None and time.monotonic() - entry.checked_s > RECHECK_S:
            entry.doubtful = True

    @property
    def has_doubts(self) -> bool:
        """Whether the figures of a model in memory are to be compared."""
        return any(one.doubtful and one.loaded is not None for one in self._entries.values())

    async def look_again(self, idle: Callable[[], bool]) -> None:
        """Compare the figures that are in doubt with what a block takes now, and measure anew where
        they do not hold, as long as nothing else runs.
        """
        for entry in list(self._entries.values()):
            if entry.doubtful and idle():
                async with entry.lock:
                    await self._look_again(entry, idle)

    async def _look_again(self, entry: Entry, idle: Callable[[], bool]) -> None:
        loaded, figures, about = entry.loaded, entry.figures, entry.about
        if loaded is None or figures is None or about is None:
            return
        between = partial(_unless_busy, idle)
        try:
            parts = comparing(figures.timing, loaded.model)
            ratio = await in_turns(self._compute, parts, between)
            if 1 / CONTRADICTED < ratio < CONTRADICTED:
                entry.doubtful, entry.checked_s = False, time.monotonic()
                return
            found = await in_turns(self._compute, measuring_again(loaded, figures), between)
        except _Interrupted:
            return  # it stays doubtful
        entry.doubtful, entry.checked_s = False, time.monotonic()
        entry.pace, entry.felt = 1.0, None
        log.info("%s was measured anew: %.2f times as long", entry.offer.name, ratio)
        entry.figures = found
        self._tell(entry, loaded)
        if about.wanted == "auto":  # the format was chosen by figures that may have been as wrong
            await self._compute(self._measured.forget, about)
        else:
            await self._compute(self._measured.write, about, found)

    # --- how fast it is now -----------------------------------------------------------------------

    async def feel(self, idle: Callable[[], bool]) -> bool:
        """Look how fast the models in memory run now, as long as nothing else does, and tell others
        if two looks say that it changed. Whether none of them has to be looked at again soon.
        """
        for entry in list(self._entries.values()):
            if entry.loaded is not None and idle():
                async with entry.lock:
                    await self._feel(entry, idle)
        return idle() and all(one.felt is None for one in self._entries.values())

    async def _feel(self, entry: Entry, idle: Callable[[], bool]) -> None:
        loaded, figures = entry.loaded, entry.figures
        if loaded is None or figures is None:
            return
        try:
            parts = comparing(figures.timing, loaded.model)
            pace = bounded(await in_turns(self._compute, parts, partial(_unless_busy, idle)))
        except _Interrupted:
            return
        if not differ(pace, entry.pace):
            entry.felt = None
        elif entry.felt is None or differ(pace, entry.felt):
            entry.felt = pace
        else:
            self._change_pace(entry, loaded, pace)

    def took(self, model: ModelId, factor: float) -> None:
        """Answers of this peer alone took ``factor`` times what it told of itself."""
        entry = self._entries.get(model)
        if entry is not None and entry.loaded is not None:
            self._change_pace(entry, entry.loaded, bounded(factor * entry.pace))

    def _change_pace(self, entry: Entry, loaded: Loaded, pace: float) -> None:
        log.info("%s takes %.2f times as long as measured now", entry.offer.name, pace)
        entry.pace, entry.felt = pace, None
        self._tell(entry, loaded)

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

    def give_back(self) -> None:
        """Memory that is not needed now goes back to the system. In the compute thread."""
        for entry in list(self._entries.values()):
            if entry.loaded is not None:
                entry.loaded.drop_pages()
        give_back()

    async def _turn_s(self) -> float:
        """Seconds for one turn of the compute thread, from the event loop and back: the median."""
        times = []
        for _ in range(_TURNS):
            began = time.perf_counter()
            await self._compute(int)
            times.append(time.perf_counter() - began)
        return statistics.median(times)


def _paths(look: Look) -> set[Path]:
    return {path for path, *_ in look}


async def _unless_busy(idle: Callable[[], bool]) -> None:
    if not idle():
        raise _Interrupted


def _offers_of(loaded: Loaded) -> list[CodebookOffer]:
    """The codebooks of a loaded model, with what was measured of them."""
    return [offer_codebook(book, loaded.times.get(key)) for key, book in loaded.codebooks.items()]


def _take_tokenizer(loaded: Loaded) -> None:
    """A tokenizer that came to the folder of a model in memory; one that is being copied is no
    tokenizer yet."""
    if loaded.spec.vocab_size and loaded.words.has(TOKENIZER_FILE):
        with suppress(AstraMeshError):
            loaded.tokenizer = TextTokenizer.from_bundle(loaded.words)
