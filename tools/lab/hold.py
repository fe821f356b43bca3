"""Holds Ethernet frames for a while: what `tc netem` does, where the kernel lacks it.

A program of its own that :mod:`tools.lab.delay` starts in the switch's namespace; it imports
nothing of the laboratory. For each cable it makes two TAP interfaces: frames that come out of
``near<N>`` (those that device N sent) leave by ``far<N>`` after the delay; those that come out of
``far<N>`` go on at once. The order of a cable's frames never changes.

    python hold.py SEED CABLE...

It prints "ready", takes lines "CABLE DELAY_MS JITTER_MS" on standard input, and ends with that.
"""

from __future__ import annotations

import fcntl
import os
import random
import select
import struct
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field

HELD_FRAMES = 20_000  # of a cable: 30 MB, one second of 240 Mbit/s; what comes beyond is dropped
TURN_FRAMES = 64  # read from one interface before the others have their turn
FRAME_BYTES = 65_536
_TUNSETIFF = 0x400454CA  # linux/if_tun.h
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000


@dataclass
class Cable:
    """One device's cable."""

    near: int  # descriptors of the TAP interfaces
    far: int
    random: random.Random
    delay_s: float = 0.0
    jitter_s: float = 0.0
    held: deque[tuple[float, bytes]] = field(default_factory=deque)  # (when due, frame)

    def take(self, now: float) -> None:
        """Hold what the device sent."""
        for frame in frames(self.near):
            wait_s = self.delay_s + self.random.uniform(-self.jitter_s, self.jitter_s)
            due = now + max(0.0, wait_s)
            if self.held:
                due = max(due, self.held[-1][0])
            if len(self.held) < HELD_FRAMES:
                self.held.append((due, frame))

    def pass_back(self) -> None:
        """Hand on what goes to the device."""
        for frame in frames(self.far):
            put(self.near, frame)

    def release(self, now: float) -> float | None:
        """Hand on what is due; when the next one is."""
        while self.held and self.held[0][0] <= now:
            put(self.far, self.held.popleft()[1])
        return self.held[0][0] if self.held else None


def frames(tap: int) -> list[bytes]:
    """What an interface has, without waiting."""
    found: list[bytes] = []
    with suppress(OSError):  # nothing more, or the interface is down
        while len(found) < TURN_FRAMES:
            found.append(os.read(tap, FRAME_BYTES))
    return found


def put(tap: int, frame: bytes) -> None:
    """Hand a frame to an interface; one that is down or full loses it, as a cable would."""
    with suppress(OSError):
        os.write(tap, frame)


def open_tap(name: str) -> int:
    """A new TAP interface; it lasts as long as the descriptor."""
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    return tap


def hurry() -> None:
    """Be scheduled before everything else: the work is small, and lateness is error."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except OSError:
        with suppress(OSError):
            os.nice(-20)


def obey(cables: dict[str, Cable], line: str) -> None:
    """Take one line of standard input."""
    name, delay_ms, jitter_ms = line.split()
    cables[name].delay_s, cables[name].jitter_s = float(delay_ms) / 1e3, float(jitter_ms) / 1e3


def serve(cables: dict[str, Cable]) -> None:
    """Hand frames on until standard input ends."""
    stdin, pending = sys.stdin.fileno(), b""
    watched = [stdin, *(tap for one in cables.values() for tap in (one.near, one.far))]
    due: float | None = None
    while True:
        wait_s = None if due is None else max(0.0, due - time.monotonic())
        readable, _, _ = select.select(watched, [], [], wait_s)  # microseconds; poll has 1 ms
        if stdin in readable:
            data = os.read(stdin, 4096)
            if not data:
                return
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                obey(cables, line.decode())
        due = turn(cables, set(readable))


def turn(cables: dict[str, Cable], readable: set[int]) -> float | None:
    """Take what came, hand on what is due; when the next frame is."""
    now = time.monotonic()
    for cable in cables.values():
        if cable.near in readable:
            cable.take(now)
        if cable.far in readable:
            cable.pass_back()
    coming = [cable.release(time.monotonic()) for cable in cables.values()]
    return min((due for due in coming if due is not None), default=None)


def main(arguments: list[str]) -> None:
    seed, *names = arguments
    cables = {
        name: Cable(
            open_tap(f"near{name}"), open_tap(f"far{name}"), random.Random(f"{seed}-{name}")
        )
        for name in names
    }
    hurry()
    print("ready", flush=True)
    serve(cables)


if __name__ == "__main__":
    main(sys.argv[1:])
