"""An hour of requests while peers are killed: what those that live on hold must not grow.

python -m tools.lab soak --minutes 60
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from astra_mesh import limits
from tools.lab.client import AskError
from tools.lab.history import Held, held
from tools.lab.house import House, Say
from tools.lab.nemesis import NAMES, random_request
from tools.lab.oracle import MODEL, departs
from tools.lab.scenario import Device, Kill, Request, Scenario

KILL_EVERY_S = 30.0
DOWN_S = 6.0
SAMPLE_S = 15.0
PAUSE_S = 1.0  # between two requests of one device
CALM_EVERY_S = 120.0  # nobody asks for a while, and what a peer holds then is its own
CALM_S = limits.GIVE_BACK_S + 6.0
WARM_UP_S = 600.0  # which does not count: caches fill, the allocator finds its size
SLOPE_LEAST_S = 1200.0  # a shorter time has no slope: one page of noise is MiB an hour
MORE_BYTES_PER_HOUR = 1 << 20
CHANCE = 2.0  # standard errors of a slope that are no growth yet
MORE_DESCRIPTORS, MORE_THREADS = 3, 2
_LEAST_MINUTES = (WARM_UP_S + SLOPE_LEAST_S) / 60
TOO_SHORT = f"growth not judged: that takes {_LEAST_MINUTES:.0f} minutes or more"


@dataclass
class Soaked:
    """What a soak saw."""

    samples: dict[str, list[tuple[float, Held]]] = field(default_factory=dict)  # s, what is held
    calm: dict[str, list[tuple[float, Held]]] = field(default_factory=dict)  # while nobody asks
    answered: int = 0
    wrong: list[str] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)  # by code
    kills: int = 0

    def sample(self, house: House, names: Sequence[str], now: float, *, calm: bool) -> None:
        """What the peers of ``names`` hold now."""
        kept = self.calm if calm else self.samples
        for name in names:
            kept.setdefault(name, []).append((now, held(house.peers[name].pid)))

    def as_document(self) -> dict[str, Any]:
        """For a file: memory in MiB at seconds from the start."""

        def of(samples: dict[str, list[tuple[float, Held]]]) -> dict[str, list[list[float]]]:
            return {
                name: [[round(at), round(one.memory_bytes / 2**20, 1)] for at, one in some]
                for name, some in samples.items()
            }

        return {
            "answered": self.answered,
            "kills": self.kills,
            "errors": self.errors,
            "wrong": self.wrong,
            "asked_mib": of(self.samples),
            "calm_mib": of(self.calm),
        }


def soak(minutes: float, devices: int, say: Say) -> Soaked:
    """Run it: the second half of the devices is killed in turn, the first half is watched."""
    names = list(NAMES[:devices])
    kept, killed = names[: devices // 2], names[devices // 2 :]
    device = Device(options=("--dtype", "fp32"))
    scenario = Scenario(devices=dict.fromkeys(names, device), offer=(MODEL,), meet_s=180.0)
    found, over, lock = Soaked(), threading.Event(), threading.Lock()
    asking = threading.Event()
    asking.set()
    with House(scenario, say, timelines=False) as house:
        threads = [
            threading.Thread(
                target=_ask_on, args=(house, name, over, asking, found, lock), daemon=True
            )
            for name in names
        ]
        for thread in threads:
            thread.start()
        try:
            _kill_on(house, kept, killed, 60.0 * minutes, asking, found, say)
        finally:
            over.set()
            asking.set()
            for thread in threads:
                thread.join()
    return found


def _ask_on(
    house: House,
    device: str,
    over: threading.Event,
    asking: threading.Event,
    found: Soaked,
    lock: threading.Lock,
) -> None:
    source = random.Random(device)
    while not over.wait(PAUSE_S):
        asking.wait()
        request = random_request(device, source)
        try:
            answer = house.ask(request)
        except AskError as error:
            with lock:
                found.errors[error.code] = found.errors.get(error.code, 0) + 1
            continue
        with lock:
            found.answered += 1
            if wrong := _wrong(request, answer["tokens"]):
                found.wrong.append(wrong)


def _wrong(request: Request, tokens: Sequence[int]) -> str:
    wrong = departs({"tokens": request.tokens, "options": request.arguments()}, tokens)
    return f"{request.device} {wrong}" if wrong else ""


def _kill_on(
    house: House,
    kept: Sequence[str],
    killed: Sequence[str],
    seconds: float,
    asking: threading.Event,
    found: Soaked,
    say: Say,
) -> None:
    zero = time.monotonic()
    next_kill, next_sample, back = KILL_EVERY_S / 2, 0.0, list[tuple[float, str]]()
    calm_from, calm_to = CALM_EVERY_S, math.inf
    while (now := time.monotonic() - zero) < seconds:
        if now >= calm_from:
            asking.clear()
            calm_from, calm_to = calm_from + CALM_EVERY_S, now + CALM_S
        if now >= calm_to:
            found.sample(house, kept, now, calm=True)
            asking.set()
            calm_to = math.inf
        if now >= next_sample:
            next_sample += SAMPLE_S
            if asking.is_set():
                found.sample(house, kept, now, calm=False)
        if gone := {*kept, *killed} - house.running() - {name for _, name in back}:
            found.wrong += [f"{one} ended by itself: {house.peers[one].log()}" for one in gone]
            return
        if back and now >= back[0][0]:
            house.start(back.pop(0)[1])
        if now >= next_kill:
            next_kill += KILL_EVERY_S
            victim = killed[found.kills % len(killed)]
            if victim in house.running():
                house.apply(Kill(device=victim, at_s=0))
                found.kills += 1
                back.append((now + DOWN_S, victim))
                say(f"{now:7.0f} s  killed {victim}; {found.answered} answered")
        time.sleep(0.2)


def findings(found: Soaked) -> list[str]:
    """What grew, or was answered wrongly; empty: nothing."""
    broken = list(found.wrong)
    for name, samples in found.calm.items():
        steady = after_warm_up(samples)
        growth = hourly_bytes(steady)
        if growth is not None and growth[0] - CHANCE * growth[1] > MORE_BYTES_PER_HOUR:
            broken.append(f"{name} grows by {_mib_an_hour(growth)}")
        first, last = steady[0][1], steady[-1][1]
        if last.descriptors > first.descriptors + MORE_DESCRIPTORS:
            broken.append(f"{name}: {first.descriptors} descriptors became {last.descriptors}")
        if last.threads > first.threads + MORE_THREADS:
            broken.append(f"{name}: {first.threads} threads became {last.threads}")
    return broken


def after_warm_up(samples: Sequence[tuple[float, Held]]) -> Sequence[tuple[float, Held]]:
    """The samples that count; of a run that ended before, the second half."""
    steady = [one for one in samples if one[0] >= WARM_UP_S]
    return steady or samples[len(samples) // 2 :]


def hourly_bytes(steady: Sequence[tuple[float, Held]]) -> tuple[float, float] | None:
    """Growth of the memory in bytes an hour, and its standard error; None where the time is too
    short to tell."""
    if steady[-1][0] - steady[0][0] < SLOPE_LEAST_S:
        return None
    growth, error = slope([(at, one.memory_bytes) for at, one in steady])
    return growth * 3600, error * 3600


def slope(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Of the straight line with the smallest squared error, and its standard error; 0 for too few
    points."""
    if len(points) < 3:
        return 0.0, 0.0
    middle_x = sum(x for x, _ in points) / len(points)
    middle_y = sum(y for _, y in points) / len(points)
    spread = max(sum((x - middle_x) ** 2 for x, _ in points), 1e-9)
    found = sum((x - middle_x) * (y - middle_y) for x, y in points) / spread
    left = sum((y - middle_y - found * (x - middle_x)) ** 2 for x, y in points)
    return found, math.sqrt(left / (len(points) - 2) / spread)


def summary(found: Soaked) -> str:
    """What happened, a line for each peer that was watched."""
    lines = [f"{found.answered} answered, {found.kills} kills, errors {found.errors or 'none'}"]
    for name, samples in found.calm.items():
        steady = after_warm_up(samples)
        first, last = steady[0][1], steady[-1][1]
        lines.append(
            f"{name}: {first.memory_bytes / 2**20:.1f} to {last.memory_bytes / 2**20:.1f} MiB "
            f"({_told(steady)}; {_told(after_warm_up(found.samples[name]))} while asked), "
            f"{last.descriptors} descriptors, {last.threads} threads"
        )
    return "\n".join(lines)


def _told(steady: Sequence[tuple[float, Held]]) -> str:
    growth = hourly_bytes(steady)
    return _mib_an_hour(growth) if growth is not None else TOO_SHORT


def _mib_an_hour(growth: tuple[float, float]) -> str:
    more, error = (one / 2**20 for one in growth)
    return f"{more:+.2f} \u00b1 {error:.2f} MiB an hour"
