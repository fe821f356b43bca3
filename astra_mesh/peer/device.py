"""What hardware this peer runs on, as far as planning needs it."""

from __future__ import annotations

import hashlib
import os
import platform
import uuid
from pathlib import Path

from astra_mesh._version import __version__
from astra_mesh.wire.messages import Device

_CGROUP = Path("/sys/fs/cgroup")


def this_device(threads: int) -> Device:
    """The device; ``threads`` 0 means as many as the cores that this process may use."""
    cores = usable_cores()
    return Device(
        host=host_id(),
        cores=cores,
        host_cores=float(os.cpu_count() or 1),
        threads=threads or max(1, int(cores)),
        system=f"{platform.system()} {platform.machine()}",
        memory_bytes=_memory_bytes(),
        software=__version__,
    )


def usable_cores() -> float:
    """Cores by affinity and by CPU quota (cgroup v2, then v1)."""
    count = float(os.cpu_count() or 1)
    if hasattr(os, "sched_getaffinity"):
        count = float(len(os.sched_getaffinity(0)))
    quota = _quota()
    return count if quota is None else min(count, quota)


def _quota() -> float | None:
    """Cores that the process's control group allows; None without a limit."""
    for path in _own_groups():
        try:
            if (path / "cpu.max").exists():
                limit, period = (path / "cpu.max").read_text().split()
            else:
                limit = (path / "cpu.cfs_quota_us").read_text().strip()
                period = (path / "cpu.cfs_period_us").read_text().strip()
            if limit not in ("max", "-1"):
                return int(limit) / int(period)
        except (OSError, ValueError):
            continue
    return None


def _own_groups() -> list[Path]:
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if not controllers:
            found.append(_CGROUP / group.lstrip("/"))
        elif "cpu" in controllers.split(","):
            found += [_CGROUP / name / group.lstrip("/") for name in ("cpu", "cpu,cpuacct")]
    return found


def host_id() -> str:
    """Opaque id of the machine: the same for all peers on it, also in containers and namespaces."""
    try:
        seed = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        seed = f"{platform.node()}-{uuid.getnode()}"
    return hashlib.sha256(f"astra-mesh-host\0{seed}".encode()).hexdigest()[:16]


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0
