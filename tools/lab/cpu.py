"""A CPU quota for each device: a control group of its own, of version 1 or 2.

Groups lie beside the laboratory's own process, so an outer limit holds for them too, and have the
laboratory's names (:mod:`tools.lab.system`).
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

from tools.lab.system import (
    POLL_S,
    STOP_GRACE_S,
    LabUnavailableError,
    cpu_seconds,
    kill_all,
    orphans,
)

MOUNTS, OWN_GROUPS = Path("/proc/self/mounts"), Path("/proc/self/cgroup")

# With the kernel's usual 100 ms, half a core is 50 ms of a whole core and 50 ms of none, which is
# longer than a block. Below 10 ms the kernel's tick (4 ms at 250 Hz) is too coarse: half a core
# became 0.33 of one with 2 ms and 0.41 with 5 ms, but 0.50 with 10 ms.
PERIOD_US = 10_000
# Against programs outside the laboratory, which else take from what the quota promises.
WEIGHT = 10  # times the usual one
QUOTA_MIN_US = 1_000  # the kernel's own limit


@dataclass(frozen=True)
class Usage:
    """What a group used, in seconds."""

    used_s: float  # also by processes that have ended
    throttled_s: float  # time in which it wanted to run and had to wait for the next period


class CpuGroup:
    """A control group with a quota. ``close`` kills what is still in it and removes it."""

    def __init__(self, folder: Path, cores: float, *, version: int) -> None:
        self.folder, self.cores, self.version = folder, cores, version

    @property
    def door(self) -> Path:
        """The file that a process writes its pid to, to be in the group."""
        return self.folder / "cgroup.procs"

    def usage(self) -> Usage:
        """What its processes used so far, and how long the quota held them up."""
        lines = (self.folder / "cpu.stat").read_text().splitlines()
        stat = {name: int(value) for name, value in map(str.split, lines)}
        if self.version == 2:
            return Usage(stat["usage_usec"] / 1e6, stat.get("throttled_usec", 0) / 1e6)
        return Usage(self._used_s(), stat.get("throttled_time", 0) / 1e9)

    def _used_s(self) -> float:
        """Version 1 counts in another controller, which need not lie beside this one."""
        try:
            return int((self.folder / "cpuacct.usage").read_text()) / 1e9
        except FileNotFoundError:
            pids = (self.folder / "cgroup.procs").read_text().split()
            return sum(cpu_seconds(int(pid)) for pid in pids)

    def close(self) -> None:
        """Remove the group and whatever still runs in it. May be called again."""
        _remove(self.folder)


def make_group(stem: str, device: str, cores: float) -> CpuGroup:
    """A group that may use ``cores`` cores (0.5: half of one).

    Raises:
        LabUnavailableError: this machine gives no quotas; it says why.
    """
    parent, version = _parent()
    folder = parent / f"{stem}-{device}"
    quota = max(QUOTA_MIN_US, round(cores * PERIOD_US))
    period = round(quota / cores)
    try:
        folder.mkdir()
        if version == 2:
            (folder / "cpu.max").write_text(f"{quota} {period}")
            (folder / "cpu.weight").write_text(str(100 * WEIGHT))
        else:
            (folder / "cpu.cfs_period_us").write_text(str(period))
            (folder / "cpu.cfs_quota_us").write_text(str(quota))
            (folder / "cpu.shares").write_text(str(1024 * WEIGHT))
    except OSError as error:
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise LabUnavailableError(f"CPU quotas cannot be set here: {error}") from error
    return CpuGroup(folder, cores, version=version)


def unavailable_reason() -> str | None:
    """Why no quotas can be given here, without making a group; None if they can."""
    try:
        _parent()
    except LabUnavailableError as error:
        return str(error)
    return None


def sweep() -> list[str]:
    """Removes groups whose owner is dead, and the processes in them; returns their names."""
    try:
        parent, _ = _parent()
    except LabUnavailableError:
        return []
    found = orphans(parent)
    for folder in found:
        _remove(folder)
    return [folder.name for folder in found]


def _parent() -> tuple[Path, int]:
    """The folder in which groups are made, and the version of control groups."""
    mounts = [line.split() for line in MOUNTS.read_text().splitlines()]
    for _, place, kind, options, *_ in mounts:
        if kind == "cgroup" and "cpu" in options.split(","):
            return Path(place) / _own_group("cpu"), 1
    for _, place, kind, *_ in mounts:
        if kind == "cgroup2":
            return _parent_v2(Path(place)), 2
    raise LabUnavailableError("CPU quotas need control groups, and none are mounted")


def _parent_v2(root: Path) -> Path:
    """Processes may not lie beside groups there, but for the root: groups are made in it."""
    offered = (root / "cgroup.subtree_control").read_text().split()
    if "cpu" not in offered:
        raise LabUnavailableError(
            f"CPU quotas need the cpu controller: echo +cpu > {root}/cgroup.subtree_control"
        )
    return root


def _own_group(controller: str) -> str:
    for line in OWN_GROUPS.read_text().splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            return path.lstrip("/")
    return ""


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):
        kill_all(map(int, (folder / "cgroup.procs").read_text().split()))
    deadline = time.monotonic() + STOP_GRACE_S
    while folder.is_dir():  # the kernel lets go of a dead process a moment after its parent
        try:
            folder.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)
