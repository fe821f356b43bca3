"""Times for tests: everything that waits is scaled by one number."""

from __future__ import annotations

import dataclasses
import os
from typing import Any, TypeVar

import msgspec

# A slow or busy machine sets this to 3, say; deadlines of tests grow, nothing else changes.
TIME_SCALE = float(os.environ.get("ASTRA_MESH_TIME_SCALE", "1"))

T = TypeVar("T")


def patient(seconds: float) -> float:
    """A deadline of a test: ``seconds`` on a usual machine."""
    return seconds * TIME_SCALE


def scaled(timings: T, factor: float) -> T:
    """A copy of a dataclass or msgspec struct with every number in a field ``*_s`` multiplied.

    >>> scaled(Timings(heartbeat_s=1.0, silence_s=4.0, retries=3), 0.1)
    Timings(heartbeat_s=0.1, silence_s=0.4, retries=3)
    """
    values: dict[str, Any] = {
        name: value * factor
        for name in _field_names(timings)
        if name.endswith("_s") and isinstance(value := getattr(timings, name), int | float)
    }
    if isinstance(timings, msgspec.Struct):
        return msgspec.structs.replace(timings, **values)
    return dataclasses.replace(timings, **values)  # type: ignore[type-var]


def _field_names(timings: object) -> list[str]:
    if isinstance(timings, msgspec.Struct):
        return list(timings.__struct_fields__)
    if dataclasses.is_dataclass(timings):
        return [field.name for field in dataclasses.fields(timings)]
    raise TypeError(f"neither a dataclass nor a msgspec struct: {type(timings).__name__}")
