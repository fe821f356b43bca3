"""Keys that others could read, as ``astra-mesh doctor`` finds them."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs
import pytest
from typer.testing import CliRunner

from astra_mesh.cli.app import app
from astra_mesh.cli.lan import kept_token
from astra_mesh.client import checks
from astra_mesh.mesh.identity import load_identity
from astra_mesh.mesh.trust import Trust
from astra_mesh.peer.local import LocalPeer, write_record
from astra_mesh.peer.slots import claim
from astra_mesh.wire.messages import PeerId

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


def test_folders_that_older_versions_left_open_are_closed_at_the_start(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = platformdirs.user_state_path("astra-mesh")
    Trust.open()
    claim(state).release()
    (state / "peer-2").mkdir()
    for folder in (state.parent, state, state / "trust", state / "peer-2"):
        folder.chmod(0o755)
    Trust.open()
    assert [mode(one) for one in (state, state / "trust")] == [0o700, 0o700]
    first, second = claim(state), claim(state)
    assert mode(second.folder) == 0o700
    second.release()
    first.release()
    assert mode(state.parent) == 0o755, "that is not its own"
    assert caplog.messages == []
    (state / "trust").chmod(0o775)
    Trust.open()
    assert mode(state / "trust") == 0o700
    assert "others could put files of their own into" in caplog.text


def test_a_folder_that_a_person_chose_is_told_of_and_left(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = home / "shared"
    chosen.mkdir()
    monkeypatch.setenv("ASTRA_MESH_TRUST", str(chosen))
    for given, level in ((0o755, checks.Level.NOTE), (0o777, checks.Level.BAD)):
        chosen.chmod(given)
        Trust.open()
        (found,) = checks._look_at_keys()
        assert (found.level, mode(chosen)) == (level, given)
        assert f"{chosen} has mode {given:04o}" in found.text
        assert f"chmod 700 {chosen}" in found.text
    chosen.chmod(0o700)
    assert [one.level for one in checks._look_at_keys()] == [checks.Level.FINE]


def test_files_in_a_chosen_state_folder_are_closed(home: Path) -> None:
    """Of a peer that runs there, and of one that the person names."""
    trust = Trust.open()
    running, named = home / "running", home / "named"
    for folder in (running, named):
        load_identity(folder, trust.device)
        kept_token(folder)
        (folder / "api-token").chmod(0o644)
        (folder / "identity.pem").chmod(0o640)
    record = LocalPeer(os.getpid(), 7475, PeerId("a" * 64), "board", state=str(running))
    path = write_record(record)
    (found,) = checks._look_at_keys(named)
    path.unlink()
    assert found.level is checks.Level.NOTE
    for folder in (running, named):
        assert (
            f"{folder / 'api-token'} had mode 0644, so that others could read the t" in found.text
        )
        assert f"{folder / 'identity.pem'} had mode 0640" in found.text
        assert mode(folder / "api-token") == mode(folder / "identity.pem") == 0o600
    assert [one.level for one in checks._look_at_keys(named)] == [checks.Level.FINE]


def test_the_command_takes_a_state_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path | None] = []

    async def examine(tell: object, state: Path | None = None) -> list[checks.Finding]:
        seen.append(state)
        return []

    monkeypatch.setattr(checks, "examine", examine)
    result = CliRunner().invoke(app, ["doctor", "--state-dir", str(home), "--json"])
    assert (result.exit_code, seen) == (0, [home])


def test_a_first_start_is_fine(home: Path) -> None:
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
