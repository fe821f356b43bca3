"""A LAN of network namespaces: one per device, joined by a bridge.

    with Lan(["a", "b", "c"]) as lan:
        server = lan.popen("a", ["astra-mesh", "peer", "--name", "a"])
        lan.set_rate("b", 10)
        lan.run("b", ["astra-mesh", "peers"])

The bridge lies in a namespace of its own ("the switch"), so neither interfaces nor addresses appear
on the machine itself, nothing in the LAN reaches its networks, and deleting the namespaces removes
everything. Multicast crosses the bridge. docs/lab.md has the picture.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tools.lab import shaping
from tools.lab.delay import DelayLine
from tools.lab.system import (
    LabError,
    LabUnavailableError,
    Owner,
    batch,
    command,
    cpu_seconds,
    kill_all,
    new_stem,
    orphans,
    stop,
    undisturbed,
)

SWITCH = "switch"  # the bridge's namespace; no device can have this name
DEVICE_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
DEVICES = 200  # what the /24 below holds, with room
NAMESPACES = Path("/run/netns")  # where `ip netns` keeps them
MEDIUM = "medium"  # the name of the block that a shared medium's frames pass
QUEUE_MS = 100.0
RUN_TIMEOUT_S = 60.0
_STATUS = Path("/proc/self/status")
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}  # of linux/capability.h


class Lan:
    """A LAN for as long as the context lasts. Single-use; not for several threads at once.

    Args:
        devices: their names: lower-case letters, digits and dashes.
        delayed: those whose cables can have a delay (:meth:`set_delay`).
        medium: whether there is a shared medium (:meth:`set_medium`).
        seed: of the delays' jitter.

    Raises:
        LabUnavailableError: on entering, where namespaces cannot be made; it says why.
    """

    def __init__(
        self,
        devices: Sequence[str],
        *,
        delayed: Collection[str] = (),
        medium: bool = False,
        seed: int = 0,
    ) -> None:
        for name in devices:
            if not DEVICE_NAME.fullmatch(name) or name == SWITCH:
                raise ValueError(f"not a device name: {name!r}")
        if not 1 <= len(devices) <= DEVICES or len(set(devices)) != len(devices):
            raise ValueError(f"1 to {DEVICES} devices of different names")
        self.devices = tuple(devices)
        self.stem, self._owner = new_stem(), Owner.me()
        self._delayed = [self._index(device) for device in delayed]
        self._medium, self._seed = medium, seed
        self._line: DelayLine | None = None
        self._processes: list[subprocess.Popen[Any]] = []
        self._namespaces: list[str] = []  # made so far
        self._moves: dict[str, int] = {}  # how often a device got another address
        self._used = False

    def __enter__(self) -> Self:
        if self._used:
            raise LabError("a Lan can be entered once")
        self._used = True
        require_lab()
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

    # --- what runs in it --------------------------------------------------------------------------

    def namespace(self, device: str) -> str:
        """The name of the device's namespace, for `ip netns exec`."""
        self._index(device)
        return f"{self.stem}-{device}"

    def address(self, device: str) -> str:
        """The device's IPv4 address in the LAN."""
        moved = len(self.devices) * self._moves.get(device, 0)
        return f"10.77.0.{self._index(device) + 1 + moved}"

    def popen(
        self, device: str, argv: Sequence[str | Path], **options: Any
    ) -> subprocess.Popen[Any]:
        """Starts a program on a device; it is stopped when the LAN closes, if not before.

        Args:
            device: where.
            argv: the program and its arguments; never a shell's line.
            options: as for :class:`subprocess.Popen`.
        """
        process = subprocess.Popen([*_entry(self.namespace(device)), *map(str, argv)], **options)
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
        argv = [*_entry(self.namespace(device)), *map(str, argv)]
        return subprocess.run(argv, check=options.pop("check", False), **options)

    # --- what its cables are like -----------------------------------------------------------------

    def set_rate(self, device: str, mbps: float | None, *, queue_ms: float = QUEUE_MS) -> None:
        """As :meth:`set_rates`, the same both ways."""
        self.set_rates(device, mbps, mbps, queue_ms=queue_ms)

    def set_rates(
        self, device: str, up: float | None, down: float | None, *, queue_ms: float = QUEUE_MS
    ) -> None:
        """Limits what the device sends (up) and what it receives (down); None lifts it.

        Args:
            device: whose link.
            up: megabits per second, counted with Ethernet headers.
            down: the same for what it receives.
            queue_ms: how long a packet may wait for its turn; past it packets are dropped.
        """
        shaping.set_rate(self.namespace(device), "eth0", up, queue_ms)
        shaping.set_rate(self._switch, self._port(device), down, queue_ms)

    def set_medium(self, mbps: float | None, *, queue_ms: float = QUEUE_MS) -> None:
        """Limits all traffic of the LAN together, each frame counted once; None lifts it."""
        if not self._medium:
            raise LabError("this LAN was made without a shared medium")
        shaping.set_rate(self._switch, MEDIUM, mbps, queue_ms)

    def set_loss(self, device: str, percent: float) -> None:
        """Loses this share of the frames that the device sends, and of those that it gets."""
        shaping.set_loss(self._switch, self._port(device), percent)

    def set_delay(self, device: str, delay_ms: float, jitter_ms: float = 0.0) -> None:
        """Holds what the device sends for so long, plus or minus the jitter; order is kept."""
        cable = self._index(device)
        if self._line is None:
            raise LabError("this LAN was made without delays")
        self._line.set(cable, delay_ms, jitter_ms)

    def unplug(self, device: str) -> None:
        """Takes the device's cable out: its carrier goes, the others only hear silence."""
        command(["ip", "-n", self._switch, "link", "set", self._port(device), "down"])

    def plug(self, device: str) -> None:
        """Puts the cable back."""
        command(["ip", "-n", self._switch, "link", "set", self._port(device), "up"])

    def readdress(self, device: str) -> None:
        """Gives the device another IPv4 address, as a router may after a while."""
        old = self.address(device)
        self._moves[device] = self._moves.get(device, 0) + 1
        batch(
            self.namespace(device),
            [
                f"address delete {old}/24 dev eth0",
                f"address add {self.address(device)}/24 dev eth0",
                "route replace 224.0.0.0/4 dev eth0",  # it went with the last address
            ],
        )

    def delay_cpu_s(self) -> float:
        """CPU time that holding frames took so far."""
        return 0.0 if self._line is None else cpu_seconds(self._line.process.pid)

    def traffic(self, device: str) -> dict[str, int]:
        """Bytes and frames that the device sent and received so far."""
        shown = command(["ip", "-n", self.namespace(device), "-s", "-j", "link", "show", "eth0"])
        sides = json.loads(shown)[0]["stats64"]
        names = {"sent": "tx", "received": "rx"}
        return {
            f"{name}_{what}": int(sides[side]["bytes" if what == "bytes" else "packets"])
            for name, side in names.items()
            for what in ("bytes", "frames")
        }

    # --- making and removing ----------------------------------------------------------------------

    def close(self) -> None:
        """Stops every process of the LAN and removes it. May be called again."""
        if os.getpid() != self._owner.pid:
            return  # a forked child inherits the exit handler, not the LAN
        with undisturbed(), ExitStack() as steps:  # the last one first, also where one fails
            for namespace in self._namespaces:
                steps.callback(_remove, namespace)
            if self._line is not None:
                steps.callback(stop, [self._line.process])
            steps.callback(stop, self._processes)
        self._namespaces.clear()
        atexit.unregister(self.close)

    @property
    def _switch(self) -> str:
        return f"{self.stem}-{SWITCH}"

    def _index(self, device: str) -> int:
        try:
            return self.devices.index(device)
        except ValueError:
            raise LabError(f"no device {device!r}; there are {', '.join(self.devices)}") from None

    def _port(self, device: str) -> str:
        return f"port{self._index(device)}"

    def _build(self) -> None:
        self._add_namespace(self._switch)
        batch(self._switch, _bridge("lan0"))
        if self._medium:
            shaping.add_medium(self._switch, MEDIUM)
        if self._delayed:
            self._line = DelayLine(_entry(self._switch), self._delayed, self._seed)
            self._line.wait_until_ready()
        for device in self.devices:
            self._add_device(device)
            self._connect(device)

    def _add_device(self, device: str) -> None:
        namespace = self.namespace(device)
        self._add_namespace(namespace)
        # Without this an IPv6 address is unusable for its first 1-2 s.
        command([
            *_entry(namespace),
            *("sh", "-c"),
            "f=/proc/sys/net/ipv6/conf/default/accept_dad; ! [ -w $f ] || echo 0 > $f",
        ])  # fmt: skip
        veth = f"link add {self._port(device)} type veth peer name eth0 netns {namespace}"
        batch(self._switch, [veth])
        batch(
            namespace,
            [
                "link set lo up",
                f"address add {self.address(device)}/24 dev eth0",
                "link set eth0 up",
                "route add 224.0.0.0/4 dev eth0",
            ],
        )

    def _connect(self, device: str) -> None:
        """From the device's port to the bridge, through a cable that delays if there is one."""
        number, port = self._index(device), self._port(device)
        lines = []
        bridge = "lan0"
        if number in self._delayed:
            bridge = f"cable{number}"
            lines += [
                *_bridge(bridge),
                f"link set near{number} addrgenmode none",
                f"link set far{number} addrgenmode none",
                f"link set near{number} master {bridge} up",
                f"link set far{number} master lan0 up",
            ]
        batch(self._switch, [*lines, f"link set {port} master {bridge} up"])
        if self._medium:
            shaping.join_medium(self._switch, port, MEDIUM)

    def _add_namespace(self, name: str) -> None:
        try:
            command(["ip", "netns", "add", name])
        except LabError as error:
            raise LabUnavailableError(f"network namespaces cannot be made here: {error}") from error
        self._namespaces.append(name)


