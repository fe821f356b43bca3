"""The process of a peer on a device: started in its namespace, within its CPU quota."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.lab.cpu import CpuGroup
from tools.lab.system import LabError

if TYPE_CHECKING:
    from tools.lab.house import House

REPO_ROOT = Path(__file__).resolve().parents[2]
LOG_CHARS = 20_000  # the end of a log that is kept

# Each replaces itself by what follows, so the process that was started is the peer.
_IN_GROUP = 'echo $$ > "$0" && exec "$@"'
_AS_A_MACHINE = 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"'


@dataclass
class DevicePeer:
    """One `astra-mesh peer`."""

    process: subprocess.Popen[Any]
    folder: Path  # of the device

    @classmethod
    def start(
        cls, house: House, device: str, group: CpuGroup | None, more: tuple[str, ...]
    ) -> DevicePeer:
        """Start it; its standard input ends it when the laboratory is gone."""
        scenario = house.scenario
        settings = scenario.devices[device]
        environment = environment_of(house, device)
        folder = house.folder / device
        (folder / "output").unlink(missing_ok=True)
        argv = [sys.executable, "-m", "astra_mesh", "peer", "--name", device]
        argv += ["--threads", str(settings.threads), "--record", str(folder / "record")]
        argv += ["--json", "--stop-with-stdin"]
        argv += [word for name in scenario.offer for word in ("--model", name)]
        argv += [*settings.options, *more]
        if group is not None:
            argv = [*_as_a_machine(folder), "sh", "-c", _IN_GROUP, str(group.door), *argv]
        with (folder / "output").open("wb") as output, (folder / "log").open("ab") as log:
            process = house.lan.popen(
                device, argv, env=environment, stdin=subprocess.PIPE, stdout=output, stderr=log
            )
        return cls(process, folder)

    @property
    def runs(self) -> bool:
        """Whether it was not ended; a halted one runs."""
        return self.process.poll() is None

    @property
    def port(self) -> int | None:
        """Where it listens, from its first line of output; None before that, or if it failed."""
        line, end, _ = (self.folder / "output").read_text().partition("\n")
        port: int | None = json.loads(line).get("port") if end else None
        return port

    def log(self) -> str:
        """The end of its log."""
        return (self.folder / "log").read_text(errors="replace")[-LOG_CHARS:]

    def wait(self, timeout_s: float) -> None:
        """Until it has ended; LabError if it does not."""
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise LabError(f"a peer did not end within {timeout_s:g} s") from error


def environment_of(house: House, device: str) -> dict[str, str]:
    """The environment of programs on a device: a home of its own, and this repository's code."""
    home = house.folder / device / "home"
    home.mkdir(parents=True, exist_ok=True)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "ASTRA_"))}
    return kept | {
        "HOME": str(home),
        "ASTRA_MESH_MODELS": house.scenario.models or str(REPO_ROOT / "models"),
        "PYTHONPATH": str(REPO_ROOT),
        "OMP_NUM_THREADS": str(max(1, house.scenario.devices[device].threads)),
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def _as_a_machine(folder: Path) -> list[str]:
    """Leads a command to where /proc shows another boot id, and nowhere else.

    Peers tell from it whether they share a machine's cores. One with a quota has its own.
    """
    boot_id = folder / "boot_id"
    boot_id.write_text(f"{uuid.uuid4()}\n")
    isolated = ["unshare", "--mount", "--propagation", "slave", "--"]
    return [*isolated, "sh", "-c", _AS_A_MACHINE, str(boot_id)]
