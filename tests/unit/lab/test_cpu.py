"""Where groups are made, with control groups of either version or none; needs no root."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tools.lab import cpu
from tools.lab.system import LabUnavailableError

DEAD = "astra-lab-1-0-0a1b2c-attic"  # the first process was not started at the boot's first tick


class Machine:
    """Folders that stand for /sys/fs/cgroup and /proc/self."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.groups = root / "cgroup"
        self.groups.mkdir()

    def mount(self, kind: str, options: str, own: str) -> None:
        line = f"{kind} {self.groups} {kind} {options} 0 0\n"
        (self.root / "mounts").write_text(f"proc /proc proc rw 0 0\n{line}")
        (self.root / "own").write_text(own)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    monkeypatch.setattr(cpu, "MOUNTS", tmp_path / "mounts")
    monkeypatch.setattr(cpu, "OWN_GROUPS", tmp_path / "own")
    return made


def test_version_1_makes_a_group_beside_its_own_process(machine: Machine) -> None:
    machine.mount("cgroup", "rw,cpu,cpuacct", "2:cpu,cpuacct:/outer\n0::/\n")
    (machine.groups / "outer").mkdir()
    group = cpu.make_group("stem", "attic", 0.5)
    assert group.folder == machine.groups / "outer" / "stem-attic"
    assert (group.folder / "cpu.cfs_period_us").read_text() == "10000"
    assert (group.folder / "cpu.cfs_quota_us").read_text() == "5000"


def test_version_2_makes_a_group_in_the_root(machine: Machine) -> None:
    machine.mount("cgroup2", "rw", "0::/outer\n")
    (machine.groups / "cgroup.subtree_control").write_text("cpu memory\n")
    group = cpu.make_group("stem", "attic", 0.25)
    assert group.folder == machine.groups / "stem-attic"
    assert (group.folder / "cpu.max").read_text() == "2500 10000"


def test_version_2_without_the_controller_says_what_to_do(machine: Machine) -> None:
    machine.mount("cgroup2", "rw", "0::/\n")
    (machine.groups / "cgroup.subtree_control").write_text("memory\n")
    with pytest.raises(LabUnavailableError, match=r"echo \+cpu >"):
        cpu.make_group("stem", "attic", 1.0)


def test_processes_that_have_ended_count_too(machine: Machine) -> None:
    machine.mount("cgroup2", "rw", "0::/\n")
    (machine.groups / "cgroup.subtree_control").write_text("cpu\n")
    group = cpu.make_group("stem", "attic", 1.0)
    (group.folder / "cpu.stat").write_text("usage_usec 2500000\nthrottled_usec 500000\n")
    assert group.usage() == cpu.Usage(2.5, 0.5)


def test_version_1_counts_in_a_controller_that_may_lie_elsewhere(machine: Machine) -> None:
    machine.mount("cgroup", "rw,cpu", "1:cpu:/\n")
    group = cpu.make_group("stem", "attic", 1.0)
    (group.folder / "cpu.stat").write_text("nr_periods 3\nthrottled_time 500000000\n")
    (group.folder / "cgroup.procs").write_text(f"{os.getpid()}\n")
    used = group.usage()
    assert 0 < used.used_s <= time.process_time()
    assert used.throttled_s == 0.5
    (group.folder / "cpuacct.usage").write_text("7000000000\n")
    assert group.usage().used_s == 7.0


def test_no_control_groups(machine: Machine) -> None:
    machine.mount("tmpfs", "rw", "")
    with pytest.raises(LabUnavailableError, match="none are mounted"):
        cpu.make_group("stem", "attic", 1.0)
    assert "none are mounted" in str(cpu.unavailable_reason())
    assert cpu.sweep() == []


def test_a_small_share_has_a_longer_period(machine: Machine) -> None:
    machine.mount("cgroup2", "rw", "0::/\n")
    (machine.groups / "cgroup.subtree_control").write_text("cpu\n")
    group = cpu.make_group("stem", "attic", 0.05)
    assert (group.folder / "cpu.max").read_text() == "1000 20000"


def test_a_group_that_cannot_be_made_is_named(machine: Machine) -> None:
    machine.mount("cgroup", "rw,cpu", "1:cpu:/gone\n")
    with pytest.raises(LabUnavailableError, match="CPU quotas cannot be set here"):
        cpu.make_group("stem", "attic", 1.0)


def test_a_sweep_removes_only_what_dead_owners_left(machine: Machine) -> None:
    machine.mount("cgroup", "rw,cpu", "1:cpu:/\n")
    for name in (DEAD, "someone-elses", "astra-lab-notes"):
        (machine.groups / name).mkdir()
    assert cpu.sweep() == [DEAD]
    assert {path.name for path in machine.groups.iterdir()} == {"someone-elses", "astra-lab-notes"}
