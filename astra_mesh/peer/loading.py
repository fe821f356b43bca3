"""Loading a model, in parts: weights, number format, codebooks, tables, and how fast it all is.

What was measured before (:mod:`astra_mesh.peer.measured`) is taken over, and then only the rest is
measured.
"""

from __future__ import annotations

import logging
from typing import cast

from astra_mesh.bundle import Bundle
from astra_mesh.bundle.image import ImageProcessor
from astra_mesh.bundle.quality import Quality, read_quality
from astra_mesh.bundle.tensors import load_weights
from astra_mesh.bundle.text import NAME as TOKENIZER_FILE
from astra_mesh.bundle.text import TextTokenizer, eos_ids
from astra_mesh.errors import AstraMeshError, BadBundleError, CodebookError
from astra_mesh.families import Model, build_model
from astra_mesh.families.packed import Packing, pack
from astra_mesh.families.precision import Precision, convert
from astra_mesh.peer.choice import choose_codes
from astra_mesh.peer.code_times import measure_codebook
from astra_mesh.peer.config import Wanted
from astra_mesh.peer.loaded import Loaded
from astra_mesh.peer.measure import measuring
from astra_mesh.peer.measured import Figures
from astra_mesh.peer.parts import Parts, whole
from astra_mesh.peer.precision import Chosen, choose_precision, pack_if_faster
from astra_mesh.peer.shelf import read_codebooks
from astra_mesh.quant.codecs import PlainCodec, VectorCodec
from astra_mesh.wire.messages import Options

log = logging.getLogger(__name__)

MOST_DIVERGENCE = 1e6  # that is told: JSON and the wire know no infinity


def load(bundle: Bundle, precision: Wanted = "fp32") -> Loaded:
    """A model in memory, with nothing known of it before. Blocks."""
    return whole(loading(bundle, precision, None))[0]


def loading(
    bundle: Bundle,
    precision: Wanted,
    known: Figures | None,
    words: Bundle | None = None,
    *,
    tables: bool = True,
) -> Parts[tuple[Loaded, Figures]]:
    """A model in memory, and what is known of its speed now. In the compute thread.

    Args:
        bundle: Its weights and codebooks.
        precision: To run it in.
        known: What was measured before.
        words: The copy that texts are read with, where that is another folder.
        tables: Whether codes may be decoded by tables.

    Raises:
        AstraMeshError: It cannot be loaded.
    """
    model = build_model(bundle.config, load_weights(bundle))
    yield
    chosen, packing = yield from _formatted(bundle, model, precision, known, tables)
    books, problems = read_codebooks(bundle)
    tokenizer, stop_ids, words = _words_of(bundle, words or bundle)
    loaded = Loaded(
        bundle=bundle,
        model=model,
        codebooks={book.id: book for book in books.values()},
        names={book.id: name for name, book in books.items()},
        problems=tuple(problems),
        tokenizer=tokenizer,
        processor=ImageProcessor.from_bundle(bundle) if model.spec.vocab_size == 0 else None,
        stop_ids=stop_ids,
        words=words,
        chosen=chosen,
        quality=quality_of(bundle),
        tables=tables,
    )
    yield
    yield from _measuring_codebooks(loaded, known)
    for code in choose_codes(loaded, Options(), model.spec.tasks[0])[0] if tables else ():
        if isinstance(code.codec, VectorCodec):
            code.codec.prepare(code.stages)
            yield
    timing = known.timing if known else (yield from measuring(model, PlainCodec("fp16", model), 1))
    divergence = min(chosen.divergence, MOST_DIVERGENCE)
    codes = {str(key): times for key, times in loaded.times.items()}
    return loaded, Figures(chosen.precision, chosen.speedup, divergence, packing, timing, codes)


def measuring_again(loaded: Loaded, known: Figures) -> Parts[Figures]:
    """How fast a model in memory is now, in the format that it is in."""
    plain = PlainCodec("fp16", loaded.model)
    timing = yield from measuring(loaded.model, plain, 1)
    codes = {}
    for key, book in loaded.codebooks.items():
        yield
        codes[key] = measure_codebook(loaded.model, book, loaded.tables)
    loaded.times.update(codes)
    return Figures(
        known.precision,
        known.speedup,
        known.divergence,
        known.packing,
        timing,
        {str(key): times for key, times in codes.items()},
    )


def _words_of(bundle: Bundle, words: Bundle) -> tuple[TextTokenizer | None, frozenset[int], Bundle]:
    """What a copy reads texts with, or the model's own folder where that copy is damaged."""
    try:
        tokenizer = TextTokenizer.from_bundle(words) if words.has(TOKENIZER_FILE) else None
        return tokenizer, eos_ids(words), words
    except AstraMeshError as error:
        if words.path == bundle.path:
            raise
        log.warning("%s reads texts by its own files: %s", bundle.name, error.message)
        return _words_of(bundle, bundle)


def renew_words(loaded: Loaded, words: Bundle) -> None:
    """Texts of the model in memory are read with the files of another copy. In the compute thread;
    one that is damaged is left alone."""
    try:
        loaded.tokenizer, loaded.stop_ids, loaded.words = _words_of(words, words)
    except AstraMeshError as error:
        log.warning("%s: %s", words.name, error.message)


def renew_codebooks(loaded: Loaded, bundle: Bundle) -> None:
    """The model in memory gets the codebooks that its folder has now. In the compute thread."""
    books, problems = read_codebooks(bundle)
    loaded.bundle, loaded.problems, loaded.quality = bundle, tuple(problems), quality_of(bundle)
    loaded.codebooks = {book.id: book for book in books.values()}
    loaded.names = {book.id: name for name, book in books.items()}
    whole(_measuring_codebooks(loaded, None))


def quality_of(bundle: Bundle) -> Quality | None:
    """What was measured of a bundle's answers; a bad file is logged and counts as none."""
    try:
        return read_quality(bundle)
    except BadBundleError as error:
        log.warning("%s: its measured quality is left out: %s", bundle.name, error.message)
        return None


def _formatted(
    bundle: Bundle, model: Model, wanted: Wanted, known: Figures | None, tables: bool
) -> Parts[tuple[Chosen, Packing]]:
    """Convert a float32 model in place to the best format, and pack it if that is faster; what
    projects keys and values only with ``tables``, without which all blocks need a part of it."""
    if known is not None:
        chosen = Chosen(cast(Precision, known.precision), known.speedup, known.divergence)
        convert(model, chosen.precision)
        if known.packing != "none":
            pack(model, fuses=known.packing == "fused", doubles=tables)
        yield
        return chosen, known.packing
    chosen = choose_precision(model, wanted)
    yield
    packing = pack_if_faster(model, doubles=tables)
    log.info(
        "%s runs in %s%s: %.1f times as fast as fp32, divergence %.2g",
        bundle.name,
        chosen.precision,
        ", weights packed" if packing != "none" else "",
        chosen.speedup,
        chosen.divergence,
    )
    return chosen, packing


def _measuring_codebooks(loaded: Loaded, known: Figures | None) -> Parts[None]:
    """One that does not fit the model's blocks is left out."""
    for key, book in list(loaded.codebooks.items()):
        try:
            loaded.codec(book.codec, key)
        except CodebookError as error:
            del loaded.codebooks[key]
            loaded.problems = (*loaded.problems, error.message)
            continue
        if key not in loaded.times:
            times = known.times_of(book) if known is not None else None
            loaded.times[key] = times or measure_codebook(loaded.model, book, loaded.tables)
            yield
