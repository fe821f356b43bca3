"""One item of data."""

from __future__ import annotations

from dataclasses import dataclass

from astra_mesh.families import ModelInput


@dataclass(frozen=True)
class Sample:
    """A model input, with its class where the data say it."""

    input: ModelInput
    label: int | None = None
