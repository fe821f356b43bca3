"""What commands print, where, and how they end."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import ssl
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar

import typer
from rich.console import Console
from rich.status import Status
from rich.text import Text

from astra_mesh.errors import (
    AstraMeshError,
    CalibrationError,
    InputError,
    UnknownModelError,
    UnsupportedModelError,
)

log = logging.getLogger(__name__)

# How commands end, beside 0. README.md tells people the same.
FAILED_STATUS: Final = 1  # what was asked is right, but it failed; or the doctor found a fault
USAGE_STATUS: Final = 2  # what was typed cannot be used: options, names, files, models, texts, data
INTERRUPTED_STATUS: Final = 130
_USAGE: Final = (InputError, UnknownModelError, UnsupportedModelError, CalibrationError)


class _Output(Console):
    """Standard output. Where nobody reads it any more that is an error, as of plain writes."""

    def on_broken_pipe(self) -> None:
        """Rich would end the program."""
        raise BrokenPipeError


out = _Output(highlight=False, soft_wrap=False)


class _Errors(Console):
    """Standard error. What moves is shown on a terminal only: elsewhere rich writes empty lines."""

    @property
    def moving(self) -> Console:
        """For spinners and bars."""
        return self if self.is_terminal else Console(quiet=True)

    def status(self, *args: Any, **options: Any) -> Status:
        """As that of :class:`rich.console.Console`."""
        if self.is_terminal:
            return super().status(*args, **options)
        return self.moving.status(*args, **options)


err = _Errors(stderr=True, highlight=False)

T = TypeVar("T")


@contextmanager
def reporting(as_json: bool) -> Iterator[None]:
    """Around the body of a command: errors become one line and an exit status."""
    try:
        try:
            yield
        except BaseExceptionGroup as group:  # of tasks that were beside each other
            raise _first_of(group) from group
    except AstraMeshError as error:
        show_error(error, as_json)
        status = USAGE_STATUS if isinstance(error, _USAGE) else FAILED_STATUS
        raise typer.Exit(status) from None
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise typer.Exit(INTERRUPTED_STATUS) from None
    except BrokenPipeError:  # whoever read the output has enough
        drop_output()
        raise typer.Exit(FAILED_STATUS) from None


def drop_output() -> None:
    """Nobody reads standard output any more: what is written yet, also at the exit, is lost."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _first_of(first) if isinstance(first, BaseExceptionGroup) else first


def show_error(error: AstraMeshError, as_json: bool) -> None:
    """One red line on standard error; with ``--json`` also a document on standard output."""
    if as_json:
        print_json({"error": {"code": error.code, "message": error.message}})
    line = Text("error: ", style="bold red")
    err.print(line.append(clean(error.message), style="red"), soft_wrap=True)


def hint(text: str) -> None:
    """A dim line on standard error."""
    err.print(Text(text, style="dim"), soft_wrap=True)


def print_qr(text: str) -> None:
    """A code that phones scan, on standard output: half as many lines as it has rows."""
    import segno

    drawing = io.StringIO()
    segno.make(text, error="l", micro=False).terminal(drawing, compact=True)
    out.file.write(drawing.getvalue())


def print_json(document: object) -> None:
    """One line of JSON on standard output, at once."""
    sys.stdout.write(json.dumps(to_plain(document), ensure_ascii=False) + "\n")
    sys.stdout.flush()


def to_plain(document: object) -> Any:
    """Messages, enums and dataclasses as plain values; bytes in base 64."""
    import msgspec

    return msgspec.to_builtins(document, str_keys=True)


def write(text: str) -> None:
    """Text of a model to standard output, at once."""
    sys.stdout.write(clean(text))
    sys.stdout.flush()


def clean(text: str) -> str:
    """Text that cannot steer a terminal: control characters become spaces, but for line ends."""
    return "".join(c if c.isprintable() or c in "\n\t" else " " for c in text)


def run_async(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine, on uvloop where it is installed. Ctrl-C cancels it first."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.get_loop().set_exception_handler(_without_given_up_dials)
        return runner.run(main)


def _without_given_up_dials(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What nobody waits for any more is no news: uvloop has one future for a connection and another
    for its TLS. A dial that is given up between the two never asks for the second one's error.
    """
    future, error = context.get("future"), context.get("exception")
    if isinstance(error, ssl.SSLError) and not isinstance(future, asyncio.Task | None):
        log.debug("a dial that was given up would have failed: %s", error)
        return
    loop.default_exception_handler(context)
