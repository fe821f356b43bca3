"""A share of a core for each device of a benchmark: control groups of version 1, one per device.

To be replaced by the laboratory's own quotas. Peers read their quota and their machine's boot id;
`ip netns exec` hides the first and all devices have the second in common, so both are arranged in
a mount namespace of the process's own.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

PARENT: Final = Path("/sys/fs/cgroup/cpu")
# Short, so that half a core is not 50 ms of a whole core and 50 ms of none; not so short that the
# kernel's tick gets in the way.
PERIOD_US: Final = 10_000
REMOVE_S: Final = 3.0  # for the last process of a group to be gone
_POLL_S: Final = 0.05
# Arguments: file with a boot id, group's name, program and its arguments.
_ENTER: Final = (
    'mount --bind "$0" /proc/sys/kernel/random/boot_id && '
    "mount -t tmpfs none /sys/fs/cgroup && mkdir /sys/fs/cgroup/cpu && "
    "mount -t cgroup -o cpu none /sys/fs/cgroup/cpu && "
    'echo $$ > "/sys/fs/cgroup/cpu/$1/cgroup.procs" && shift && exec "$@"'
)


class Quotas:
    """A group with ``cores`` cores for each device, for as long as the context lasts.

    Args:
        devices: their names.
        cores: of each; 0.5 is half of one.
        work: folder for small files.
    """

    def __init__(self, devices: Sequence[str], cores: float, work: Path) -> None:
        self._cores, self._work = cores, work
        self._names = {one: f"astra-bench-{os.getpid()}-{one}" for one in devices}

    def __enter__(self) -> Self:
        for device, name in self._names.items():
            group = PARENT / name
            group.mkdir()
            (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (group / "cpu.cfs_quota_us").write_text(str(round(self._cores * PERIOD_US)))
            self._boot_id(device).write_text(f"{uuid.uuid4()}\n")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        deadline = time.monotonic() + REMOVE_S
        left = [PARENT / name for name in self._names.values()]
        while left and time.monotonic() < deadline:
            for group in list(left):
                with suppress(OSError):
                    group.rmdir()
                    left.remove(group)
            time.sleep(_POLL_S if left else 0)

    def inside(self, device: str, argv: Sequence[str | Path]) -> list[str]:
        """The command that runs ``argv`` in the device's group, with mounts of its own."""
        return [
            *("unshare", "--mount", "--propagation", "private", "--"),
            "sh",
            "-c",
            _ENTER,
            str(self._boot_id(device)),
            self._names[device],
            *map(str, argv),
        ]

    def _boot_id(self, device: str) -> Path:
        return self._work / f"{device}.boot-id"