def _bridge(name: str) -> list[str]:
    """No snooping: multicast goes to every port, as on a home router's Wi-Fi. No spanning tree
    delay: ports forward at once.
    """
    options = "mcast_snooping 0 stp_state 0 forward_delay 0"
    add = f"link add {name} type bridge {options}"
    return [add, f"link set {name} addrgenmode none", f"link set {name} up"]


def _entry(namespace: str) -> list[str]:
    """Leads a command into a namespace; unlike `ip netns exec` it leaves the mounts as they are."""
    return ["nsenter", f"--net={NAMESPACES / namespace}", "--"]


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
    removed = [path.name for path in orphans(NAMESPACES)]
    for name in removed:
        _remove(name)
    return removed


def require_lab() -> None:
    """LabUnavailableError, with what to do, where there can be no LAN."""
    if not sys.platform.startswith("linux"):
        raise LabUnavailableError("network namespaces exist on Linux only")
    for name, package in (("ip", "iproute2"), ("tc", "iproute2"), ("nsenter", "util-linux")):
        if shutil.which(name) is None:
            raise LabUnavailableError(
                f"the command {name} is missing (Debian: apt install {package})"
            )
    if os.geteuid() != 0:
        raise LabUnavailableError("network namespaces need root")
    if missing := [name for name, bit in _CAPABILITIES.items() if not _capabilities() >> bit & 1]:
        raise LabUnavailableError(
            f"network namespaces need {' and '.join(missing)}, and this root does not have that: "
            "a container may be given it"
        )


def _capabilities() -> int:
    """Those of this process, as bits."""
    for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            return int(value, 16)
    return -1  # all


def _remove(namespace: str) -> None:
    """Kills what runs in the namespace, then deletes it, and with it its interfaces."""
    kill_all(map(int, command(["ip", "netns", "pids", namespace], check=False).split()))
    command(["ip", "netns", "delete", namespace], check=False)
