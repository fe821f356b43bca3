"""``unpair`` by name and by id, where two devices have the same name."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from astra_mesh.cli.app import app
from astra_mesh.mesh.identity import DeviceKey
from astra_mesh.mesh.trust import Trust

ONE, TWO, OTHER = (DeviceKey.new() for _ in range(3))


@pytest.fixture(autouse=True)
def _trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASTRA_MESH_TRUST", str(tmp_path / "trust"))
    trust = Trust.open()
    for device, name in ((ONE, "board"), (TWO, "board"), (OTHER, "desk")):

        def decide(book, device=device, name=name) -> bool:  # type: ignore[no-untyped-def]
            book.let_in(device.certificate, name)
            return True

        trust.change(decide)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "100"})


def test_a_name_of_two_devices_lists_both_with_their_ids() -> None:
    result = call("unpair", "board")
    assert result.exit_code == 2
    assert "'board' fits 2 devices: " in result.stderr
    for device in (ONE, TWO):
        assert f"board ({device.id[:8]})" in result.stderr
    assert "desk" not in result.stderr
    assert call("pair", "--list").stdout.count("board") == 2


def test_an_id_or_a_name_of_one_device_shuts_that_out() -> None:
    result = call("unpair", ONE.id[:8])
    assert result.exit_code == 0
    assert f"Shut out board ({ONE.id[:8]})." in result.stdout
    assert TWO.id[:8] in call("pair", "--list").stdout
    assert f"Shut out board ({TWO.id[:8]})." in call("unpair", "board").stdout
    assert f"Shut out desk ({OTHER.id[:8]})." in call("unpair", "desk").stdout
