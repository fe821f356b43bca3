"""quality.json: what the codes of a bundle cost in quality, as ``astra-mesh eval --save`` measured.

Whoever reads it may have downloaded it, so that everything is checked. Entries of other weights or
of codebooks that are not there any more are ignored by whoever uses them.

The *loss* of a row is one number, the smaller the better; its *measure* depends on the task:

``perplexity``  generate: relative increase of the perplexity (0.02: 2 %)
``accuracy``    classify, where the data say the class: drop of the accuracy (0.005: 0.5 points)
``agreement``   classify otherwise: share of inputs with another most likely class
``cosine``      embed: 1 less the mean cosine to the single device's vectors

A limit is compared with the *cost*: the loss, but for ``perplexity`` exp(KL) - 1 where that is
more. The perplexity of the data at hand can stay or fall while answers become others: codes
smooth an overconfident model, which helps on text that it predicts badly. The KL is never blind to
that, and is on the same scale: on text that the model itself writes, the perplexity rises by
exp(KL) - 1.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from astra_mesh import limits
from astra_mesh.bundle.configs import bad_file, load_json, save_json
from astra_mesh.bundle.manifest import write_manifest
from astra_mesh.bundle.store import Bundle, open_bundle
from astra_mesh.bundle.writable import waiting
from astra_mesh.errors import BadBundleError

_log = logging.getLogger(__name__)

NAME: Final = "quality.json"
_LOCK: Final = ".quality.lock"
FORMAT: Final = "astra-mesh-quality/1"
LIMITS: Final[Mapping[str, float]] = {
    "perplexity": 0.02,
    "accuracy": 0.005,
    "agreement": 0.03,
    "cosine": 0.015,
}
DEFINITIONS: Final[Mapping[str, str]] = {
    "nats_per_token": "mean cross-entropy of the data's next tokens, in nats",
    "perplexity": "exp(nats_per_token)",
    "nats_increase": "nats_per_token less the single device's",
    "accuracy": "share of inputs whose most likely class is the one that the data say",
    "accuracy_change": "accuracy less the single device's",
    "kl": "mean KL divergence, single device || plan: nats per token (generate) or input",
    "agreement": "share of tokens or inputs with the single device's most likely answer",
    "cosine": "mean cosine to the single device's vectors",
    "loss_error": "standard error of the loss over the inputs; of n answers at least 1/n",
    "cosine_min": "smallest cosine to the single device's vectors",
}
_AGAIN: Final = "measure again: astra-mesh eval MODEL --data ... --save"
_ID: Final = re.compile(r"[0-9a-f]{64}")
_LARGEST: Final = 1e12  # of any metric, either way
_METRICS: Final = 16  # in one row
_WORD_CHARS: Final = 32


class Measured(msgspec.Struct, frozen=True):
    """One codec at one rate, on one number of peers."""

    codec: str
    codebook: str  # its id; "" for codecs without one
    history: int
    stages: int
    bits: int  # per token and block
    peers: int
    metrics: dict[str, float]  # see DEFINITIONS

    @property
    def loss(self) -> float:
        """See the module."""
        return loss_of(self.metrics)[1]

    @property
    def cost(self) -> float:
        """What a limit is compared with; see the module."""
        measure, loss = loss_of(self.metrics)
        if measure != "perplexity":
            return loss
        return max(loss, math.expm1(min(self.metrics.get("kl", 0.0), 25.0)))


class Recommended(msgspec.Struct, frozen=True):
    """The smallest rate of all codebooks that stays within the limit."""

    codec: str
    codebook: str
    stages: int
    bits: int
    peers: int  # that decided
    loss: float


class TaskQuality(msgspec.Struct, frozen=True):
    """One run of ``eval``."""

    data: str  # name of the file or folder
    sequences: int
    tokens: int
    class_token: str  # "single", "distributed" or "none"
    shards: str  # "even" or "random"
    measure: str  # of the loss
    limit: float  # what the loss has to stay within
    baseline: dict[str, float]  # the single device's own figures
    definitions: dict[str, str]
    measured: list[Measured]
    recommended: Recommended | None = None

    def deciding(self) -> list[Measured]:
        """The rows of the largest number of peers, from few bits to many."""
        most = max((one.peers for one in self.measured), default=0)
        return sorted((x for x in self.measured if x.peers == most), key=lambda x: x.bits)

    def expected(self, codec: str, codebook: str, stages: int, peers: int) -> Measured | None:
        """What a plan costs: of so many peers, else the next more, else the most measured."""
        key = (codec, codebook, stages)
        rows = [x for x in self.measured if (x.codec, x.codebook, x.stages) == key]
        rows.sort(key=lambda x: x.peers)
        return next((x for x in rows if x.peers >= peers), rows[-1] if rows else None)

    @property
    def inputs(self) -> tuple[object, ...]:
        """What two runs share that measured on the same inputs in the same way."""
        given = self.data, self.sequences, self.tokens, self.class_token, self.shards, self.measure
        return *given, tuple(sorted(self.baseline.items()))


class Quality(msgspec.Struct, frozen=True):
    """The file."""

    format: str
    model: str
    tasks: dict[str, TaskQuality]


def loss_of(metrics: Mapping[str, float]) -> tuple[str, float]:
    """The measure that these metrics allow, and the loss; KeyError where there is none."""
    if "nats_increase" in metrics:
        return "perplexity", math.expm1(min(metrics["nats_increase"], 25.0))
    if "accuracy_change" in metrics:
        return "accuracy", 0.0 - metrics["accuracy_change"]
    if "cosine" in metrics:
        return "cosine", 1.0 - metrics["cosine"]
    return "agreement", 1.0 - metrics["agreement"]


def loss_in_words(measure: str, loss: float) -> str:
    """A loss for people; an unknown measure is shown as it is."""
    percent = _figure(100 * abs(loss))
    if measure == "perplexity":
        return f"perplexity {'-' if loss < 0 else '+'}{percent} %"
    if measure == "accuracy":
        if percent == "0.0":
            return "accuracy unchanged"
        return f"accuracy {'+' if loss < 0 else '-'}{percent} points"
    if measure == "agreement":
        return f"another answer for {percent} % of the inputs"
    if measure == "cosine":
        return f"cosine {1 - loss:.4f}"
    return f"{measure} loss {loss:.3g}"


def limit_in_words(measure: str, limit: float) -> str:
    """A limit for people: as a loss, with the KL that it stands for where one counts too."""
    words = loss_in_words(measure, limit)
    return f"{words} and a KL of {math.log1p(limit):.2g}" if measure == "perplexity" else words


def code_name(codec: str, history: int) -> str:
    """A codebook's kind for people."""
    if codec != "vq":
        return codec
    if history == 0:
        return "memoryless"
    return "predictive" if history < 0 else f"predictive over {history}"


