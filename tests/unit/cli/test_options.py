"""Options that do not go together."""

from __future__ import annotations

from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from astra_mesh.cli.app import app
from astra_mesh.cli.options import check_memory


def test_loading_ahead_does_not_go_with_little_memory() -> None:
    result = CliRunner().invoke(app, ["peer", "--low-memory", "--preload"])
    assert result.exit_code == 2
    assert "--low-memory does not go with --preload:" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    "argv", [["--low-memory"], ["--preload"], ["--low-memory", "--no-preload"]]
)
def test_what_does(argv: list[str]) -> None:
    command: Any = getattr(typer.main.get_command(app), "commands")["peer"]  # noqa: B009
    check_memory(command.make_context("peer", argv))
