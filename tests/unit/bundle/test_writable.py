"""What cannot be written is named, and trying leaves nothing behind."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from astra_mesh.bundle.writable import check_file, check_folder, check_room, folder_for, only_run
from astra_mesh.errors import InputError, ModelError
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


@pytest.mark.parametrize("check", [check_file, check_folder])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_no_mistake_of_the_command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    check: Callable[[Path], None],
    number: int,
) -> None:
    def full(**options: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(ModelError, match=rf"^no space left to write {tmp_path}/x: make room"):
        check(Path("x"))
    assert everything(tmp_path) == set()


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
    with pytest.raises(ModelError, match=r"for /.*other: about 11 MiB are needed, 10 MiB are free"):
        check_room({one: free // 2, other: free // 2 + 1})


# --- one run at a time ----------------------------------------------------------------------------

HOLDER = """
import sys
from pathlib import Path
from astra_mesh.bundle.writable import only_run

with only_run(Path(sys.argv[1]), Path("x")):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(lock: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process has the lock meanwhile."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", HOLDER, str(lock)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        yield other


def test_another_process_is_named_until_it_ends(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with held(lock) as other:
        text = rf"another run is using new\.work \(process {other.pid}\): wait for it, or stop it"
        with pytest.raises(ModelError, match=text), only_run(lock, Path("new.work")):
            pass
        assert lock.exists()  # still the other's
    assert everything(tmp_path) == set()
    with only_run(lock, tmp_path):
        assert lock.exists()
    assert everything(tmp_path) == set()


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with held(lock) as other:
        other.kill()
        other.wait()
        assert lock.exists()
        with only_run(lock, tmp_path), pytest.raises(ModelError), only_run(lock, tmp_path):
            pass
    assert everything(tmp_path) == set()


def test_a_lock_may_go_with_its_folder(tmp_path: Path) -> None:
    """And what another made in its place stays."""
    folder = tmp_path / "work"
    folder.mkdir()
    with only_run(folder / ".lock", folder):
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / ".lock").write_text("of another")
    assert (folder / ".lock").read_text() == "of another"


def test_a_lock_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    path = tmp_path / "absent" / ".lock"
    with pytest.raises(ModelError, match=r"absent/\.lock cannot be written"), only_run(path, path):
        pass
