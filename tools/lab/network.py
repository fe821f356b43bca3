"""A LAN of network namespaces: one per device, joined by a bridge.

    with Lan(["a", "b", "c"]) as lan:
        server = lan.popen("a", ["astra-mesh", "peer", "--name", "a"])
        lan.set_rate("b", 10)
        lan.run("b", ["astra-mesh", "peers"])

The bridge lies in a namespace of its own ("the switch"), so neither interfaces nor addresses appear
on the machine itself, nothing in the LAN reaches its networks, and deleting the namespaces removes
everything. Multicast crosses the bridge. docs/lab.md has the picture.

    python -m tools.lab.network sweep    removes what a killed owner left
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PREFIX = "astra-lab"
SWITCH = "switch"  # the bridge's namespace; no device can have this name
DEVICE_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
DEVICES = 200  # what the /24 below holds, with room
NAMESPACES = Path("/run/netns")  # where `ip netns` keeps them

IP_TIMEOUT_S = 20.0  # one `ip` call; seen: 5 ms, 0.3 s on a loaded machine
STOP_GRACE_S = 3.0  # between SIGTERM and SIGKILL: a peer's goodbye takes less
RUN_TIMEOUT_S = 60.0
POLL_S = 0.02

# Token bucket: holds this much time's worth of bytes (a 100 Hz kernel refills every 10 ms), and at
# least a few full frames.
BURST_S = 0.01
BURST_MIN_BYTES = 16 * 1024


class LabError(RuntimeError):
    """The laboratory could not do what was asked."""


class LabUnavailableError(LabError):
    """This machine cannot have a laboratory: not Linux, not root, no `ip`, or not permitted."""


@dataclass(frozen=True)
class Owner:
    """The process that made a namespace; the start time tells it from a later one of its pid."""

    pid: int
    started: int  # clock ticks after boot, from /proc/PID/stat

    def is_alive(self) -> bool:
        """Whether that very process still runs."""
        return _start_ticks(self.pid) == self.started


class Lan:
    """A LAN for as long as the context lasts. Single-use; not for several threads at once.

    Args:
        devices: their names: lower-case letters, digits and dashes.

    Raises:
        LabUnavailableError: on entering, where namespaces cannot be made; it says why.
    """

    def __init__(self, devices: Sequence[str]) -> None:
        for name in devices:
            if not DEVICE_NAME.fullmatch(name) or name == SWITCH:
                raise ValueError(f"not a device name: {name!r}")
        if not 1 <= len(devices) <= DEVICES or len(set(devices)) != len(devices):
            raise ValueError(f"1 to {DEVICES} devices of different names")
        self.devices = tuple(devices)
        owner = Owner(os.getpid(), _start_ticks(os.getpid()) or 0)
        self._stem = f"{PREFIX}-{owner.pid}-{owner.started}-{secrets.token_hex(3)}"
        self._owner = owner
        self._processes: list[subprocess.Popen[Any]] = []
        self._namespaces: list[str] = []  # made so far
        self._used = False

    def __enter__(self) -> Self:
        if self._used:
            raise LabError("a Lan can be entered once")
        self._used = True
        _require_lab()
        sweep()
        atexit.register(self.close)
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def namespace(self, device: str) -> str:
        """The name of the device's namespace, for `ip netns exec`."""
        self._index(device)
        return f"{self._stem}-{device}"

    def address(self, device: str) -> str:
        """The device's IPv4 address in the LAN."""
        return f"10.77.0.{self._index(device) + 1}"

    def popen(
        self, device: str, argv: Sequence[str | Path], **options: Any
    ) -> subprocess.Popen[Any]:
        """Starts a program on a device; it is stopped when the LAN closes, if not before.

        Args:
            device: where.
            argv: the program and its arguments; never a shell's line.
            options: as for :class:`subprocess.Popen`.
        """
        command = ["ip", "netns", "exec", self.namespace(device), *map(str, argv)]
        process = subprocess.Popen(command, **options)
        self._processes.append(process)
        return process

    def run(
        self, device: str, argv: Sequence[str | Path], **options: Any
    ) -> subprocess.CompletedProcess[Any]:
        """Runs a program on a device to its end; options as for :func:`subprocess.run`.

        Raises:
            subprocess.TimeoutExpired: after ``timeout`` (60 s unless given); the program is killed.
        """
        options.setdefault("timeout", RUN_TIMEOUT_S)
        command = ["ip", "netns", "exec", self.namespace(device), *map(str, argv)]
        return subprocess.run(command, check=options.pop("check", False), **options)

    def set_rate(self, device: str, mbps: float | None, *, queue_ms: float = 100.0) -> None:
        """Limits what the device sends, and what it receives, to ``mbps`` each; None lifts it.

        Args:
            device: whose link.
            mbps: megabits per second, counted with Ethernet headers.
            queue_ms: how long a packet may wait for its turn; past it packets are dropped.
        """
        ends = ((self.namespace(device), "eth0"), (self._switch, self._port(device)))
        for namespace, interface in ends:
            base = ["tc", "-n", namespace, "qdisc"]
            if mbps is None:
                _command([*base, "del", "dev", interface, "root"], check=False)
                continue
            burst = max(BURST_MIN_BYTES, int(mbps * 1e6 / 8 * BURST_S))
            shape = ["tbf", "rate", f"{round(mbps * 1e6)}bit", "burst", f"{burst}b"]
            latency = ["latency", f"{queue_ms}ms"]
            _command([*base, "replace", "dev", interface, "root", *shape, *latency])

    def unplug(self, device: str) -> None:
        """Takes the device's cable out: its carrier goes, the others only hear silence."""
        _command(["ip", "-n", self._switch, "link", "set", self._port(device), "down"])

    def plug(self, device: str) -> None:
        """Puts the cable back."""
        _command(["ip", "-n", self._switch, "link", "set", self._port(device), "up"])

    def close(self) -> None:
        """Stops every process of the LAN and removes it. May be called again."""
        if os.getpid() != self._owner.pid:
            return  # a forked child inherits the exit handler, not the LAN
        atexit.unregister(self.close)
        _stop(self._processes)
        for namespace in reversed(self._namespaces):
            _remove(namespace)
        self._namespaces.clear()

    @property
    def _switch(self) -> str:
        return f"{self._stem}-{SWITCH}"

    def _index(self, device: str) -> int:
        try:
            return self.devices.index(device)
        except ValueError:
            raise LabError(f"no device {device!r}; there are {', '.join(self.devices)}") from None

    def _port(self, device: str) -> str:
        return f"port{self._index(device)}"

    def _build(self) -> None:
        self._add_namespace(self._switch)
        # No snooping: multicast goes to every port, as on a home router's Wi-Fi. No spanning tree
        # delay: ports forward at once.
        bridge = "bridge mcast_snooping 0 stp_state 0 forward_delay 0"
        _batch(self._switch, [f"link add lan0 type {bridge}", "link set lan0 up"])
        for device in self.devices:
            self._add_device(device)

    def _add_device(self, device: str) -> None:
        namespace, port = self.namespace(device), self._port(device)
        self._add_namespace(namespace)
        # Without this an IPv6 address is unusable for its first 1-2 s.
        _command([
            *("ip", "netns", "exec", namespace, "sh", "-c"),
            "f=/proc/sys/net/ipv6/conf/default/accept_dad; ! [ -w $f ] || echo 0 > $f",
        ])  # fmt: skip
        _batch(
            self._switch,
            [
                f"link add {port} type veth peer name eth0 netns {namespace}",
                f"link set {port} master lan0 up",
            ],
        )
        _batch(
            namespace,
            [
                "link set lo up",
                f"address add {self.address(device)}/24 dev eth0",
                "link set eth0 up",
                "route add 224.0.0.0/4 dev eth0",
            ],
        )

    def _add_namespace(self, name: str) -> None:
        try:
            _command(["ip", "netns", "add", name])
        except LabError as error:
            raise LabUnavailableError(f"network namespaces cannot be made here: {error}") from error
        self._namespaces.append(name)


