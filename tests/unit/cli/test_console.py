"""What commands write, and where."""

from __future__ import annotations

import io

import pytest
import typer
from rich.progress import Progress

from astra_mesh.cli.console import _Errors, reporting
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
