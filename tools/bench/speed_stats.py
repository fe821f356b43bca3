"""From the rows of a speed benchmark to medians, quartiles and ratios; plain arithmetic."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

Row = Mapping[str, Any]  # as tools.bench.speed writes it


class Key(NamedTuple):
    """A variant in one cell of the grid."""

    model: str
    tokens: int
    mbps: float
    members: int
    variant: str


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of repeated measurements."""

    median: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Predicted:
    """The cost model beside the clock, in one cell."""

    key: Key
    predicted_s: float  # median
    measured_s: float  # median

    @property
    def error(self) -> float:
        """Relative: 0.2 is predicted a fifth too long."""
        return self.predicted_s / self.measured_s - 1.0


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value; quartiles include the ends, so that three rounds have them."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0], 1)
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(middle, low, high, len(values))


def key_of(row: Row) -> Key:
    """Which cell and variant a row belongs to."""
    return Key(row["model"], row["tokens"], row["mbps"], row["members"], row["variant"])


def grouped(rows: Iterable[Row]) -> dict[Key, list[Row]]:
    """The rounds of each variant of each cell."""
    found: dict[Key, list[Row]] = defaultdict(list)
    for row in rows:
        found[key_of(row)].append(row)
    return dict(found)


def latencies(rows: Iterable[Row]) -> dict[Key, Spread]:
    """Seconds until the answer."""
    return {key: spread([row["seconds"] for row in some]) for key, some in grouped(rows).items()}


def speedups(rows: Iterable[Row], base: str = "single") -> dict[Key, Spread]:
    """How many times faster than ``base`` each variant is: ratios within a round of the same
    processes, then their median, so that what slows a whole round down cancels out."""
    rounds: dict[tuple[Any, ...], dict[str, float]] = defaultdict(dict)
    for row in rows:
        key = key_of(row)
        rounds[*key[:-1], row.get("shift"), row["round"]][key.variant] = row["seconds"]
    ratios: dict[Key, list[float]] = defaultdict(list)
    for (model, tokens, mbps, members, *_), times in rounds.items():
        for variant, seconds in times.items() if base in times else ():
            key = Key(model, tokens, mbps, members, variant)
            ratios[key].append(times[base] / seconds)
    return {key: spread(some) for key, some in ratios.items()}


def predictions(rows: Iterable[Row]) -> list[Predicted]:
    """Of the variants that have one, cell by cell."""
    found = []
    for key, some in sorted(grouped(rows).items()):
        told = [row["predicted_s"] for row in some if row.get("predicted_s")]
        if told:
            measured = [row["seconds"] for row in some]
            found.append(Predicted(key, statistics.median(told), statistics.median(measured)))
    return found


def foreseen(rows: Iterable[Row]) -> list[Predicted]:
    """What answers of several devices said that one device would take, beside what it took."""
    found, every = [], grouped(rows)
    for key, some in sorted(every.items()):
        told = [row["solo_predicted_s"] for row in some if row.get("solo_predicted_s")]
        alone = every.get(key._replace(variant="single"), [])
        if told and alone:
            measured = statistics.median(row["seconds"] for row in alone)
            found.append(Predicted(key, statistics.median(told), measured))
    return found


def planning(rows: Iterable[Row]) -> dict[Key, float]:
    """Seconds of a request for one token or class beyond its answer, by cell: the client's process
    and link, planning, the others' reports. Medians; nothing for rows that do not tell."""
    return {
        key: statistics.median(row["asked_s"] - row["seconds"] for row in told)
        for key, some in grouped(rows).items()
        if (told := [row for row in some if row.get("asked_s")])
    }


def within(found: Sequence[Predicted], share: float = 0.2) -> float:
    """The part of the predictions whose relative error is at most ``share``; 0 of none."""
    return sum(abs(one.error) <= share for one in found) / max(len(found), 1)


PARTS = ("compute_s", "encode_s", "decode_s", "wait_s")


def shares(rows: Sequence[Row]) -> dict[str, float]:
    """Median over rounds of what devices spent, their mean, as shares of the latency.

    ``other`` is the rest: hand-over between threads, messages, and the time before a device begins
    and after it is done, which those to the left are sooner where the model is causal.
    """
    found = {part: statistics.median(_share(row, part) for row in rows) for part in PARTS}
    return found | {"other": max(0.0, 1.0 - sum(found.values()))}


def _share(row: Row, part: str) -> float:
    return statistics.fmean(float(one[part]) for one in row["peers"]) / float(row["seconds"])


def sent_bytes(rows: Sequence[Row]) -> float:
    """Median over rounds of the bytes that all devices together sent for one answer."""
    return statistics.median(float(sum(one["sent_bytes"] for one in row["peers"])) for row in rows)
