"""What is said of an option whose value it does not take: a sentence like those of all errors."""

from __future__ import annotations

import enum
from types import NoneType
from typing import Any, Final, get_args, get_type_hints

import typer
from typer.core import TyperGroup

from astra_mesh.cli.console import USAGE_STATUS, show_error
from astra_mesh.errors import InputError

_JSON: Final = "astra_mesh.json"  # in a context: whether --json was typed
_SHOWN: Final = 100  # characters of a value
_NUMBERS: Final = {int: "a whole number", float: "a number"}


class Commands(TyperGroup):
    """The commands of this program."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As its base."""
        ctx.meta[_JSON] = "--json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """As its base, with words of our own where an option does not take its value."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            text = sentence(error)
            if text is None:
                raise
            show_error(InputError(text), ctx.meta[_JSON])
            raise typer.Exit(USAGE_STATUS) from None


def sentence(error: Exception) -> str | None:
    """The option and what it takes; None where what typer says is no worse."""
    if type(error) is not typer.BadParameter or error.param is None or error.ctx is None:
        return None
    callback = error.ctx.command.callback
    hint = get_type_hints(callback, include_extras=True).get(error.param.name or "")
    kind, about = getattr(hint, "__origin__", None), getattr(hint, "__metadata__", (None,))[0]
    takes = _takes(kind, about)
    if takes is None:
        return None
    option = max(error.param.opts, key=len)
    value = _typed(error)
    return f"{option} takes {takes}" + (f", not {value[:_SHOWN]!a}" if value else "")


def _takes(kind: Any, about: Any) -> str | None:
    kinds = [one for one in get_args(kind) or (kind,) if one is not NoneType]
    kind = kinds[0] if len(kinds) == 1 else None
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        *others, last = (str(one.value) for one in kind)
        return f"{', '.join(others)} or {last}"
    return f"{_NUMBERS[kind]}{_range(about.min, about.max)}" if kind in _NUMBERS else None


def _range(least: float | None, most: float | None) -> str:
    if least is None and most is None:
        return ""
    if most is None:
        return f" of {least:g} or more"
    return f" of at most {most:g}" if least is None else f" from {least:g} to {most:g}"


def _typed(error: typer.BadParameter) -> str:
    """The value, where the error keeps it."""
    why = getattr(error.__cause__, "errors", None)
    found = why()[0].get("input") if callable(why) else None
    return found if isinstance(found, str) else ""
