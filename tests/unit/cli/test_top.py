"""``astra-mesh top`` with a stub in place of the client."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from astra_mesh import client
from astra_mesh.cli import top
from astra_mesh.cli.app import app
from tests.unit.cli.stub import StubMesh


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal of 120 columns gets."""
    stream = io.StringIO()
    monkeypatch.setattr(top, "out", Console(file=stream, force_terminal=True, width=120))
    return stream


def test_the_first_frame_is_there_before_anything_is_looked_for(
    screen: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    stub = StubMesh()

    def connect(address: str | None = None, *, peers: Sequence[str] = ()) -> Any:
        seen.append(screen.getvalue())
        return stub.connect(address, peers=peers)

    monkeypatch.setattr(client, "connect", connect)
    result = CliRunner().invoke(app, ["top", "-n", "2", "--interval", "0.2"])
    assert result.exit_code == 0, result.output
    assert "looking for peers" in seen[0]
    last = screen.getvalue()[len(seen[0]) :]
    assert "looking for peers" not in last
    assert "here (asked)" in last
    assert "request started" in last
    assert stub.closed


def test_as_json_nothing_but_documents_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "connect", StubMesh().connect)
    result = CliRunner().invoke(app, ["top", "--json", "-n", "1"])
    assert result.exit_code == 0
    assert [one["name"] for one in json.loads(result.stdout.splitlines()[0])["peers"]] == [
        "here",
        "there",
    ]
    assert result.stderr == ""
