"""One identity for each running peer of a user."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from astra_mesh.errors import IdentityError
from astra_mesh.peer import slots
from astra_mesh.peer.slots import claim


def test_the_first_peer_has_the_folder_and_the_next_ones_have_their_own(tmp_path: Path) -> None:
    base = tmp_path / "state"
    first, second, third = claim(base), claim(base), claim(base)
    assert [one.folder for one in (first, second, third)] == [
        base,
        base / "peer-2",
        base / "peer-3",
    ]
    assert stat.S_IMODE((base / "peer-2").stat().st_mode) == 0o700
    second.release()
    second.release()
    again = claim(base)
    assert again.folder == base / "peer-2"
    for one in (first, third, again):
        one.release()


def test_there_is_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "SLOTS", 1)
    only = claim(tmp_path)
    with pytest.raises(IdentityError, match="stop one"):
        claim(tmp_path)
    only.release()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(IdentityError, match="--state-dir"):
        claim(tmp_path / "file" / "state")
