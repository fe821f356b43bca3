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


MEMORY = {  # by the version: place of the group, its line, and its files
    2: ("", "0::/a", ("memory.max", "memory.current", "inactive_file")),
    1: (
        "memory/",
        "4:memory:/a",
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ),
}


@pytest.fixture
def meminfo(groups: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8,000 KiB free."""
    monkeypatch.setattr(device, "_MEMORY", groups / "meminfo")
    write(groups / "meminfo", "MemTotal: 9000 kB\nMemAvailable: 8000 kB\n")
    return groups


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("outer", [False, True])
def test_free_memory_is_within_the_limit_of_a_control_group(
    meminfo: Path, version: int, outer: bool
) -> None:
    root, own, (limit, used, files) = MEMORY[version]
    write(meminfo / "own", own + ("/b\n" if outer else "\n"))
    group = meminfo / f"groups/{root}a"
    write(group / limit, "3000000\n")
    write(group / used, "1000000\n")
    write(group / "memory.stat", f"cache 7\n{files} 500000\n")
    assert device.free_memory_bytes() == 2_500_000
    write(group / used, "9000000\n")
    assert device.free_memory_bytes() == 0


@pytest.mark.parametrize(("version", "none"), [(1, "9223372036854771712"), (2, "max")])
def test_a_group_without_a_limit_leaves_what_the_machine_has(
    meminfo: Path, version: int, none: str
) -> None:
    root, own, (limit, used, _) = MEMORY[version]
    write(meminfo / "own", own + "\n")
    write(meminfo / f"groups/{root}a" / limit, none + "\n")
    write(meminfo / f"groups/{root}a" / used, "1000000\n")
    write(meminfo / f"groups/{root}a/memory.stat", "cache 7\n")
    assert device.free_memory_bytes() == 8000 * 1024


def test_cores_are_at_most_the_quota(groups: Path) -> None:
    write(groups / "own", "0::/\n")
    write(groups / "groups/cpu.max", "30000 100000\n")
    assert device.usable_cores() == 0.3
    assert device.this_device(0).threads == 1
    assert device.this_device(3).threads == 3


def test_the_machine_has_one_opaque_id() -> None:
    assert device.host_id() == device.host_id()
    assert re.fullmatch("[0-9a-f]{16}", device.host_id())
