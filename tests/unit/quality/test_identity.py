"""Data are told from others by names, sizes and contents."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from astra_mesh.errors import CalibrationError
from astra_mesh.quality import identity
from astra_mesh.quality.identity import data_fingerprint
from tests.unit.quality.making import write


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write(tmp_path / "texts", {f"{i}.txt": f"text {i} " * 9 for i in range(6)})


def test_a_copy_elsewhere_is_the_same(texts: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(texts, tmp_path / "elsewhere" / "texts")
    assert data_fingerprint(copy) == data_fingerprint(texts)
    (copy / "training.csv").write_text("1,2")  # of a run that works in the same folder
    assert data_fingerprint(copy) == data_fingerprint(texts)


def test_names_sizes_and_contents_count(texts: Path) -> None:
    seen = {data_fingerprint(texts)}
    (texts / "0.txt").write_text("other 0" * 9)
    seen.add(data_fingerprint(texts))
    (texts / "0.txt").write_text("other 1" * 9)
    seen.add(data_fingerprint(texts))
    (texts / "0.txt").rename(texts / "9.txt")
    seen.add(data_fingerprint(texts))
    (texts / "1.txt").unlink()
    seen.add(data_fingerprint(texts))
    assert len(seen) == 5


def test_of_large_data_pieces_are_read(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "LOOKED_BYTES", 60)
    monkeypatch.setattr(identity, "LOOKED_FILES", 3)
    monkeypatch.setattr(identity, "PIECE_BYTES", 10)
    before = data_fingerprint(texts)
    whole = (texts / "2.txt").read_text()
    for changed in ("X" + whole[1:], whole[:-1] + "X", whole + "X"):
        (texts / "2.txt").write_text(changed)
        assert data_fingerprint(texts) != before
    (texts / "2.txt").write_text(whole[:12] + "X" + whole[13:])  # between the first and last piece
    assert data_fingerprint(texts) == before
    (texts / "2.txt").write_text(whole)
    (texts / "3.txt").write_text("X" * len((texts / "3.txt").read_text()))  # is not looked at
    assert data_fingerprint(texts) == before


def test_absent_data_are_named(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="there is no file or folder"):
        data_fingerprint(tmp_path / "absent")