def unavailable_reason() -> str | None:
    """Why no LAN can be made on this machine, found by making a small one; None if it can."""
    try:
        with Lan(["probe"]):
            return None
    except LabError as error:
        return str(error)


def sweep() -> list[str]:
    """Removes namespaces whose owner is dead, and the processes in them; returns their names.

    Only names of the form that :class:`Lan` makes are looked at; those of living owners stay.
    """
    removed = []
    for name in _namespace_names():
        owner = owner_of(name)
        if owner is not None and not owner.is_alive():
            _remove(name)
            removed.append(name)
    return removed


def owner_of(namespace: str) -> Owner | None:
    """Who made a namespace, from its name; None if no Lan did."""
    found = re.fullmatch(rf"{PREFIX}-(\d+)-(\d+)-[0-9a-f]{{6}}-[a-z0-9-]+", namespace)
    return Owner(int(found[1]), int(found[2])) if found else None


def _require_lab() -> None:
    if not sys.platform.startswith("linux"):
        raise LabUnavailableError("network namespaces exist on Linux only")
    if shutil.which("ip") is None or shutil.which("tc") is None:
        raise LabUnavailableError(
            "the commands ip and tc are missing (Debian: apt install iproute2)"
        )
    if os.geteuid() != 0:
        raise LabUnavailableError("network namespaces need root")


def _namespace_names() -> list[str]:
    try:
        return sorted(path.name for path in NAMESPACES.iterdir())
    except OSError:
        return []


def _start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat; None if there is no such process (a zombie counts as none)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the command before it may hold spaces
    return None if fields[0] in "ZX" else int(fields[19])


def _remove(namespace: str) -> None:
    """Kills what runs in the namespace, then deletes it, and with it its interfaces."""
    listed = _command(["ip", "netns", "pids", namespace], check=False)
    for pid in map(int, listed.split()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    _command(["ip", "netns", "delete", namespace], check=False)


def _stop(processes: list[subprocess.Popen[Any]]) -> None:
    """SIGTERM to all, a common grace, SIGKILL; every pipe is closed and every child reaped."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + STOP_GRACE_S
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
    processes.clear()


def _batch(namespace: str, lines: Sequence[str]) -> None:
    _command(["ip", "-n", namespace, "-batch", "-"], stdin="\n".join(lines) + "\n")


def _command(argv: Sequence[str], *, stdin: str = "", check: bool = True) -> str:
    environment: Mapping[str, str] = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            argv,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=IP_TIMEOUT_S,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{' '.join(argv)}: no end within {IP_TIMEOUT_S:.0f} s") from error
    if check and done.returncode != 0:
        raise LabError(f"{' '.join(argv)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def main(arguments: Sequence[str]) -> int:
    """The command line: ``sweep``."""
    if list(arguments) != ["sweep"]:
        print("usage: python -m tools.lab.network sweep", file=sys.stderr)
        return 2
    for name in sweep():
        print(f"removed {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
