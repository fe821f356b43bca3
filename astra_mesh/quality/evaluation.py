"""What the codes cost in quality: a plan over even shards, compared with the single device.

Every row runs the engine's own arithmetic (:func:`astra_mesh.engine.reference.run_plan`) on the
same inputs, so rows differ by the codec and its rate only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from astra_mesh.bundle import Bundle
from astra_mesh.bundle.tensors import load_weights
from astra_mesh.engine.reference import run_plan, run_solo
from astra_mesh.errors import InputError
from astra_mesh.families import Model, build_model
from astra_mesh.families.spec import Pooling
from astra_mesh.plan.layout import Layout, make_layout
from astra_mesh.quality.data import Split, load_samples
from astra_mesh.quality.metrics import Meter, make_meter
from astra_mesh.quality.sample import Sample
from astra_mesh.quant.codebook import load_codebook
from astra_mesh.quant.codecs import PLAIN, Codec, make_codec
from astra_mesh.quant.fit import Progress


@dataclass(frozen=True)
class EvalSettings:
    """What is measured, and on how much."""

    peers: int = 4
    codecs: Sequence[str] = ()  # "vq", "astra", "fp32", ...; empty: all that the bundle has
    rates: Sequence[int] = ()  # bits per token and block; empty: every number of stages
    limit: int = 64  # sequences, sentences or pictures
    task: str = ""  # "generate", "classify" or "embed"; empty: the model's first
    class_token: Literal["single", "distributed"] = "single"
    window: int | None = None
    split: Split | None = None

    def check(self) -> None:
        """InputError for settings that make no sense."""
        if not 1 <= self.peers <= 64:
            raise InputError(f"peers must lie in 1..64, it is {self.peers}")
        if self.limit < 1:
            raise InputError(f"limit must be at least 1, it is {self.limit}")


@dataclass(frozen=True)
class EvalRow:
    """One codec at one rate. ``metrics``: see :mod:`astra_mesh.quality.metrics`."""

    codec: str
    codebook: str  # file name; "" for codecs without one
    stages: int
    bits_per_token: int  # per token and block
    peers: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Evaluation:
    """The table, and what the single device reaches on the same inputs."""

    model: str
    model_id: str
    task: str
    peers: int
    class_token: str
    sequences: int
    tokens: int
    baseline: dict[str, float]  # of the single device
    rows: list[EvalRow] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    def to_json(self) -> str:
        """As a JSON text that is the same for the same results."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True, allow_nan=False)


@dataclass(frozen=True)
class _Variant:
    codec: Codec
    codebook: str
    stages: int
    meter: Meter


def evaluate(
    bundle: Bundle,
    data: Path,
    settings: EvalSettings | None = None,
    progress: Progress = lambda done, total, what: None,
) -> Evaluation:
    """Run every codec and rate over the data and compare with the single device.

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
    variants = list(_variants(bundle, model, task, settings))
    progress(0, 1, "reading the data")
    samples = load_samples(
        bundle, data, limit=settings.limit, window=settings.window, split=settings.split
    )
    solo = make_meter(task, model)
    tokens = 0
    for index, sample in enumerate(samples):
        progress(index, len(samples), "comparing")
        tokens += _compare(model, sample, solo, variants, settings)
    progress(len(samples), len(samples), "comparing")
    baseline = solo.baseline()
    return Evaluation(
        model=bundle.name,
        model_id=bundle.model_id,
        task=task,
        peers=settings.peers,
        class_token=settings.class_token if model.spec.has_class_token else "none",
        sequences=len(samples),
        tokens=tokens,
        baseline=baseline,
        rows=[_row(one, settings.peers, baseline) for one in variants],
    )


def _variants(
    bundle: Bundle, model: Model, task: str, settings: EvalSettings
) -> Iterator[_Variant]:
    """Plain codecs from many bits to few, then the codebooks, each from many stages to few."""
    wanted = list(settings.codecs)
    books = {
        path.name: load_codebook(path, bundle.model_id) for path in bundle.codebook_paths.values()
    }
    kinds = {book.codec for book in books.values()}
    for name in wanted:
        if name not in PLAIN and name not in kinds:
            make_codec(name, model)  # raises: unknown, or without its codebook
    codecs: list[tuple[Codec, str]] = [
        (make_codec(name, model), "") for name in PLAIN if not wanted or name in wanted
    ]
    for name, book in books.items():
        if not wanted or book.codec in wanted:
            codecs.append((make_codec(book.codec, model, book), name))
    found = False
    for codec, file in codecs:
        for stages in range(codec.stages, 0, -1):
            if not settings.rates or codec.rate(stages) in settings.rates:
                found = True
                yield _Variant(codec, file, stages, make_meter(task, model))
    if not found:
        known = sorted({codec.rate(s) for codec, _ in codecs for s in range(1, codec.stages + 1)})
        raise InputError(
            f"no codec has one of the rates {list(settings.rates)}; there are {known} bits"
        )


def _compare(
    model: Model, sample: Sample, solo: Meter, variants: Sequence[_Variant], settings: EvalSettings
) -> int:
    """Count one sample into all meters; its number of tokens."""
    pooling = solo.pooling
    truth = solo.output([run_solo(model, sample.input, pooling)])
    solo.add(truth, truth, sample)
    tokens = model.count_tokens(sample.input)
    for one in variants:
        layout = _even(model, tokens, one, settings, pooling)
        one.meter.add(
            one.meter.output(run_plan(model, layout, one.codec, sample.input)), truth, sample
        )
    return tokens


def _even(
    model: Model, tokens: int, one: _Variant, settings: EvalSettings, pooling: Pooling
) -> Layout:
    edges = [tokens * i // settings.peers for i in range(settings.peers + 1)]
    return make_layout(
        model.spec,
        list(pairwise(edges)),
        pooling=pooling,
        first_block=one.codec.first_block,
        class_token=settings.class_token,
        stages=one.stages,
    )


def _row(one: _Variant, peers: int, baseline: dict[str, float]) -> EvalRow:
    return EvalRow(
        codec=one.codec.name,
        codebook=one.codebook,
        stages=one.stages,
        bits_per_token=one.codec.rate(one.stages),
        peers=peers,
        metrics=one.meter.metrics(baseline),
    )
