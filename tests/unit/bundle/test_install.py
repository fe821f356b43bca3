"""Room on the disk, before a model comes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from astra_mesh.bundle.install import check_room
from astra_mesh.errors import ModelError


def test_a_full_disk_names_what_is_free_and_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: real._replace(free=102_000_000))
    check_room(tmp_path, 30_000_000)
    with pytest.raises(ModelError, match=r"needs 50 MB, and 67 MB are to stay.*only 102 MB free: "):
        check_room(tmp_path, 50_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: real._replace(free=63_000_000))
    with pytest.raises(ModelError, match=r"67 MB are to stay free for all else.*only 63 MB free"):
        check_room(tmp_path, 1_000)