def _figure(value: float) -> str:
    if 0 < value < 0.05:
        return "less than 0.001" if value < 0.001 else f"{value:.3f}".rstrip("0")
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def recommend(rows: Iterable[Measured], limit: float) -> Recommended | None:
    """The smallest rate of any codebook within the limit, on the largest number of peers."""
    found = [one for one in rows if one.codebook]
    most = max((one.peers for one in found), default=0)
    fitting = [one for one in found if one.peers == most and one.cost <= limit]
    if not fitting:
        return None
    best = min(fitting, key=lambda one: (one.bits, one.cost))
    return Recommended(best.codec, best.codebook, best.stages, best.bits, best.peers, best.loss)


def read_quality(bundle: Bundle) -> Quality | None:
    """What is stored of a bundle; None where nothing is, or only of other weights.

    Raises:
        BadBundleError: the file is malformed, or differs from the manifest.
    """
    if not bundle.has(NAME):
        return None
    path = bundle.file(NAME)
    content = load_json(path, limits.QUALITY_BYTES)
    if content.get("format") != FORMAT:
        raise bad_file(path, f"its format is not {FORMAT!r}", f"update astra-mesh, or {_AGAIN}")
    try:
        found = msgspec.convert(content, Quality)
        _check(found)
    except (msgspec.ValidationError, ValueError, OverflowError, KeyError) as error:
        raise bad_file(path, f"is malformed ({str(error)[:200]})", _AGAIN) from error
    return found if found.model == bundle.model_id else None


