"""``doctor`` and ``diagnostics`` where files of the trust are damaged."""

from __future__ import annotations

import asyncio
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from astra_mesh.cli.app import app
from astra_mesh.client import checks
from astra_mesh.mesh.codes import new_code, read_secret
from astra_mesh.mesh.invitations import FILE_NAME, Invitations
from astra_mesh.mesh.trust import ROSTER_FILE, Trust


def test_what_is_open_to_pairing_is_looked_at(home: Path) -> None:
    assert checks._look_at_invitations() == [], "no trust yet"
    invitations = Invitations(Trust.open().folder)
    assert checks._look_at_invitations()[0].text == "nothing is open"
    invitations.open_window(read_secret(new_code()))
    assert checks._look_at_invitations()[0].text == "1 open: astra-mesh pair --list"
    (Trust.open().folder / FILE_NAME).write_text("garbage")
    (found,) = asyncio.run(checks._guarded(checks._pairing, lambda _: None))
    assert (found.name, found.level) == ("pairing", checks.Level.BAD)
    assert "astra-mesh pair --close" in found.text


@pytest.mark.parametrize("damaged", [False, True])
def test_diagnostics_need_no_trust(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    """They are for when something does not work."""

    async def examine(tell: object, state: Path | None = None) -> list[checks.Finding]:
        return [checks.Finding("keys", checks.Level.BAD, "as it is")]

    monkeypatch.setattr(checks, "examine", examine)
    path, roster = tmp_path / "x.zip", Trust.open().folder / ROSTER_FILE
    if damaged:
        roster.write_bytes(b"zz")
    result = CliRunner().invoke(app, ["diagnostics", str(path)])
    assert result.exit_code == 0, result.stderr
    with zipfile.ZipFile(path) as archive:
        assert b"as it is" in archive.read("doctor.json")
    again = CliRunner().invoke(app, ["diagnostics", str(path)])
    assert again.exit_code == 2
    assert "name another file" in " ".join(again.stderr.split())
