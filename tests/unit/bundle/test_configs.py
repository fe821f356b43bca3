"""Files: read with a cap, written whole or not at all, inside their folder."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from astra_mesh.bundle.configs import load_json, member, read_file, replacing, save_json
from astra_mesh.errors import BadBundleError, ModelError

BAD_JSON = {
    "empty": (b"", "not valid JSON"),
    "cut short": (b'{"a": 1', "not valid JSON"),
    "array": (b"[1]", "list where an object"),
    "number": (b"3", "int where an object"),
    "not UTF-8": (b'{"a": "\xff"}', "not UTF-8"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
    "deep": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nests too deep"),
    "twice": (b'{"a": 1, "a": 2}', "has a key twice"),
    "twice inside": (b'{"a": {"b": 1, "b": 2}}', "has a key twice"),
    "endless number": (b'{"a": ' + b"9" * 10_000 + b"}", "integer"),
}


@pytest.mark.parametrize(("data", "problem"), BAD_JSON.values(), ids=BAD_JSON.keys())
def test_bad_json_is_named(tmp_path: Path, data: bytes, problem: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(data)
    with pytest.raises(BadBundleError, match=problem) as caught:
        load_json(path)
    assert caught.value.message.startswith(f"{tmp_path.name}/config.json ")
    assert str(tmp_path.parent) not in caught.value.message


def test_a_file_at_the_cap_is_read_and_one_over_it_is_not(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert read_file(path, 5) == b"12345"
    with pytest.raises(BadBundleError, match="x has 5 bytes, more than the 4 allowed"):
        read_file(path, 4)


def test_a_missing_file_a_folder_and_a_pipe_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    (tmp_path / "folder").mkdir()
    for name, problem in (("none", "missing"), ("folder", "regular"), ("pipe", "regular")):
        with pytest.raises(BadBundleError, match=problem):
            read_file(tmp_path / name, 100)


def test_saved_json_comes_back(tmp_path: Path) -> None:
    save_json(tmp_path / "a.json", {"b": 1, "a": "\u00e9"})
    assert load_json(tmp_path / "a.json") == {"b": 1, "a": "\u00e9"}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_replacing_keeps_the_old_file_when_the_writer_fails(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def fill_the_disk() -> None:
        with replacing(path) as part:
            part.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ModelError, match=rf"no space left to write {path}: make room"):
        fill_the_disk()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_replacing_lets_other_errors_through_and_tidies_up(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "a"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_replacing_in_a_missing_folder_is_a_named_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot write"), replacing(tmp_path / "none" / "a"):
        pass


def test_a_replaced_file_keeps_its_permissions_and_a_new_one_has_the_usual(tmp_path: Path) -> None:
    old, new, usual = (tmp_path / name for name in ("old", "new", "usual"))
    old.write_text("")
    old.chmod(0o640)
    usual.write_text("")
    for path in (old, new):
        with replacing(path) as part:
            part.unlink()  # the writer may put another file there, as safetensors does
            part.write_text("x")
            part.chmod(0o600)
    assert stat.S_IMODE(old.stat().st_mode) == 0o640
    assert stat.S_IMODE(new.stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)


BAD_NAMES = [
    "",
    ".",
    "..",
    " ",
    "../x",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "C:x",
    "a\0b",
    "a\nb",
    "\ud800",
    "x" * 256,
    "\u00e9" * 128,
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_a_name_that_is_no_plain_file_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadBundleError, match="is not a plain file name"):
        member(tmp_path, name)


def test_links_may_stay_in_the_folder_and_not_leave_it(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (tmp_path / "secret").write_text("s")
    (folder / "real").write_text("r")
    (folder / "inside").symlink_to("real")
    (folder / "outside").symlink_to("../secret")
    (folder / "loop").symlink_to("loop")
    assert member(folder, "inside").read_text() == "r"
    with pytest.raises(BadBundleError, match="leads out of the bundle"):
        member(folder, "outside")
    with pytest.raises(BadBundleError, match="leads out"):
        member(folder, "loop")


def test_a_folder_reached_by_a_link_is_fine(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x").write_text("r")
    (tmp_path / "link").symlink_to("real")
    assert member(tmp_path / "link", "x").read_text() == "r"
