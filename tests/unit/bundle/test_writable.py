"""What cannot be written is named, and trying leaves nothing behind."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from astra_mesh.bundle.writable import check_file, check_folder, check_room, folder_for
from astra_mesh.errors import InputError
from tests.unit.quality.full_disk import files_of_at_most


def everything(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_a_file_that_can_be_written_is_not_made(tmp_path: Path) -> None:
    check_file(tmp_path / "new")
    (tmp_path / "old").write_text("x")
    check_file(tmp_path / "old")
    assert everything(tmp_path) == {tmp_path / "old"}
    assert (tmp_path / "old").read_text() == "x"


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent/x cannot be written: there is no folder"):
        check_file(tmp_path / "absent" / "x")
    with pytest.raises(InputError, match="it is a folder; name a file"):
        check_file(tmp_path)
    with pytest.raises(InputError, match="name too long"):
        check_file(tmp_path / ("n" * 300))
    with files_of_at_most(0), pytest.raises(InputError, match=r"x cannot be written: .* no such"):
        check_file(tmp_path / "x")
    assert everything(tmp_path) == set()


def test_a_folder_that_can_be_made_is_not_there_afterwards(tmp_path: Path) -> None:
    check_folder(tmp_path / "a" / "b")
    assert everything(tmp_path) == set()
    (tmp_path / "old").mkdir()
    check_folder(tmp_path / "old")
    assert everything(tmp_path) == {tmp_path / "old"}


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"file/new cannot be written: .*Not a directory"):
        check_folder(tmp_path / "file" / "new")
    with pytest.raises(InputError, match="name too long"):
        check_folder(tmp_path / "a" / ("n" * 300))
    with (
        files_of_at_most(0),
        pytest.raises(InputError, match="a/b cannot be written: it"),
    ):
        check_folder(tmp_path / "a" / "b")
    assert everything(tmp_path) == {tmp_path / "file"}


def test_only_empty_folders_go(tmp_path: Path) -> None:
    with folder_for(tmp_path / "a" / "b" / "c"):
        (tmp_path / "a" / "kept").write_text("x")
    assert everything(tmp_path) == {tmp_path / "a", tmp_path / "a" / "kept"}


def test_room_is_added_up_for_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 10 << 20
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=free))
    one, other = tmp_path / "one" / "x", tmp_path / "other"
    check_room({one: free})
    check_room({one: free // 2, other: free // 2})
    with pytest.raises(InputError, match=r"other has .* 11 MiB are needed, 10 MiB are free"):
        check_room({one: free // 2, other: free // 2 + 1})
