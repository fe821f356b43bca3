"""Seeded schedules of faults: what is broken, when, and for how long. No clock, no network."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

# What a fault is, and its shortest and longest duration in seconds.
KINDS: Final[dict[str, tuple[float, float]]] = {
    "kill": (2.0, 6.0),  # SIGKILL, and its peer starts again at the end
    "leave": (2.0, 5.0),  # SIGTERM: it says goodbye, and starts again at the end
    "stop": (0.5, 12.0),  # SIGSTOP until SIGCONT: a device that hangs, or is suspended
    "blip": (1.0, 5.0),  # the cable is out for a moment
    "partition": (6.0, 12.0),  # and for longer than anybody waits
    "slow": (2.0, 6.0),  # the cable carries 2 Mbit/s
    "lossy": (2.0, 6.0),  # it loses 2 % of the frames
}
# One of these is added to each schedule, where it fits.
RARE: Final[dict[str, tuple[float, float]]] = {
    "suspend": (12.0, 20.0),  # SIGSTOP, and the cable is out: a closed laptop
    "address": (6.0, 9.0),  # another IPv4 address from now on; others find it meanwhile
    "newcomer": (1.0, 3.0),  # SIGKILL, and a device that nobody knows comes with its name
    "namesake": (4.0, 8.0),  # a second peer with the name of the first runs on the device
}
# The peer cannot be reached meanwhile.
AWAY: Final = ("kill", "leave", "stop", "blip", "partition", "suspend", "address", "newcomer")
RESTARTS: Final = ("kill", "leave", "newcomer")  # it is back when a new process is ready
_TRIES: Final = 20
GAP_S: Final = (0.2, 2.5)  # between the beginnings of two faults


@dataclass(frozen=True)
class Fault:
    """One fault of one device, seconds after the schedule began."""

    kind: str
    device: str
    at_s: float
    until_s: float

    @property
    def is_away(self) -> bool:
        """Whether the peer cannot be reached meanwhile."""
        return self.kind in AWAY


def draw(seed: int, devices: Sequence[str], seconds: float) -> list[Fault]:
    """The schedule of a seed: at each time at least one peer is in reach, one fault each.

    In the order in which the faults begin.
    """
    source = random.Random(f"faults-{seed}")
    found: list[Fault] = []
    at = source.uniform(0.5, 1.5)
    while at < seconds:
        kind = source.choice(list(KINDS))
        shortest, longest = KINDS[kind]
        fault = Fault(
            kind, source.choice(list(devices)), at, at + source.uniform(shortest, longest)
        )
        if _fits(fault, found, len(devices)):
            found.append(fault)
        at += source.uniform(*GAP_S)
    found += _rare(seed, devices, seconds, found)
    return sorted(found, key=lambda fault: fault.at_s)


def _rare(
    seed: int, devices: Sequence[str], seconds: float, others: Sequence[Fault]
) -> list[Fault]:
    """One more fault, or none if there is no room for it."""
    source = random.Random(f"rare-{seed}")
    kind = source.choice(list(RARE))
    shortest, longest = RARE[kind]
    for _ in range(_TRIES):
        at = source.uniform(0.5, seconds)
        until_s = at + source.uniform(shortest, longest)
        fault = Fault(kind, source.choice(list(devices)), at, until_s)
        if _fits(fault, others, len(devices)):
            return [fault]
    return []


def _fits(fault: Fault, others: Sequence[Fault], devices: int) -> bool:
    """One fault of a device at a time with a pause after it, and not all devices away at once."""
    pause_s = 1.0
    meanwhile = [
        other
        for other in others
        if other.until_s + pause_s > fault.at_s and fault.until_s + pause_s > other.at_s
    ]
    if any(other.device == fault.device for other in meanwhile):
        return False
    away = {other.device for other in meanwhile if other.is_away}
    return not fault.is_away or len(away) < devices - 1
