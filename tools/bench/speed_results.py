"""Reads what tools.bench.speed wrote."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from msgspec import Meta, Struct

from tools.bench.baselines.variants import DTYPES
from tools.bench.machine import BUSY
from tools.bench.shifts import VARIANTS
from tools.bench.sizes import PLAIN

# Rows that differ in one of these cannot be compared; with what files of before do not say.
COMPARED: Final[dict[str, Any]] = {
    "dtype": DTYPES[0],
    "cores": None,
    "threads": None,
    "delay_ms": 0.0,
    "codes": PLAIN,
}
# Of the machine that they were measured on.
MACHINE: Final = ("processor", "make", "instructions", "cores", "torch")


class ResultsError(Exception):
    """A results file that cannot be read; says which and why."""


class Document(NamedTuple):
    """What a file holds, as it was written."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    rows: list[dict[str, Any]]


Count = Annotated[int, Meta(ge=1)]
Positive = Annotated[float, Meta(gt=0)]


class _Part(Struct):
    compute_s: float
    encode_s: float
    decode_s: float
    wait_s: float
    sent_bytes: int


class _Row(Struct):
    """What figures and tables need of a row."""

    model: str
    tokens: Count
    mbps: Positive
    members: Count
    variant: str
    round: int
    seconds: Positive
    peers: Annotated[list[_Part], Meta(min_length=1)]
    predicted_s: float | None = None

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ValueError(f"no variant {self.variant!r}")


class _File(Struct):
    rows: list[_Row]
    settings: dict[str, Any] = {}
    machine: dict[str, Any] = {}


def read(path: Path) -> Document:
    """A results file; ResultsError where it is missing or damaged."""
    try:
        content = path.read_bytes()
        msgspec.json.decode(content, type=_File)
        found = json.loads(content)
    except OSError as error:
        raise ResultsError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # msgspec's and json's errors are ValueErrors
        raise ResultsError(f"{path} holds no results of tools.bench.speed: {error}") from error
    return Document(found.get("machine", {}), found.get("settings", {}), found["rows"])


def other_machine(path: Path, machine: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """Why rows of this machine do not go with those of a file; None: they do, for all it says."""
    for name in MACHINE:
        have = machine.get(name)
        if have is not None and have != here[name]:
            return f"{path} was measured with {name} {have}, and this machine has {here[name]}"
    return None


def going_on(machine: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of this machine, with the commits of a file's rows besides this one's, and the
    largest share of its cores that other programs had."""
    found = [*str(machine.get("commit", "")).split(", "), str(here.get("commit", ""))]
    commits = ", ".join(dict.fromkeys(filter(None, found)))
    others = max(machine.get("others", 0.0), here.get("others", 0.0))
    return {**here, **({"commit": commits} if commits else {}), "others": others}


def is_busy(machine: Mapping[str, Any]) -> bool:
    """Whether results are of a machine on which other programs ran, so that they say nothing."""
    return bool(machine.get("others", 0.0) > BUSY)


def difference(path: Path, settings: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """Why rows with the settings ``wanted`` do not go with those of a file; None: they do.

    Raises:
        ResultsError: the file does not say what its rows were measured with.
    """
    for name, before in COMPARED.items():
        have = settings.get(name, before)
        if have is None:
            raise ResultsError(f"{path} does not say its rows' {name}")
        if not _same(have, wanted[name]):
            option = f"--{name.replace('_', '-')}"
            return f"{path} is of {option} {have}, and these rows would be of {wanted[name]}"
    return None


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float | int) and isinstance(other, float | int):
        return math.isclose(one, other)  # shares of cores are computed
    return bool(one == other)
