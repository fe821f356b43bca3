"""What the codes cost in quality: plans of several peers, compared with the single device.

Every row runs the engine's own arithmetic (:func:`astra_mesh.engine.reference.run_plan`) on the
same inputs, so rows differ by the codec, its rate and the number of peers only.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from astra_mesh.bundle import Bundle
from astra_mesh.bundle.quality import (
    DEFINITIONS,
    LIMITS,
    Measured,
    Recommended,
    TaskQuality,
    code_name,
    loss_of,
    recommend,
)
from astra_mesh.bundle.store import codebook_name
from astra_mesh.bundle.tensors import load_weights
from astra_mesh.engine.reference import run_plan, run_solo
from astra_mesh.errors import CodebookError, InputError
from astra_mesh.families import Model, build_model
from astra_mesh.limits import NAME_CHARS, PEERS_PER_PLAN
from astra_mesh.plan.layout import make_layout
from astra_mesh.quality.bounds import BoundRow, BoundSettings, attention_bounds
from astra_mesh.quality.cuts import Shards, cut
from astra_mesh.quality.data import Split, load_samples, window_of
from astra_mesh.quality.metrics import INPUTS, Meter, make_meter
from astra_mesh.quality.sample import Sample
from astra_mesh.quant.codebook import Codebook, load_codebook
from astra_mesh.quant.codecs import PLAIN, make_codec
from astra_mesh.quant.codes import Codec
from astra_mesh.quant.fit import Progress
from astra_mesh.wire.validate import sanitise

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvalSettings:
    """What is measured, and on how much."""

    peers: Sequence[int] = (4,)  # numbers of peers, each measured on its own
    codecs: Sequence[str] = ()  # "vq", "astra", "fp32", ...; empty: all that the bundle has
    rates: Sequence[int] = ()  # bits per token and block; empty: every number of stages
    limit: int = 64  # sequences, sentences or pictures
    task: str = ""  # "generate", "classify" or "embed"; empty: the model's first
    class_token: Literal["", "single", "distributed"] = ""  # "": what the codebooks were made for
    shards: Shards = "even"
    seed: int = 0  # of random shards
    loss: float | None = None  # what a recommended rate may lose; None: LIMITS of the measure
    bounds: int = 0  # sequences that the bound on the attention's error is computed on; 0: none
    window: int | None = None
    split: Split | None = None

    def check(self) -> None:
        """InputError for settings that make no sense."""
        if not self.peers:
            raise InputError("no number of peers is given; name some, as 2,4,8")
        for peers in self.peers:
            if not 1 <= peers <= PEERS_PER_PLAN:
                raise InputError(f"peers must lie in 1..{PEERS_PER_PLAN}, it is {peers}")
        if self.limit < 1:
            raise InputError(f"limit must be at least 1, it is {self.limit}")
        if self.loss is not None and not 0 <= self.loss <= 1:
            raise InputError(f"loss must lie in 0..1 (0.02 is 2 %), it is {self.loss:g}")


@dataclass(frozen=True)
class EvalRow:
    """One codec at one rate on one number of peers."""

    codec: str
    codebook: str  # file name; "" for codecs without one
    codebook_id: str
    history: int  # blocks that a prediction looks back; 0: none, -1: all
    stages: int
    bits_per_token: int  # per token and block
    peers: int
    loss: float  # see astra_mesh.bundle.quality
    metrics: dict[str, float]  # see astra_mesh.bundle.quality.DEFINITIONS


@dataclass(frozen=True)
class Evaluation:
    """The table, and what the single device reaches on the same inputs."""

    model: str
    model_id: str
    task: str
    data: str  # name of the file or folder
    peers: tuple[int, ...]
    class_token: str
    shards: str
    sequences: int
    tokens: int
    measure: str  # of the loss
    limit: float  # what the recommended rate's loss stays within
    baseline: dict[str, float]  # of the single device
    rows: list[EvalRow] = field(default_factory=list)
    bounds: list[BoundRow] = field(default_factory=list)
    window: int | None = None  # tokens of a window of text, or the most of a sentence
    seed: int | None = None  # of random shards

    @property
    def lacking(self) -> str:
        """What is measured too seldom to know how uncertain the losses are; "" if nothing is."""
        if all("loss_error" in row.metrics for row in self.rows):
            return ""
        kinds = {"generate": "windows of text", "embed": "inputs"}
        labelled = "labelled inputs" if self.measure == "accuracy" else "inputs"
        return f"at least {INPUTS} {kinds.get(self.task, labelled)}"

    def check_known(self) -> None:
        """InputError where the losses may be chance, so that they are not worth keeping."""
        if self.lacking:
            raise InputError(
                "nothing was stored: how uncertain the losses are is unknown; --save takes "
                f"{self.lacking} (--limit, more --data)"
            )

    @property
    def recommended(self) -> Recommended | None:
        """The smallest rate of all codebooks within the limit, on the most peers.

        None too where it is unknown how uncertain the losses are.
        """
        return None if self.lacking else recommend(self._measured(), self.limit)

    @property
    def recommended_row(self) -> EvalRow | None:
        """The row of :attr:`recommended`."""
        best = self.recommended
        for row in self.rows if best is not None else ():
            key = (row.codebook_id, row.stages, row.peers)
            if best is not None and key == (best.codebook, best.stages, best.peers):
                return row
        return None

    def name_of(self, row: EvalRow | BoundRow) -> str:
        """A codec for people; with a word of the file's name where two codebooks are alike."""
        names = {one.codebook: code_name(one.codec, one.history) for one in self.rows}
        name = names[row.codebook] if row.codebook else row.codec
        alike = [file for file, other in names.items() if file and other == name]
        mark = row.codebook.removeprefix("codebook").removesuffix(".safetensors").strip("-")
        return f"{name} ({mark or 'main'})" if len(alike) > 1 else name

    def stored(self) -> TaskQuality:
        """What ``--save`` stores."""
        keys = {key for row in self.rows for key in row.metrics}
        return TaskQuality(
            data=self.data,
            sequences=self.sequences,
            tokens=self.tokens,
            class_token=self.class_token,
            shards=self.shards,
            measure=self.measure,
            limit=self.limit,
            baseline=self.baseline,
            definitions={key: text for key, text in DEFINITIONS.items() if key in keys},
            measured=self._measured(),
            recommended=self.recommended,
        )

    def _measured(self) -> list[Measured]:
        return [
            Measured(
                row.codec,
                row.codebook_id,
                row.history,
                row.stages,
                row.bits_per_token,
                row.peers,
                row.metrics,
            )
            for row in self.rows
        ]

    def to_dict(self) -> dict[str, Any]:
        """As plain values, the same for the same results."""
        best = self.recommended
        more = {
            "recommended": None if best is None else msgspec.to_builtins(best),
            "definitions": self.stored().definitions,
        }
        return asdict(self) | {"peers": list(self.peers)} | more


