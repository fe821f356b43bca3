"""Keys that others could read, as ``astra-mesh doctor`` finds them."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs
import pytest

from astra_mesh.client import checks
from astra_mesh.mesh.identity import load_identity
from astra_mesh.mesh.trust import Trust

pytestmark = pytest.mark.skipif(os.name != "posix", reason="has no modes")


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_open_keys_and_folders_are_told_and_closed(home: Path) -> None:
    trust = Trust.open()
    state = platformdirs.user_state_path("astra-mesh")
    for folder in (state, state / "peer-2"):
        load_identity(folder, trust.device)
    wrong = {
        trust.folder: (0o777, 0o700),
        trust.folder / "device.pem": (0o644, 0o600),
        state / "identity.pem": (0o640, 0o600),
        state / "peer-2" / "identity.pem": (0o604, 0o600),
    }
    for path, (given, _) in wrong.items():
        path.chmod(given)
    (found,) = checks._look_at_keys()
    assert (found.name, found.level) == ("keys", checks.Level.NOTE)
    for path, (given, wanted) in wrong.items():
        assert f"{path} had mode {given:04o}" in found.text
        assert mode(path) == wanted
    assert "pair anew" in found.text
    (again,) = checks._look_at_keys()
    assert again.level is checks.Level.FINE
    assert again.text.startswith("only this user can read")


def test_a_first_start_and_readable_folders_are_fine(home: Path) -> None:
    assert [one.level for one in checks._look_at_keys()] == [checks.Level.FINE]
    Trust.open().folder.chmod(0o755)
    assert [one.level for one in checks._look_at_keys()] == [checks.Level.FINE]


def test_what_cannot_be_closed_is_bad(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    folder = Trust.open().folder
    folder.chmod(0o777)
    monkeypatch.setattr(Path, "chmod", refuse)
    (found,) = checks._look_at_keys()
    assert found.level is checks.Level.BAD
    assert f"{folder} cannot be closed to other users (Operation not permitted)" in found.text
