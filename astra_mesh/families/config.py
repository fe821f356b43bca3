"""Reading a checkpoint's config with errors that name what is wrong; needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from astra_mesh.errors import BadBundleError, UnsupportedModelError
from astra_mesh.limits import BLOCKS

T = TypeVar("T", int, float, bool, str)

SIZE_LIMIT = 1 << 24  # no dimension of any supported model comes near it


class Config:
    """A ``config.json`` with typed access."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def size(self, *names: str, default: int | None = None) -> int:
        """A positive integer under the first of ``names`` that is set."""
        value = self._first(names, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= SIZE_LIMIT:
            raise BadBundleError(
                f"config.json: {names[0]} must be a positive whole number of at most "
                f"{SIZE_LIMIT}, it is {value!r}"
            )
        return value

    def blocks(self, *names: str) -> int:
        """The number of blocks, within :data:`astra_mesh.limits.BLOCKS`."""
        count = self._first(names, None)
        if isinstance(count, int) and count > BLOCKS:
            raise UnsupportedModelError(
                f"config.json: {count} blocks; at most {BLOCKS} are allowed"
            )
        return self.size(*names)

    def number(self, *names: str, default: float | None = None) -> float:
        """A finite number."""
        value = self._first(names, default)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise BadBundleError(f"config.json: {names[0]} must be a number, it is {value!r}")
        return float(value)

    def positive(self, *names: str, default: float | None = None) -> float:
        """A finite number above zero."""
        value = self.number(*names, default=default)
        if value <= 0:
            raise BadBundleError(f"config.json: {names[0]} must be above zero, it is {value}")
        return value

    def head_dim(self, hidden: int, heads: int) -> int:
        """Width of one head where heads share the hidden size; BadBundleError if they cannot."""
        if hidden % heads:
            raise BadBundleError(f"config.json: {heads} heads cannot share {hidden} dimensions")
        return hidden // heads

    def get(self, name: str, default: T) -> T:
        """An optional value of the default's type; null counts as absent."""
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, type(default)):
            raise BadBundleError(
                f"config.json: {name} must be {type(default).__name__}, it is {value!r}"
            )
        return value

    def _first(self, names: Sequence[str], default: Any) -> Any:
        for name in names:
            if self.values.get(name) is not None:
                return self.values[name]
        if default is None:
            raise BadBundleError(f"config.json lacks {' / '.join(names)}")
        return default

    def reject(self, name: str, *allowed: Any) -> None:
        """UnsupportedModelError unless ``name`` is absent, null or one of ``allowed``."""
        value = self.values.get(name)
        if value is not None and value not in allowed:
            raise UnsupportedModelError(f"config.json: {name}={value!r} is not supported")
