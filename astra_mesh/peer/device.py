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
_OWN = Path("/proc/self/cgroup")
_MEMORY = Path("/proc/meminfo")
_ROOTS = {"cpu": ("cpu", "cpu,cpuacct"), "memory": ("memory",)}  # of version 1
# Limit, use, and in memory.stat what is held of files: of version 2, of version 1.
_ROOM = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


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
    """Cores that the process's control groups allow, the outer ones too; None without a limit."""
    quotas = [quota for path in _own_groups("cpu") if (quota := _quota_of(path)) is not None]
    return min(quotas, default=None)


def _quota_of(group: Path) -> float | None:
    try:
        if (group / "cpu.max").exists():
            limit, period = (group / "cpu.max").read_text().split()
        else:
            limit = (group / "cpu.cfs_quota_us").read_text()
            period = (group / "cpu.cfs_period_us").read_text()
        cores = int(limit) / int(period)  # ValueError for "max"
    except (OSError, ValueError, ZeroDivisionError):
        return None
    return cores if cores > 0 else None  # version 1 writes -1 for no limit


def _own_groups(controller: str) -> list[Path]:
    """Folders of the groups that limit this process in something, with all that they are in."""
    try:
        lines = _OWN.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        inside = Path(group.lstrip("/"))
        roots = _ROOTS[controller] if controller in controllers.split(",") else ()
        for root in roots if controllers else [""]:
            found += [_CGROUP / root / at for at in (inside, *inside.parents)]
    return found


def host_id() -> str:
    """Opaque id of the machine: the same for all peers on it, also in containers and namespaces."""
    try:
        seed = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        seed = f"{platform.node()}-{uuid.getnode()}"
    return hashlib.sha256(f"astra-mesh-host\0{seed}".encode()).hexdigest()[:16]


def free_memory_bytes() -> int:
    """Memory that programs can still get, with what the system would give up for them and within
    the limits of the process's control groups; 0 where nothing tells. Blocks.
    """
    free = [room for path in _own_groups("memory") if (room := _room_of(path)) is not None]
    try:
        lines = _MEMORY.read_text().splitlines()
        known = dict(line.split(":", 1) for line in lines if ":" in line)
        free.append(int(known["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError, IndexError):
        free.append(_memory_bytes() // 4)  # a guess for other systems
    return max(0, min(free))


def _room_of(group: Path) -> int | None:
    """Bytes below a control group's limit; what it holds of files can be given up."""
    for limit, used, files in _ROOM:
        try:
            room = int((group / limit).read_text())  # ValueError for "max"
            room -= int((group / used).read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            return room + int(stat.get(files, 0))
        except (OSError, ValueError):
            continue
    return None


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0
