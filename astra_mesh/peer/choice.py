"""Which codes a request may use, and what they are expected to cost in quality.

Without an explicit wish these are, for each codebook, the smallest rate whose stored cost
(:mod:`astra_mesh.bundle.quality`) stays within the wanted loss: a larger rate of the same codebook
is never faster. The planner takes the fastest of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from astra_mesh.bundle.quality import (
    Measured,
    TaskQuality,
    code_name,
    limit_in_words,
    loss_in_words,
)
from astra_mesh.errors import RateError
from astra_mesh.peer.loaded import AnyCodec, Loaded, choose_stages
from astra_mesh.quant.codebook import Codebook
from astra_mesh.quant.codecs import PLAIN
from astra_mesh.wire.messages import CodebookId, ExpectedCost, Options, Plan


@dataclass(frozen=True)
class Code:
    """A codec at one rate."""

    codec: AnyCodec
    codebook: CodebookId
    stages: int
    label: str  # for people


def stages_of(plan: Plan) -> int:
    """The largest number of stages that a plan uses; 0 where nothing is sent."""
    return max((rate.stages for rate in plan.rates), default=0)


def made_for(loaded: Loaded, codebook: CodebookId) -> str:
    """Where the class token lives for a codebook: "single" or "distributed"."""
    book = loaded.codebooks.get(codebook)
    return "single" if book is None else book.class_token


def usual_rate(book: Codebook, tasks: Iterable[TaskQuality]) -> int:
    """Bits that requests without a wish use of a codebook: the smallest rate that any task's stored
    loss allows, else its default.
    """
    allowed = [
        row.bits
        for task in tasks
        for row in task.deciding()
        if row.codebook == book.id and row.cost <= task.limit and row.bits in book.rates.values()
    ]
    return min(allowed, default=book.rate(book.default_stages))


def choose_codes(loaded: Loaded, options: Options, task: str) -> tuple[list[Code], list[str]]:
    """What the planner may choose from, the smallest rate first, and notes for the caller.

    Raises:
        CodecError, CodebookError, RateError: what the caller named does not exist.
    """
    books = loaded.named(options.codec)
    if not books:
        codec, codebook = loaded.choose_codec(options.codec)  # a plain one, or it raises
        return [Code(codec, codebook, choose_stages(codec, options.rate), codec.name)], []
    found = loaded.task_quality(task)
    if options.rate:
        return [_at_rate(loaded, books, found, options.rate)], []
    rows = [] if found is None else _usable(books, found)
    if found is None or not rows:
        codec, codebook = loaded.choose_codec(options.codec)
        code = _code(loaded, codebook, choose_stages(codec, 0))
        return [code], [] if options.max_loss is None else [_not_measured(loaded)]
    limit = found.limit if options.max_loss is None else options.max_loss
    return _within(loaded, options, found, rows, limit)


def _usable(books: dict[CodebookId, Codebook], found: TaskQuality) -> list[Measured]:
    """Rows of codebooks and rates that are here, on the largest number of peers."""
    return [
        row
        for row in found.deciding()
        if row.codebook in books
        and row.stages in (able := books[CodebookId(row.codebook)]).able
        and able.rate(row.stages) == row.bits
    ]


def _within(
    loaded: Loaded, options: Options, found: TaskQuality, rows: Sequence[Measured], limit: float
) -> tuple[list[Code], list[str]]:
    best: dict[str, Measured] = {}
    for row in sorted(rows, key=lambda one: (one.bits, one.cost)):
        if row.cost <= limit:
            best.setdefault(row.codebook, row)
    if best:
        return [_code(loaded, CodebookId(x.codebook), x.stages) for x in best.values()], []
    wanted = f"within {limit_in_words(found.measure, limit)}"
    for row in found.deciding() if not options.codec else []:
        if row.codec in PLAIN and row.cost <= limit:
            codec = loaded.codec(row.codec, CodebookId(""))
            note = f"no codebook was measured to stay {wanted}: {row.codec} is used"
            return [Code(codec, CodebookId(""), codec.stages, row.codec)], [note]
    row = min(rows, key=lambda one: one.cost)
    cost = loss_in_words(found.measure, row.loss)
    note = f"no rate was measured to stay {wanted}: the best has {row.bits} bits, {cost}"
    return [_code(loaded, CodebookId(row.codebook), row.stages)], [note]


def _at_rate(
    loaded: Loaded, books: dict[CodebookId, Codebook], found: TaskQuality | None, rate: int
) -> Code:
    """Of the codebooks that have a rate the one with the smallest stored cost, or the first."""
    able = [
        (key, stages)
        for key, book in books.items()
        for stages, bits in book.rates.items()
        if bits == rate
    ]
    if not able:
        known = sorted({bits for book in books.values() for bits in book.rates.values()})
        raise RateError(
            f"{loaded.bundle.name} has no rate of {rate} bits per token and block; it has "
            + ", ".join(map(str, known))
        )
    costs = {(x.codebook, x.stages): x.cost for x in (found.deciding() if found else ())}
    key, stages = min(able, key=lambda one: costs.get(one, float("inf")))
    return _code(loaded, key, stages)


def _code(loaded: Loaded, codebook: CodebookId, stages: int) -> Code:
    book = loaded.codebooks.get(codebook)
    if book is None:
        codec = loaded.codec("fp16", CodebookId(""))
        return Code(codec, codebook, stages, codec.name)
    codec = loaded.codec(book.codec, codebook, stages)
    return Code(codec, codebook, stages, _label(loaded, book))


def _label(loaded: Loaded, book: Codebook) -> str:
    """The kind of a codebook, with its name where another one is of the same kind."""
    kinds = [code_name(one.codec, one.history) for one in loaded.codebooks.values()]
    kind = code_name(book.codec, book.history)
    return f"{kind} ({loaded.names.get(book.id, '?')})" if kinds.count(kind) > 1 else kind


def _not_measured(loaded: Loaded) -> str:
    name = loaded.bundle.name
    return (
        "the loss is not heeded, because nothing was measured: "
        f"astra-mesh eval {name} --data ... --save does that"
    )


def expected_cost(loaded: Loaded, plan: Plan, task: str) -> ExpectedCost | None:
    """What the plan's codes cost as it was measured; None for one device, or not measured."""
    found = loaded.task_quality(task)
    if found is None or len(plan.shards) < 2 or found.class_token != plan.class_token:
        return None
    row = found.expected(plan.codec, plan.codebook, stages_of(plan), len(plan.shards))
    if row is None:
        return None
    return ExpectedCost(
        measure=found.measure,
        loss=min(max(row.loss, 0.0), 1e12),
        peers=row.peers,
        data=found.data,
        sequences=found.sequences,
    )
