"""Keys that others could read, as ``astra-mesh doctor`` finds them."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs
import pytest

from astra_mesh.cli.lan import kept_token
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
    token = kept_token(None)
    wrong = {
        trust.folder: (0o777, 0o700),
        trust.folder / "device.pem": (0o644, 0o600),
        state / "identity.pem": (0o640, 0o600),
        state / "peer-2" / "identity.pem": (0o604, 0o600),
        state / "api-token": (0o644, 0o600),
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
    assert kept_token(None) == token


def test_a_token_that_others_could_read_is_closed_as_it_is_read(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    token, path = kept_token(home), home / "api-token"
    path.chmod(0o644)
    assert kept_token(home) == token
    assert mode(path) == 0o600
    assert f"{path} could be read by other users" in caplog.text


def test_folders_are_made_for_this_user_only(home: Path) -> None:
    before = os.umask(0o022)
    try:
        Trust.open()
        kept_token(home / "of" / "a-peer")
    finally:
        os.umask(before)
    state = platformdirs.user_state_path("astra-mesh")
    for folder in (state, state / "trust", home / "of", home / "of" / "a-peer"):
        assert mode(folder) == 0o700, folder


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
