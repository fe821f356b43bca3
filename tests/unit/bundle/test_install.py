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
    with pytest.raises(ModelError, match="102 MB free, of which 67 MB are kept for all else"):
        check_room(tmp_path, 50_000_000)
