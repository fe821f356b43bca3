"""What commands write, and where."""

from __future__ import annotations

import asyncio
import gc
import io
import logging
import ssl

import pytest
import typer
from rich.progress import Progress

from astra_mesh.cli.console import _Errors, reporting, run_async
from astra_mesh.errors import PeerLostError


def test_what_moves_is_shown_on_terminals_only() -> None:
    for terminal in (False, True):
        written = io.StringIO()
        console = _Errors(file=written, force_terminal=terminal)
        with console.status("starting"):
            pass
        with Progress(console=console.moving, transient=True) as bar:
            bar.add_task("loading")
            bar.stop()
        assert bool(written.getvalue()) == terminal


def test_errors_of_tasks_beside_each_other_are_told_as_one(
    capfd: pytest.CaptureFixture[str],
) -> None:
    inner = ExceptionGroup("tasks", [PeerLostError("attic went away")])
    with pytest.raises(typer.Exit) as ended, reporting(as_json=False):
        raise ExceptionGroup("tasks", [inner])
    assert ended.value.exit_code == 1
    assert "attic went away" in capfd.readouterr().err
    with pytest.raises(RuntimeError, match="a bug"), reporting(as_json=False):
        raise ExceptionGroup("tasks", [RuntimeError("a bug")])


def test_a_dial_that_was_given_up_as_it_failed_is_no_line_of_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Other errors that nobody asked for are."""
    pytest.importorskip("uvloop")

    async def forget(error: Exception) -> None:
        asyncio.get_running_loop().create_future().set_exception(error)
        gc.collect()

    run_async(forget(ssl.SSLCertVerificationError(1, "certificate verify failed")))
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []
    run_async(forget(RuntimeError("a bug")))
    (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert "never retrieved" in record.getMessage()
