"""Runs a scenario on a :class:`House`: its requests and its schedule; records what happened."""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any

import msgspec

from tools.lab import record
from tools.lab.client import AskError
from tools.lab.house import House, Say
from tools.lab.offered import check_requests
from tools.lab.scenario import Event, Request, Scenario
from tools.lab.system import LabError, undisturbed

Lane = list[tuple[int, Request]]  # requests with their numbers, one after the other


def run(scenario: Scenario, say: Say = lambda text: None) -> dict[str, Any]:
    """Run a scenario to its end: the document of docs/lab.md, whose ``failed`` says how it went.

    An interrupt while it runs ends it, too: the document, without timelines, has ``interrupted``.

    Raises:
        LabError: it could not be set up.
    """
    check_requests(scenario)
    began = datetime.datetime.now(datetime.UTC)
    busy = record.machine()
    made = time.monotonic()
    found: dict[str, Any] = {}
    try:
        with House(scenario, say) as house:
            met_s = time.monotonic() - made
            count = len(house.running())
            running, interrupted = _Run(house, say), False
            try:
                if count:
                    peers = "peers have" if count != 1 else "peer has"
                    say(f"{count} {peers} met after {met_s:.1f} s")
                running.run()
                record.attach_timelines(house, running.requests, running.zero)
            except KeyboardInterrupt:
                interrupted = True
            with undisturbed():
                found = _document(house, running, interrupted)
                found |= {"began": began.isoformat(timespec="seconds"), "machine": busy}
                found["met_s"] = round(met_s, 3)
    except KeyboardInterrupt:  # once more, while all was cleared away
        if not found:
            raise
        found["interrupted"] = True
    return found


def _document(house: House, running: _Run, interrupted: bool) -> dict[str, Any]:
    """What happened, and the peers' logs if it failed."""
    found = {
        "format": record.FORMAT,
        "versions": record.versions(),
        "scenario": msgspec.to_builtins(house.scenario),
        "took_s": round(time.monotonic() - running.zero, 3),
        "failed": running.failed,
        "interrupted": interrupted,
        "events": sorted(running.events, key=lambda event: float(event["began_s"])),
        "requests": running.requests,
        "devices": record.devices(house),
    }
    return found | ({"logs": house.logs()} if running.failed else {})


class _Run:
    """The part between meeting and leaving. Times are seconds after ``zero``."""

    def __init__(self, house: House, say: Say) -> None:
        self.house, self._say = house, say
        self.zero = time.monotonic()
        self.failed = False
        self.events: list[dict[str, Any]] = []
        self.requests: list[dict[str, Any]] = []
        self._over = threading.Event()

    def run(self) -> None:
        """All lanes and the schedule at once; an interrupt ends them."""
        lanes = lanes_of(self.house.scenario.requests)
        work: list[Callable[[], None]] = [self._run_schedule]
        work += [lambda lane=lane: self._run_lane(lane) for lane in lanes]  # type: ignore[misc]
        try:
            with ThreadPoolExecutor(len(work), thread_name_prefix="lab-run") as pool:
                started: list[Future[None]] = [pool.submit(one) for one in work]
                try:
                    wait(started, return_when=FIRST_EXCEPTION)
                except BaseException:
                    self._over.set()
                    self.house.hush()  # whoever waits for an answer gets none
                    raise
                finally:
                    self._over.set()
        finally:
            self.requests.sort(key=lambda one: (one["number"], one["turn"]))
        for future in started:
            future.result()

    def _now(self) -> float:
        return time.monotonic() - self.zero

    def _wait_until(self, at_s: float) -> bool:
        """Whether the run goes on by then."""
        return not self._over.wait(max(0.0, at_s - self._now()))

    def _tell(self, text: str) -> None:
        self._say(f"{self._now():7.2f} s  {text}")

    # --- the schedule -----------------------------------------------------------------------------

    def _run_schedule(self) -> None:
        for at_s, event in self.house.scenario.schedule():
            if not self._wait_until(at_s):
                return
            self._apply(at_s, event)

    def _apply(self, at_s: float, event: Event) -> None:
        found = {**msgspec.to_builtins(event), "at_s": round(at_s, 4)}
        found["began_s"] = round(self._now(), 4)
        try:
            self.house.apply(event)
        except LabError as error:
            found["error"] = str(error)
            self.failed = True
        found["done_s"] = round(self._now(), 4)
        self.events.append(found)
        self._tell(_words(found))

    # --- requests ---------------------------------------------------------------------------------

    def _run_lane(self, lane: Lane) -> None:
        first = lane[0][1]
        if not self._wait_until(first.at_s or 0.0):
            return
        for number, request in lane:
            for turn in range(request.repeat):
                if not self._wait_until(self._now() + request.pause_s):
                    return
                self._ask(number, turn, request)

    def _ask(self, number: int, turn: int, request: Request) -> None:
        found: dict[str, Any] = {"number": number, "turn": turn, "from": request.device}
        found |= {"task": request.task, "model": request.model}
        asked = self._now()
        try:
            answer = self.house.ask(request)
            found |= {"began_s": round(answer.pop("began") - self.zero, 6), **answer}
        except AskError as error:
            found |= {"began_s": round(asked, 6), "wall_s": round(self._now() - asked, 6)}
            code, text = error.code, str(error)
            if self._over.is_set():
                code, text = "interrupted", "the run ended before the answer"
            found["error"] = {"code": code, "message": text}
            self.failed = self.failed or not (request.may_fail or self._over.is_set())
        self.requests.append(found)
        self._tell(f"{request.device} {request.task} {request.model}: {outcome(found)}")


def lanes_of(requests: Sequence[Request]) -> list[Lane]:
    """A request with a time of its own starts a lane; those without one follow in it."""
    lanes: list[Lane] = []
    for number, request in enumerate(requests):
        if request.at_s is not None or not lanes:
            lanes.append([])
        lanes[-1].append((number, request))
    return lanes


def outcome(request: dict[str, Any]) -> str:
    """One line of progress for an answer."""
    if "error" in request:
        return f"error {request['error']['code']}: {request['error']['message']}"
    report = request["report"]
    peers = len([shard for shard in report["peers"] if shard["tokens"]])
    sent = sum(sum(one["sent_bytes"].values()) for one in report["peers"])
    times = f"{report['actual_s'] * 1e3:.1f} ms, predicted {report['predicted_s'] * 1e3:.1f} ms"
    return f"{times}; {peers} peers, {report['bits_per_token']:g} bits, {sent} bytes"


def _words(event: dict[str, Any]) -> str:
    """One line of progress for an event."""
    hidden = ("action", "device", "at_s", "jitter_s", "began_s", "done_s")
    more = [f"{name} {value}" for name, value in event.items() if name not in hidden]
    return " ".join([event["action"], event.get("device", ""), *more]).strip()
