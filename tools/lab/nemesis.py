"""Real peers under a seeded schedule of faults, while clients ask; then the promises are checked.

python -m tools.lab nemesis --seeds 1-20
python -m tools.lab nemesis --seeds 7 -o seed-7.json
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from astra_mesh import limits
from tools.lab.client import AskError
from tools.lab.faults import Fault, draw
from tools.lab.history import Asked, History, Watcher, held
from tools.lab.house import House, Say
from tools.lab.invariants import resources, violations
from tools.lab.oracle import MODEL, departs
from tools.lab.process import DevicePeer
from tools.lab.scenario import (
    Device,
    Go,
    Kill,
    Leave,
    Options,
    Pause,
    Plug,
    Request,
    Scenario,
    SetLoss,
    SetRate,
    Start,
    Unplug,
)

NAMES = ("attic", "cellar", "kitchen", "garage", "porch", "study", "shed", "hall")
SLOW_MBPS, LOSS_PERCENT = 2.0, 2.0
PROMPT_TOKENS = (24, 96)
NEW_TOKENS = (4, 24)
PAUSE_S = (0.0, 0.4)  # between two requests of one device
CANCELLED = 0.1  # share of requests whose callers do not wait
CANCEL_S = (0.02, 0.3)
READY_S = 120.0  # until peers that were started again are ready, on a busy machine
REST_S = 15.0  # ... and until work between requests is over, and its memory given back
CALM_S = 25.0  # until all see each other again; what is promised is checked from the history


@dataclass(frozen=True)
class Settings:
    """What is the same for all seeds.

    Attributes:
        devices: How many peers.
        seconds: How long faults begin.
        deadline_s: In which each request has to end: two silent peers, one after the other, and
            planning anew each time.
        slack_s: For the laboratory's own delays when times are checked.
        python: As for :class:`House`.
    """

    devices: int = 3
    seconds: float = 12.0
    deadline_s: float = 40.0
    slack_s: float = 1.5
    python: Sequence[str] = (sys.executable,)

    @property
    def names(self) -> list[str]:
        """Of the devices."""
        return list(NAMES[: self.devices])


def run(seeds: Sequence[int], settings: Settings, say: Say) -> Iterator[tuple[History, list[str]]]:
    """Each seed's history and what was broken, as soon as it is known.

    Raises:
        LabError: the laboratory could not be built, or peers did not start.
    """
    for seed in seeds:
        history = torment(seed, settings, say)
        yield history, check(history, settings)


def check(history: History, settings: Settings) -> list[str]:
    """What was broken in a history."""
    return violations(history, departs, deadline_s=settings.deadline_s, slack_s=settings.slack_s)


def torment(seed: int, settings: Settings, say: Say) -> History:
    """One schedule with peers of its own."""
    names = settings.names
    history = History(seed, names, draw(seed, names, settings.seconds))
    device = Device(rate_mbps=50.0, options=("--dtype", "fp32"))
    scenario = Scenario(
        devices=dict.fromkeys(names, device), offer=(MODEL,), seed=seed, meet_s=READY_S
    )
    with House(scenario, say, timelines=False, python=settings.python) as house:
        for name in names:  # loads and measures the model everywhere, and fills caches
            house.ask(random_request(name, random.Random(0)))
        time.sleep(1.0 + limits.GIVE_BACK_S)
        history.before = {name: held(house.peers[name].pid) for name in names}
        _Run(house, history, settings, say).run()
    return history


class _Run:
    def __init__(self, house: House, history: History, settings: Settings, say: Say) -> None:
        self.house, self.history, self.settings, self._say = house, history, settings, say
        self._zero = time.monotonic()
        self._over = threading.Event()
        self._lock = threading.Lock()

    def _now(self) -> float:
        return time.monotonic() - self._zero

    def run(self) -> None:
        history, first = self.history, dict(self.house.peers)
        watcher = Watcher(self.house, history, self._zero)
        try:
            with self._asking():
                self._break()
            self._calm()
            self._last_requests()
        finally:
            watcher.close()
        history.lasted_s = self._now()
        stayed = {n: one for n, one in self.house.peers.items() if one is first.get(n)}
        time.sleep(1.0 + limits.GIVE_BACK_S)  # what ended is freed, and memory given back
        self._come_to_rest(stayed)
        history.logs = self.house.logs()

    def _come_to_rest(self, stayed: Mapping[str, DevicePeer]) -> None:
        """Note what peers hold then: work between requests takes longer on a busy machine."""
        rests_by_s = self._now() + REST_S
        while True:
            held_now = {name: held(one.pid) for name, one in stayed.items()}
            self.history.after = held_now
            if self._now() > rests_by_s or not list(resources(self.history)):
                return
            time.sleep(1.0)

    # --- the clients ------------------------------------------------------------------------------

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """One client on each device that asks on and on."""
        threads = [
            threading.Thread(target=self._ask_on, args=(name,), name=f"lab-{name}", daemon=True)
            for name in self.history.devices
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in threads:
                thread.join()

    def _ask_on(self, device: str) -> None:
        source = random.Random(f"{self.history.seed}-{device}")
        while not self._over.wait(source.uniform(*PAUSE_S)):
            request = random_request(device, source)
            if cancelled := source.random() < CANCELLED:
                request = _with_patience(request, source.uniform(*CANCEL_S))
            self._ask(request, cancelled=cancelled)

    def _ask(self, request: Request, *, cancelled: bool = False) -> Asked:
        question: dict[str, Any] = {"task": request.task, "tokens": request.tokens}
        question["options"] = request.arguments()
        asked = Asked(request.device, question, self._now(), cancelled=cancelled)
        try:
            asked.answer = self.house.ask(request)
        except AskError as error:
            asked.error, asked.message = error.code, str(error)
        asked.ended_s = self._now()
        with self._lock:
            self.history.asked.append(asked)
        if asked.error == "no-peer":  # its peer is being started
            self._over.wait(0.2)
        return asked

    def _last_requests(self) -> None:
        """All peers serve again, and take part again."""
        for device in self.history.devices:
            self._ask(random_request(device, random.Random(self.history.seed), use="all"))

    # --- the faults -------------------------------------------------------------------------------

    def _break(self) -> None:
        moments: list[tuple[float, bool, Fault]] = []
        for fault in self.history.faults:
            moments += [(fault.at_s, True, fault), (fault.until_s, False, fault)]
        for at_s, begins, fault in sorted(moments, key=lambda one: one[:2]):
            time.sleep(max(0.0, at_s - self._now()))
            self._say(
                f"{self._now():7.2f} s  {fault.kind} {'begins' if begins else 'ends'}: "
                f"{fault.device}"
            )
            (_BEGIN if begins else _END)[fault.kind](self.house, fault.device)

    def _calm(self) -> None:
        """Wait until all see each other, or it takes too long."""
        ready_by_s = self._now() + READY_S
        while self._now() < ready_by_s and not self._all_ready():
            time.sleep(0.2)
        names, deadline = sorted(self.history.devices), self._now() + CALM_S
        while True:
            self.history.finally_seen = {name: self._names(name) for name in names}
            met = all(found == names for found in self.history.finally_seen.values())
            if met or self._now() > deadline:
                return
            time.sleep(0.2)

    def _all_ready(self) -> bool:
        return all(peer.port is not None for peer in self.house.peers.values() if peer.runs)

    def _names(self, device: str) -> list[str]:
        """Who a device sees, sorted; two of one name are two."""
        with suppress(AskError):
            return sorted(one["name"] for one in self.house.view(device))
        return []


def random_request(device: str, source: random.Random, use: str = "") -> Request:
    """A text to continue; three of four in fp32, so that any plan answers alike."""
    tokens = tuple(source.randrange(1, 500) for _ in range(source.randint(*PROMPT_TOKENS)))
    chosen: Any = use or source.choice(("all", "all", "auto", "solo"))
    new = source.randint(*NEW_TOKENS)
    codec = "fp32" if use or source.random() < 0.75 else ""
    options = Options(use=chosen, max_new_tokens=new, codec=codec)
    return Request(device=device, model=MODEL, tokens=tokens, options=options, timeout_s=60.0)


def _with_patience(request: Request, seconds: float) -> Request:
    from msgspec import structs

    return structs.replace(request, timeout_s=seconds)


Act = Callable[[House, str], None]


def _newcomer(house: House, device: str) -> None:
    house.forget(device)
    house.apply(Start(device=device, at_s=0))


def _suspend(house: House, device: str) -> None:
    house.apply(Pause(device=device, at_s=0))
    house.apply(Unplug(device=device, at_s=0))


def _resume(house: House, device: str) -> None:
    house.apply(Go(device=device, at_s=0))
    house.apply(Plug(device=device, at_s=0))


_BEGIN: dict[str, Act] = {
    "suspend": _suspend,
    "address": lambda house, device: house.lan.readdress(device),
    "newcomer": lambda house, device: house.apply(Kill(device=device, at_s=0)),
    "namesake": lambda house, device: house.start_namesake(device),
    "kill": lambda house, device: house.apply(Kill(device=device, at_s=0)),
    "leave": lambda house, device: house.apply(Leave(device=device, at_s=0)),
    "stop": lambda house, device: house.apply(Pause(device=device, at_s=0)),
    "blip": lambda house, device: house.apply(Unplug(device=device, at_s=0)),
    "partition": lambda house, device: house.apply(Unplug(device=device, at_s=0)),
    "slow": lambda house, device: house.apply(
        SetRate(device=device, at_s=0, up_mbps=SLOW_MBPS, down_mbps=SLOW_MBPS)
    ),
    "lossy": lambda house, device: house.apply(
        SetLoss(device=device, at_s=0, percent=LOSS_PERCENT)
    ),
}
_END: dict[str, Act] = {
    "suspend": _resume,
    "address": lambda house, device: None,  # it keeps the new one
    "newcomer": _newcomer,
    "namesake": lambda house, device: house.stop_namesake(device),
    "kill": lambda house, device: house.apply(Start(device=device, at_s=0)),
    "leave": lambda house, device: house.apply(Start(device=device, at_s=0)),
    "stop": lambda house, device: house.apply(Go(device=device, at_s=0)),
    "blip": lambda house, device: house.apply(Plug(device=device, at_s=0)),
    "partition": lambda house, device: house.apply(Plug(device=device, at_s=0)),
    "slow": lambda house, device: house.apply(
        SetRate(device=device, at_s=0, up_mbps=50.0, down_mbps=50.0)
    ),
    "lossy": lambda house, device: house.apply(SetLoss(device=device, at_s=0, percent=0.0)),
}


def summary(history: History, broken: Sequence[str]) -> str:
    """One line about a seed."""
    answered = sum(not one.error for one in history.asked)
    ended = sum(bool(one.error) and not one.cancelled for one in history.asked)
    faults = ", ".join(one.kind for one in history.faults)
    verdict = "kept" if not broken else f"{len(broken)} BROKEN"
    return (
        f"seed {history.seed}: {answered} answered, {ended} ended by a named error; "
        f"{faults}: promises {verdict} ({history.lasted_s:.0f} s)"
    )


def row(history: History, broken: Sequence[str]) -> dict[str, Any]:
    """What a table says of a seed."""
    errors: dict[str, int] = {}
    for one in history.asked:
        if one.error and not one.cancelled:
            errors[one.error] = errors.get(one.error, 0) + 1
    before, after = history.before, history.after
    return {
        "seed": history.seed,
        "devices": len(history.devices),
        "faults": [fault.kind for fault in history.faults],
        "answered": sum(not one.error for one in history.asked),
        "errors": errors,
        "most_bytes_more": max(
            (after[name].memory_bytes - before[name].memory_bytes for name in after), default=None
        ),
        "lasted_s": round(history.lasted_s, 1),
        "broken": list(broken),
    }
