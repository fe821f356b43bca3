"""Cores by quota, from files as the kernel shows them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from astra_mesh.peer import device

VERSION_1 = """9:name=systemd:/
3:cpuacct,cpu:/docker/abc
2:cpuset:/docker/abc
"""


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty control group tree, and ``own`` for /proc/self/cgroup."""
    monkeypatch.setattr(device, "_CGROUP", tmp_path / "groups")
    monkeypatch.setattr(device, "_OWN", tmp_path / "own")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("max 100000\n", None),
        ("150000 100000\n", 1.5),
        ("50000 100000\n", 0.5),
        ("50000 0\n", None),
        ("nonsense\n", None),
        ("1 2 3\n", None),
        ("", None),
    ],
)
def test_version_2(groups: Path, text: str, cores: float | None) -> None:
    write(groups / "own", "0::/a/b\n")
    write(groups / "groups/a/b/cpu.max", text)
    assert device._quota() == cores


def test_the_quota_of_an_outer_group_counts(groups: Path) -> None:
    write(groups / "own", "0::/a/b\n")
    write(groups / "groups/a/b/cpu.max", "max 100000\n")
    write(groups / "groups/a/cpu.max", "200000 100000\n")
    write(groups / "groups/cpu.max", "300000 100000\n")
    assert device._quota() == 2.0


@pytest.mark.parametrize(("quota", "cores"), [("-1", None), ("25000", 0.25), ("x", None)])
@pytest.mark.parametrize("folder", ["cpu", "cpu,cpuacct"])
def test_version_1(groups: Path, folder: str, quota: str, cores: float | None) -> None:
    write(groups / "own", VERSION_1)
    write(groups / f"groups/{folder}/docker/abc/cpu.cfs_quota_us", quota + "\n")
    write(groups / f"groups/{folder}/docker/abc/cpu.cfs_period_us", "100000\n")
    assert device._quota() == cores


@pytest.mark.parametrize("own", ["", "\n", "nothing\n", "1:cpu\n", "0::\n"])
def test_odd_files_mean_no_limit(groups: Path, own: str) -> None:
    write(groups / "own", own)
    assert device._quota() is None


def test_no_files_mean_no_limit(groups: Path) -> None:
    assert device._quota() is None


def test_cores_are_at_most_the_quota(groups: Path) -> None:
    write(groups / "own", "0::/\n")
    write(groups / "groups/cpu.max", "30000 100000\n")
    assert device.usable_cores() == 0.3
    assert device.this_device(0).threads == 1
    assert device.this_device(3).threads == 3


def test_the_machine_has_one_opaque_id() -> None:
    assert device.host_id() == device.host_id()
    assert re.fullmatch("[0-9a-f]{16}", device.host_id())