@dataclass(frozen=True)
class _Coded:
    """A codec and where it comes from."""

    codec: Codec
    file: str = ""
    id: str = ""
    book: Codebook | None = None


@dataclass(frozen=True)
class _Variant:
    coded: _Coded
    stages: int
    peers: int
    meter: Meter

    @property
    def codec(self) -> Codec:
        return self.coded.codec


def evaluate(
    bundle: Bundle,
    data: Path,
    settings: EvalSettings | None = None,
    progress: Progress = lambda done, total, what: None,
) -> Evaluation:
    """Run every codec, rate and number of peers over the data and compare with the single device.

    Of a causal model the first shard is always exact, so the figures are those of whole windows, as
    a mesh of that many peers would give them. Deterministic for one number of threads.

    Raises:
        CalibrationError: data that the model cannot read.
        CodebookError: a codec was asked for that the bundle has no codebook for.
        InputError, WrongTaskError: settings that the model cannot fulfil.
    """
    settings = settings or EvalSettings()
    settings.check()
    progress(0, 1, "reading the model")
    model = build_model(bundle.config, load_weights(bundle))
    task = settings.task or model.spec.tasks[0]
    model.require(task)
    rated = list(_rated(_coded(bundle, model, settings.codecs), settings.rates))
    numbers = tuple(sorted(set(settings.peers)))
    variants = [
        _Variant(coded, stages, peers, make_meter(task, model))
        for coded, stages in rated
        for peers in numbers
    ]
    settings = replace(settings, class_token=settings.class_token or _made_for(rated))
    progress(0, 1, "reading the data")
    samples = load_samples(
        bundle,
        data,
        limit=settings.limit,
        window=settings.window,
        split=settings.split,
        classes=model.labels if task == "classify" else None,
    )
    solo = make_meter(task, model)
    tokens = 0
    for index, sample in enumerate(samples):
        progress(index, len(samples), "comparing")
        tokens += _compare(model, index, sample, solo, variants, settings)
    progress(len(samples), len(samples), "comparing")
    baseline = solo.baseline()
    rows = [_row(one, baseline) for one in variants]
    measure = loss_of(rows[0].metrics)[0]
    return Evaluation(
        model=bundle.name,
        model_id=bundle.model_id,
        task=task,
        data=sanitise(data.resolve().name, NAME_CHARS) or "data",
        peers=numbers,
        class_token=settings.class_token if model.spec.has_class_token else "none",
        shards=settings.shards,
        sequences=len(samples),
        tokens=tokens,
        measure=measure,
        limit=LIMITS[measure] if settings.loss is None else settings.loss,
        baseline=baseline,
        rows=rows,
        bounds=_bounds(model, samples, rated, settings, progress),
        window=window_of(model.spec, settings.window) if model.spec.vocab_size else None,
        seed=settings.seed if settings.shards == "random" else None,
    )


