"""Types of command-line options: what cannot be is said by argparse, before anything runs."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Final, TypeVar, get_args

Number = TypeVar("Number", int, float)
_KINDS: Final[dict[type, str]] = {int: "a whole number", float: "a number"}


def within(kind: type[Number], least: float, most: float = math.inf) -> Callable[[str], Number]:
    """A number from ``least`` to ``most``."""
    wanted = f"{_KINDS[kind]} "
    wanted += f"of {least:g} or more" if most == math.inf else f"from {least:g} to {most:g}"

    def parsed(text: str) -> Number:
        try:
            value = kind(text)
        except ValueError:
            value = kind(least - 1)
        if not least <= value <= most:  # also of NaN
            raise ArgumentTypeError(f"{wanted}, not {text!r}")
        return value

    return parsed


def above_zero(text: str) -> float:
    """A number that is more than zero; infinity is one."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise ArgumentTypeError(f"a number above 0, not {text!r}")
    return value


def as_annotated(annotated: Any) -> Callable[[str], float]:
    """A number with the bounds of one of the types of :mod:`tools.lab.scenario`."""
    _, meta = get_args(annotated)
    return within(float, meta.ge, meta.le)


def seeds(text: str) -> list[int]:
    """``1-20`` or ``3,5,9-11`` as numbers."""
    found: list[int] = []
    for piece in text.split(","):
        first, dash, last = piece.partition("-")
        try:
            some = range(int(first), int(last if dash else first) + 1)
        except ValueError:
            some = range(0)
        if not some:
            raise ArgumentTypeError(f"seeds as 1-20 or 3,5,9, not {text!r}")
        found += some
    return found


def name_part(text: str) -> str:
    """A part of a file's name."""
    if not text or "/" in text or "\0" in text:
        raise ArgumentTypeError(f"a part of a file's name, not {text!r}")
    return text


def folder(text: str) -> Path:
    """A folder, or one that can be made."""
    path = Path(text).absolute()
    nearest = next(one for one in (path, *path.parents) if one.exists())
    if not nearest.is_dir():
        raise ArgumentTypeError(f"{nearest} is no folder")
    _check_writable(nearest)
    return Path(text)


def existing_folder(text: str) -> Path:
    """A folder that is there."""
    if not Path(text).is_dir():
        raise ArgumentTypeError(f"no folder {text!r}")
    return Path(text)


def file(text: str) -> Path:
    """A file to write, in a folder that is there."""
    path = Path(text)
    if path.is_dir():
        raise ArgumentTypeError(f"{path} is a folder")
    if not path.absolute().parent.is_dir():
        raise ArgumentTypeError(f"there is no folder {path.parent}")
    _check_writable(path.absolute().parent)
    return path


def _check_writable(place: Path) -> None:
    """Permissions do not say it of every file system."""
    try:
        with TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise ArgumentTypeError(f"{place} cannot be written to ({error.strerror})") from None
