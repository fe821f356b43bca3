"""jinja2 for programs of strangers: no attribute of Python's inside, bounded time and output."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from astra_mesh import limits
from astra_mesh.wire.codec import sanitise

_OUTPUT_CHARS: Final = limits.TEXT_BYTES  # what a prompt may have
_RANGE: Final = 10_000
_WIDTH: Final = 1_000  # of padded and repeated texts
_SHOWN: Final = 200  # characters of a fault


class TemplateFault(Exception):
    """A template cannot be read, refuses what it is given, or takes too long."""


class _Refused(Exception):
    """The template itself called ``raise_exception``."""


class _Generation(Extension):
    """``{% generation %}``: marks the model's own words for training; here only what is inside."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The nodes between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with operators that cannot make a huge value of two small ones."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(
        self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any
    ) -> Any:
        """Numbers of an ordinary size, or a short text repeated."""
        if operator == "*" and isinstance(left, str) and isinstance(right, int):
            fine = len(left) * right <= _WIDTH
        else:
            fine = all(isinstance(one, int | float) and abs(one) < 2**53 for one in (left, right))
            fine = fine and (operator != "**" or abs(right) <= 64)
        if not fine:
            raise _Refused(f"the operator {operator} takes ordinary numbers only")
        return super().call_binop(context, operator, left, right)

    def call(
        self, context: jinja2.runtime.Context, function: Any, /, *args: Any, **kwargs: Any
    ) -> Any:
        """Functions and methods, none of which gets a huge width (``ljust``, ``{:9999}``)."""
        _check_widths((*args, *kwargs.values()))
        method = getattr(function, "__self__", None)
        if isinstance(method, str) and getattr(function, "__name__", "").startswith("format"):
            _check_format(method)
        return super().call(context, function, *args, **kwargs)


class Template:
    """A compiled template."""

    def __init__(self, environment: _Environment, template: jinja2.Template) -> None:
        self._environment, self._template = environment, template

    def render(self, **given: Any) -> str:
        """The text. Blocks.

        Raises:
            TemplateFault: With a sentence.
        """
        end = time.monotonic() + limits.CHAT_TEMPLATE_S
        pieces, size = [], 0
        try:
            for piece in self._template.generate(range=_range_until(end), **given):
                size += len(piece)
                if size > _OUTPUT_CHARS:
                    raise _Refused(f"its text has more than {_OUTPUT_CHARS} characters")
                _check_time(end)
                pieces.append(piece)
        except (_Refused, jinja2.TemplateError) as error:
            raise TemplateFault(sanitise(str(error), _SHOWN)) from None
        except Exception as error:  # whatever a template does: None + 1, "%d" % "x", recursion
            raise TemplateFault(f"it fails ({type(error).__name__})") from None
        return "".join(pieces)


def compile_template(source: str) -> Template:
    """A template of its source. Blocks.

    Raises:
        TemplateFault: With a sentence.
    """
    if len(source) > limits.CHAT_TEMPLATE_BYTES:
        raise TemplateFault(f"it has more than {limits.CHAT_TEMPLATE_BYTES} characters")
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # the text goes to a model, not to a page
        extensions=[_Generation, "jinja2.ext.loopcontrols"],
    )
    environment.globals["raise_exception"] = _raise
    environment.filters["tojson"] = _to_json
    for name in ("center", "format", "indent"):
        environment.filters[name] = _bounded(environment.filters[name])
    try:
        return Template(environment, environment.from_string(source))
    except (jinja2.TemplateError, RecursionError, SyntaxError, ValueError) as error:
        raise TemplateFault(sanitise(f"it is no template ({error})", _SHOWN)) from None


def _check_time(end: float) -> None:
    if time.monotonic() > end:
        raise _Refused(f"it takes longer than {limits.CHAT_TEMPLATE_S:g} s")


def _range_until(end: float) -> Callable[..., range]:
    """``range`` for loops of ordinary length, which looks at the clock."""

    def bounded(*args: int) -> range:
        _check_time(end)
        found = range(*args)
        if len(found) > _RANGE:
            raise _Refused(f"a range has more than {_RANGE} numbers")
        return found

    return bounded


def _bounded(work: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that pads its first argument."""

    def bounded(first: Any, *args: Any, **kwargs: Any) -> Any:
        _check_widths((*args, *kwargs.values()))
        if work is jinja2.filters.do_format:
            _check_format(str(first))
        return work(first, *args, **kwargs)

    return bounded


def _check_widths(values: Iterable[Any]) -> None:
    if any(isinstance(one, int) and abs(one) > _RANGE for one in values):
        raise _Refused(f"a number given to a function is above {_RANGE}")


def _check_format(form: str) -> None:
    if re.search(r"\d{4}", form):
        raise _Refused("a format has a width of four digits")


def _raise(message: object = "") -> NoReturn:
    raise _Refused(str(message) or "it refuses them")


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    """As templates expect it: without the escapes for HTML that jinja2's own filter writes."""
    return json.dumps(value, ensure_ascii=False, indent=min(indent, 16) if indent else None)