def _made_for(rated: Sequence[tuple[_Coded, int]]) -> Literal["single", "distributed"]:
    """Where the class token lives for the first codebook; single without one."""
    books = [one.book for one, _ in rated if one.book is not None]
    return "distributed" if books and books[0].class_token == "distributed" else "single"


def _coded(bundle: Bundle, model: Model, wanted: Sequence[str]) -> list[_Coded]:
    """Plain codecs from many bits to few, then the codebooks; all, or those that were asked for."""
    books = _usable_books(bundle, needed=not set(wanted) <= set(PLAIN))
    names = {path.name: suffix for suffix, path in bundle.codebook_paths.items()}
    called = {
        file: {book.codec, codebook_name(book.codec, names[file])} for file, book in books.items()
    }
    for name in wanted:
        if name not in PLAIN and not any(name in one for one in called.values()):
            make_codec(name, model)  # raises: unknown, or without its codebook
    found = [_Coded(make_codec(name, model)) for name in PLAIN if not wanted or name in wanted]
    for file, book in books.items():
        if not wanted or called[file] & set(wanted):
            found.append(_Coded(make_codec(book.codec, model, book), file, book.id, book))
    return found


def _usable_books(bundle: Bundle, *, needed: bool) -> dict[str, Codebook]:
    """Codebooks by file; those that cannot be used are named in the log.

    Raises:
        CodebookError: one is needed, and of those that there are none can be used.
    """
    found: dict[str, Codebook] = {}
    problems: list[CodebookError] = []
    for path in bundle.codebook_paths.values():
        try:
            found[path.name] = load_codebook(path, bundle.model_id)
        except CodebookError as error:
            problems.append(error)
    if problems and needed and not found:
        raise problems[0]
    for problem in problems:
        _log.warning("a codebook is left out: %s", problem.message)
    return found


def _rated(codecs: Sequence[_Coded], rates: Sequence[int]) -> Iterator[tuple[_Coded, int]]:
    """Each codec with its numbers of stages, from many to few."""
    found = False
    for coded in codecs:
        for stages in reversed(coded.codec.able):
            if not rates or coded.codec.rate(stages) in rates:
                found = True
                yield coded, stages
    if not found:
        known = sorted({one.codec.rate(s) for one in codecs for s in one.codec.able})
        raise InputError(f"no codec has one of the rates {list(rates)}; there are {known} bits")


def _compare(
    model: Model,
    index: int,
    sample: Sample,
    solo: Meter,
    variants: Sequence[_Variant],
    settings: EvalSettings,
) -> int:
    """Count one sample into all meters; its number of tokens."""
    truth = solo.output([run_solo(model, sample.input, solo.pooling)])
    solo.add(truth, truth, sample)
    tokens = model.count_tokens(sample.input)
    for one in variants:
        seed = f"{settings.seed}/{index}/{one.peers}"
        layout = make_layout(
            model.spec,
            cut(tokens, one.peers, settings.shards, seed),
            pooling=solo.pooling,
            first_block=one.codec.first_block,
            class_token=settings.class_token or None,
            stages=one.stages,
        )
        output = one.meter.output(run_plan(model, layout, one.codec, sample.input))
        one.meter.add(output, truth, sample)
    return tokens


def _row(one: _Variant, baseline: dict[str, float]) -> EvalRow:
    metrics, book = one.meter.metrics(baseline), one.coded.book
    return EvalRow(
        codec=one.codec.name,
        codebook=one.coded.file,
        codebook_id=one.coded.id,
        history=0 if book is None else book.history,
        stages=one.stages,
        bits_per_token=one.codec.rate(one.stages),
        peers=one.peers,
        loss=loss_of(metrics)[1],
        metrics=metrics,
    )


def _bounds(
    model: Model,
    samples: Sequence[Sample],
    rated: Sequence[tuple[_Coded, int]],
    settings: EvalSettings,
    progress: Progress,
) -> list[BoundRow]:
    if not settings.bounds:
        return []
    codes = [(one.codec, one.file, stages) for one, stages in rated if one.book is not None]
    wanted = BoundSettings(max(settings.peers), settings.class_token == "distributed")
    some = [sample.input for sample in samples[: settings.bounds]]
    return attention_bounds(model, some, codes, wanted, progress)
