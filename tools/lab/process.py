"""What runs on a device: its peer, and the environment and CPU quota of its programs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.lab.cpu import CpuGroup
from tools.lab.scenario import SHIPPED
from tools.lab.system import LabError

if TYPE_CHECKING:
    from tools.lab.house import House

REPO_ROOT = Path(__file__).resolve().parents[2]
LOG_CHARS = 20_000  # the end of a log that is kept
START_S = 10.0  # that a peer which is to hang gets to start

# Each replaces itself by what follows, so the process that was started is the peer.
_IN_GROUP = 'echo $$ > "$0" && exec "$@"'
_AS_A_MACHINE = 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"'


@dataclass
class DevicePeer:
    """One `astra-mesh peer`."""

    process: subprocess.Popen[Any]
    folder: Path  # of the device

    @classmethod
    def start(cls, house: House, device: str, more: tuple[str, ...]) -> DevicePeer:
        """Start it; its standard input ends it when the laboratory is gone."""
        scenario = house.scenario
        settings = scenario.devices[device]
        folder = house.device_folder(device)
        (folder / "output").unlink(missing_ok=True)
        argv = [*house.python, "-m", "astra_mesh", "peer", "--name", device]
        argv += ["--threads", str(settings.threads), "--json", "--stop-with-stdin", "--no-api"]
        argv += ["--no-preload"]  # what is loaded when is the scenario's
        argv += ["--record", str(folder / "record")] if house.timelines else []
        argv += [word for name in scenario.offer for word in ("--model", name)]
        argv += [*settings.options, *more]
        with (folder / "output").open("wb") as output:
            process = house.popen(device, argv, stdin=subprocess.PIPE, stdout=output)
        return cls(process, folder)

    @property
    def runs(self) -> bool:
        """Whether it was not ended; a halted one runs."""
        return self.process.poll() is None

    @property
    def port(self) -> int | None:
        """Where it listens, from its first line of output; None before that, or if it failed."""
        port: int | None = self._first_line().get("port")
        return port

    @property
    def pid(self) -> int:
        """Of the process that is the peer; before it has said so, of the one that was started."""
        return int(self._first_line().get("pid", self.process.pid))

    def halt(self) -> None:
        """Stop it, as a device that hangs, once it serves; if it does not, at once."""
        until = time.monotonic() + START_S
        while self.runs and self.port is None and time.monotonic() < until:
            time.sleep(0.05)
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """End that."""
        for pid in {self.pid, self.process.pid}:
            os.kill(pid, signal.SIGCONT)

    def _first_line(self) -> dict[str, Any]:
        """What it says once it serves, or why it cannot; empty before that."""
        try:
            line, end, _ = (self.folder / "output").read_text().partition("\n")
        except FileNotFoundError:  # another thread is starting the peer again
            return {}
        found: dict[str, Any] = json.loads(line) if end else {}
        return found

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
    home = house.device_folder(device) / "home"
    home.mkdir(exist_ok=True)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "ASTRA_"))}
    return kept | {
        "HOME": str(home),
        "ASTRA_MESH_TRUST": str(house.trust_folder),
        "ASTRA_MESH_MODELS": house.scenario.models or str(SHIPPED),
        "PYTHONPATH": str(REPO_ROOT),
        "OMP_NUM_THREADS": str(max(1, house.scenario.devices[device].threads)),
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def within(folder: Path, group: CpuGroup) -> list[str]:
    """Leads a command into a device's quota, and to where /proc shows the device's own boot id.

    Peers tell from it whether they share a machine's cores.
    """
    boot_id = folder / "boot_id"
    if not boot_id.exists():
        boot_id.write_text(f"{uuid.uuid4()}\n")
    isolated = ["unshare", "--mount", "--propagation", "slave", "--"]
    as_a_machine = [*isolated, "sh", "-c", _AS_A_MACHINE, str(boot_id)]
    return [*as_a_machine, "sh", "-c", _IN_GROUP, str(group.door)]
