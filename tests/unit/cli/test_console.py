"""What commands write, and where."""

from __future__ import annotations

import io

from rich.progress import Progress

from astra_mesh.cli.console import _Errors


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