def save_quality(bundle: Bundle, task: str, found: TaskQuality) -> Quality:
    """Store one task's figures beside those of other tasks, and renew the manifest.

    Rows that were measured before on the same inputs stay, unless they were measured again; all
    others of the task go. What counts as stored is what the folder has now, not what it had when
    ``bundle`` was opened: another run may have ended meanwhile, and one that ends now waits.

    Raises:
        ModelError: it cannot be written, or another file of the folder is damaged, perhaps because
            it is being written: nothing is stored then, and nothing is lost.
    """
    with waiting(bundle.path / _LOCK):
        now, before = open_bundle(bundle.path), dict[str, TaskQuality]()
        try:
            stored = read_quality(now)
            before = {} if stored is None else dict(stored.tasks)
        except BadBundleError as error:
            _log.warning("what was stored before is replaced: %s", error.message)
        tasks = before | {task: _joined(before.get(task), found)}
        whole = Quality(FORMAT, bundle.model_id, dict(sorted(tasks.items())))
        _check(whole)
        save_json(bundle.path / NAME, msgspec.to_builtins(whole))
        write_manifest(bundle.path)
    return whole


def stored_tasks(bundle: Bundle) -> dict[str, TaskQuality]:
    """By task; empty where nothing usable is stored."""
    try:
        found = read_quality(bundle)
    except BadBundleError:
        return {}
    return {} if found is None else dict(found.tasks)


def _joined(before: TaskQuality | None, found: TaskQuality) -> TaskQuality:
    if before is None or before.inputs != found.inputs:
        return found
    rows = {(x.codec, x.codebook, x.stages, x.peers): x for x in before.measured}
    rows |= {(x.codec, x.codebook, x.stages, x.peers): x for x in found.measured}
    measured = sorted(rows.values(), key=lambda x: (x.codec, x.codebook, -x.bits, x.peers))
    return msgspec.structs.replace(
        found,
        measured=measured,
        definitions=before.definitions | found.definitions,
        recommended=recommend(measured, found.limit),
    )


# --- checks ---------------------------------------------------------------------------------------


def _check(quality: Quality) -> None:
    """ValueError where something is out of range."""
    _require(_is_id(quality.model), "model")
    _require(len(quality.tasks) <= len(TASKS), "tasks")
    for name, task in quality.tasks.items():
        _require(name in TASKS, "tasks")
        _check_task(task)


TASKS: Final = ("generate", "classify", "embed")


def _check_task(task: TaskQuality) -> None:
    _require(_is_line(task.data, limits.NAME_CHARS), "data")
    _require(_all(_is_count, (task.sequences, task.tokens)), "sequences")
    _require(_all(_is_word, (task.class_token, task.shards)), "class_token")
    _require(task.measure in LIMITS, "measure")
    _require(math.isfinite(task.limit) and 0 <= task.limit <= _LARGEST, "limit")
    _check_metrics(task.baseline)
    _require(len(task.definitions) <= _METRICS, "definitions")
    for name, text in task.definitions.items():
        _require(_is_word(name) and _is_line(text, limits.REASON_CHARS), "definitions")
    _require(len(task.measured) <= limits.QUALITY_ROWS, "measured")
    for one in task.measured:
        _check_row(one)
        _require(loss_of(one.metrics)[0] == task.measure, "measure")
    best = task.recommended
    keys = {(one.codec, one.codebook, one.stages, one.bits, one.peers) for one in task.measured}
    if best is not None:
        known = (best.codec, best.codebook, best.stages, best.bits, best.peers) in keys
        _require(known and _is_metric(best.loss), "recommended")


def _check_row(one: Measured) -> None:
    _require(_is_word(one.codec), "codec")
    _require(one.codebook == "" or _is_id(one.codebook), "codebook")
    _require(-1 <= one.history <= limits.BLOCKS, "history")
    _require(1 <= one.stages <= limits.STAGES, "stages")
    _require(1 <= one.bits < 2**31, "bits")
    _require(1 <= one.peers <= limits.PEERS_PER_PLAN, "peers")
    _check_metrics(one.metrics)


def _check_metrics(metrics: Mapping[str, float]) -> None:
    fine = len(metrics) <= _METRICS and _all(_is_word, tuple(metrics))
    _require(fine and _all(_is_metric, tuple(metrics.values())), "metrics")


def _require(fine: bool, field: str) -> None:
    if not fine:
        raise ValueError(f"{field} is out of range")


def _all(check: Callable[[object], bool], values: Sequence[object]) -> bool:
    return all(map(check, values))


def _is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def _is_line(text: str, limit: int) -> bool:
    return 1 <= len(text) <= limit and text.isprintable()


def _is_word(text: object) -> bool:
    return isinstance(text, str) and _is_line(text, _WORD_CHARS)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < 2**63


def _is_metric(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value) and abs(value) <= _LARGEST
