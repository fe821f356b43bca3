"""The wanted loss goes from the command line to the client."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from astra_mesh import client
from astra_mesh.cli.app import app
from tests.unit.cli.stub import StubMesh


@pytest.fixture
def mesh(monkeypatch: pytest.MonkeyPatch) -> StubMesh:
    stub = StubMesh()
    monkeypatch.setattr(client, "connect", stub.connect)
    return stub


@pytest.mark.parametrize(
    "arguments",
    [("run", "toy", "Hello"), ("classify", "toy", "x", "--text"), ("embed", "toy", "x")],
)
def test_it_is_passed_on(mesh: StubMesh, arguments: tuple[str, ...]) -> None:
    assert CliRunner().invoke(app, [*arguments, "--loss", "0.01"]).exit_code == 0
    assert mesh.asked["max_loss"] == 0.01
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert mesh.asked["max_loss"] is None


@pytest.mark.parametrize("loss", ["-0.1", "1.5", "much"])
def test_it_is_a_share(mesh: StubMesh, loss: str, tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["run", "toy", "Hello", "--loss", loss]).exit_code == 2
