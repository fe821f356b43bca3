"""What a field of a request may hold, and what came instead, in words for people."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any, Final

import msgspec
from msgspec import inspect

_STEP: Final = re.compile(r"\.(?P<name>\w+)|\[(?P<index>\d+|\.\.\.)\]")
_SHOWN: Final = 40  # characters of what came
_NO_VALUE: Final = object()  # the place is not known exactly, or there is nothing


def sentence(kind: type, body: Any, where: str) -> str:
    """What should be at a place of a body, and what is there.

    Args:
        kind: the struct that the body should be.
        body: the JSON as it came.
        where: as msgspec names it: ``$.stop[0]``.
    """
    steps = [match["name"] or match["index"] for match in _STEP.finditer(where)]
    value = body
    wanted: inspect.Type | None = _info(kind)
    for step in steps:
        value, wanted = _value_at(value, step), _type_at(wanted, step)
    came = "" if value is _NO_VALUE else f", but {_shown(value)} came"
    what = "something else" if wanted is None else _described(wanted)
    return f"{_named(where)} must be {what}{came}"


def _named(where: str) -> str:
    name = where.removeprefix("$").removeprefix(".")
    if name.endswith("[...]"):
        return f"each value of {name.removesuffix('[...]')}"
    return name or "the body"


@cache
def _info(kind: type) -> inspect.Type:
    return inspect.type_info(kind)


def _value_at(value: Any, step: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(step, _NO_VALUE)
    if isinstance(value, list) and step.isdigit() and int(step) < len(value):
        return value[int(step)]
    return _NO_VALUE


def _type_at(kind: inspect.Type | None, step: str) -> inspect.Type | None:
    """Of a field, or of an item of a list or of an object whose keys are free."""
    for one in _alternatives(kind):
        if isinstance(one, inspect.StructType):
            found = {field.encode_name: field.type for field in one.fields}
            if step in found:
                return found[step]
        if isinstance(one, inspect.ListType) and step.isdigit():
            return one.item_type
        if isinstance(one, inspect.DictType) and step == "...":
            return one.value_type
    return None


def _alternatives(kind: inspect.Type | None) -> list[inspect.Type]:
    if isinstance(kind, inspect.UnionType):
        return [one for member in kind.types for one in _alternatives(member)]
    if isinstance(kind, inspect.Metadata):
        return _alternatives(kind.type)
    return [] if kind is None else [kind]


def _described(kind: inspect.Type) -> str:
    return " or ".join(dict.fromkeys(_one(member) for member in _alternatives(kind)))


def _one(kind: inspect.Type) -> str:
    match kind:
        case inspect.LiteralType():
            return "one of " + ", ".join(json.dumps(value) for value in kind.values)
        case inspect.IntType():
            return f"a whole number{_range(kind)}"
        case inspect.FloatType():
            return f"a number{_range(kind)}"
        case inspect.StrType():
            return f"a text{_length(kind, 'character')}"
        case inspect.ListType():
            return f"a list{_length(kind, 'item')}"
        case inspect.BoolType():
            return "true or false"
        case inspect.NoneType():
            return "null"
    return "an object"


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    """The least and the most that a number may be, if there are such."""
    whole = isinstance(kind, inspect.IntType)
    low, high = kind.ge, kind.le
    if whole and kind.lt is not None:
        high = kind.lt - 1
    if kind.gt is not None:
        return f" above {kind.gt:g}" + ("" if high is None else f" and up to {high:g}")
    low_text, high_text = (_number(one) for one in (low, high))
    if low is not None and high is not None:
        return f" from {low_text} to {high_text}"
    return f" of at least {low_text}" if low is not None else ""


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return str(int(value)) if value == int(value) else f"{value:g}"


def _length(kind: inspect.StrType | inspect.ListType, what: str) -> str:
    low, high = kind.min_length or 0, kind.max_length
    if high is None:
        return f" of at least {low} {what}{'' if low == 1 else 's'}" if low else ""
    return f" of {low} to {high} {what}s" if low else f" of up to {high} {what}s"


def _shown(value: Any) -> str:
    """A value as a person would name it; long ones by their kind and size."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    if isinstance(value, str):
        text = json.dumps(value)
        return text if value and len(text) <= _SHOWN else _sized(value)
    if isinstance(value, int) and abs(value) >= 2**64:  # Python may refuse to write it out
        return "a number of more than 19 digits"
    return json.dumps(value)


def _sized(text: str) -> str:
    return f"a text of {len(text)} characters" if text else "an empty text"


def as_it_came(data: bytes) -> Any:
    """The JSON in ``data`` as it came; without a value where msgspec cannot read it at all."""
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _NO_VALUE
