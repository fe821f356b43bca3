"""Hashes are right, remembered while a file is unchanged, and never trusted after a change."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from astra_mesh.bundle import hashing
from astra_mesh.bundle.hashing import cache_path, file_sha256, forget
from astra_mesh.errors import BadBundleError

LARGE = b"x" * (1024 * 1024)


@pytest.fixture(autouse=True)
def _empty_memory() -> None:
    forget()


def settle(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the clock run on, so that the file counts as settled."""
    later = time.time_ns() + 10**10
    monkeypatch.setattr(time, "time_ns", lambda: later)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are really read from now on."""
    read: list[Path] = []
    digest = hashing._digest

    def spy(path: Path) -> str:
        read.append(path)
        return digest(path)

    monkeypatch.setattr(hashing, "_digest", spy)
    return read


def test_the_hash_is_sha256_and_is_computed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    read = counted(monkeypatch)
    assert file_sha256(path) == hashlib.sha256(b"abc").hexdigest() == file_sha256(path)
    assert read == [path]


def test_a_large_file_is_remembered_by_the_next_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(LARGE)
    settle(path, monkeypatch)
    first = file_sha256(path)
    forget()
    read = counted(monkeypatch)
    assert file_sha256(path) == first
    assert read == []


def test_a_file_written_just_now_or_small_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(LARGE)
    file_sha256(path)
    settle(path, monkeypatch)
    small = tmp_path / "b"
    small.write_bytes(b"b")
    file_sha256(small)
    assert not cache_path().exists()


def test_a_changed_file_of_equal_size_and_time_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    before = path.stat()
    file_sha256(path)
    other = tmp_path / "b"
    other.write_bytes(b"abd")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert file_sha256(path) == hashlib.sha256(b"abd").hexdigest()


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b'{"a": 1}', b"\xff", b"[" * 100_000, b" " * 2_000_000]
)
def test_a_damaged_cache_file_is_ignored_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    cache_path().parent.mkdir(parents=True)
    cache_path().write_bytes(content)
    path = tmp_path / "a"
    path.write_bytes(LARGE)
    settle(path, monkeypatch)
    digest = file_sha256(path)
    assert digest == hashlib.sha256(LARGE).hexdigest()
    assert list(json.loads(cache_path().read_text()).values()) == [digest]


def test_a_cache_that_cannot_be_written_costs_nothing_else(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "cache").write_text("a file where the folder should be")
    path = tmp_path / "a"
    path.write_bytes(LARGE)
    settle(path, monkeypatch)
    assert file_sha256(path) == hashlib.sha256(LARGE).hexdigest()


def test_the_cache_file_stays_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "_ENTRIES", 3)
    for i in range(5):
        path = tmp_path / str(i)
        path.write_bytes(LARGE + bytes([i]))
        settle(path, monkeypatch)
        file_sha256(path)
    kept = json.loads(cache_path().read_text())
    assert [Path(key.split("|")[0]).name for key in kept] == ["2", "3", "4"]


def test_a_missing_file_is_a_named_error(tmp_path: Path) -> None:
    with pytest.raises(BadBundleError, match="missing"):
        file_sha256(tmp_path / "none")
