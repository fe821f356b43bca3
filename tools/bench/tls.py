"""What TLS costs: ``python -m tools.bench.tls`` (root, an idle machine; some minutes).

Two pairs of devices in one laboratory, one pair with TLS and one without, each device with half a
core, all links at the same rate, the tokens shared evenly. Both pairs answer the same request in
turns, first one, then the other, in an order that changes; the client's own link counts too, which
stays open (``--anew``: it is made before each request, whose time begins once it is there). Two
pairs that do the same differ by some per cent for as long as they live, so there are several
laboratories, one after the other, and ``--control`` gives TLS to both pairs. The figure is the
median of the ratios within rounds, with an interval that holds it in 95 of 100 repetitions
(bootstrap, of whole laboratories). Beside it, what both peers' processors worked more in a request.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from tools.bench import machine
from tools.bench.medians import interval_of_groups
from tools.bench.sizes import default_cache, ensure, random_picture
from tools.lab.asker import KEEP
from tools.lab.house import House
from tools.lab.process import environment_of
from tools.lab.scenario import Device, Options, Request, Scenario

SECURE: Final = ("s0", "s1")
PLAIN: Final = ("p0", "p1")
PORT: Final = 7475
LARGE: Final = "gpt2-124m"  # with random weights
WARM: Final = 5  # rounds of a laboratory that do not count
_MEET_S: Final = 120.0


class Case(NamedTuple):
    """A request."""

    model: str
    rate: int  # bits per token and block; 0: fp16
    tokens: int = 0  # of the prompt; 0: a picture

    @property
    def name(self) -> str:
        """For people."""
        size = f"{self.tokens} tokens" if self.tokens else "a picture"
        return f"{self.model}, {size}, {f'{self.rate} bits' if self.rate else 'fp16'}"


CASES: Final = (
    Case("vit-tiny", 0),
    Case("vit-tiny", 64),
    Case("tiny-gpt2", 0, 124),
    Case("tiny-gpt2", 64, 124),
    Case(LARGE, 128, 512),
)


class Figure(NamedTuple):
    """Of one case."""

    secure_s: float  # median
    plain_s: float
    ratio: float  # median of the ratios within rounds
    low: float
    high: float
    rounds: int
    more_cpu_s: float


class TlsHouse(House):
    """A house in which some devices' programs do without TLS, and clients keep their links."""

    anew = False  # the links of clients, for each request
    control = False  # all programs use TLS

    def popen(
        self, device: str, argv: Sequence[str | Path], **options: Any
    ) -> subprocess.Popen[Any]:
        """As of a :class:`House`."""
        return super().popen(device, self._for(device, argv), **options)

    def _start_asker(self, device: str) -> subprocess.Popen[str]:
        return self.lan.popen(
            device,
            self._for(
                device, [sys.executable, "-m", "tools.lab.asker", *([] if self.anew else [KEEP])]
            ),
            env=environment_of(self, device),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def _for(self, device: str, argv: Sequence[str | Path]) -> list[str | Path]:
        return _for(device, argv) if not self.control else _for(SECURE[0], argv)


def _for(device: str, argv: Sequence[str | Path]) -> list[str | Path]:
    """A module of Python as both pairs run it, without TLS on the devices that do without."""
    how = "plain" if device in PLAIN else "even"
    return [*argv[:2], f"tools.bench.{how}", *argv[2:]]


class Round(NamedTuple):
    """One request of each pair: seconds, and seconds of both peers' processors."""

    secure_s: float
    plain_s: float
    secure_cpu_s: float = 0.0
    plain_cpu_s: float = 0.0


def start(house: House) -> None:
    """All peers, each pair by itself, once their links are measured."""
    for pair in (SECURE, PLAIN):
        for index, device in enumerate(pair):
            others = [f"--peer={house.lan.address(one)}:{PORT}" for one in pair[:index]]
            house.start(device, f"--port={PORT}", "--no-discovery", *others)
    for pair in (SECURE, PLAIN):
        house.meet(set(pair))
    deadline = time.monotonic() + _MEET_S
    while not all(
        other["self"] or other["send_bps"]
        for device in (*SECURE, *PLAIN)
        for other in house.view(device)
    ):
        if time.monotonic() > deadline:
            raise SystemExit(f"the links were not measured within {_MEET_S:g} s")
        time.sleep(0.25)


def request(house: House, device: str, case: Case) -> Request:
    """One picture, or one token after a prompt, by both devices."""
    options = Options(use="all", max_peers=2, codec="" if case.rate else "fp16", rate=case.rate)
    if not case.tokens:
        picture = house.folder / "picture.jpeg"
        if not picture.exists():
            picture.write_bytes(random_picture(224))
        return Request(
            device=device, model=case.model, task="classify", image=str(picture), options=options
        )
    tokens = tuple(random.Random(1).choices(range(200), k=case.tokens))
    options = msgspec.structs.replace(options, max_new_tokens=1)
    return Request(device=device, model=case.model, tokens=tokens, options=options)


def measure(house: House, case: Case, rounds: int) -> list[Round]:
    """With and without TLS, each round."""
    found = []
    for number in range(WARM + rounds):
        times, worked = {}, {}
        for pair in (SECURE, PLAIN) if number % 2 else (PLAIN, SECURE):
            device, before = pair[0], _worked_s(house, pair)
            answer = house.ask(request(house, device, case))
            shared = [one["tokens"] for one in answer["report"]["peers"]]
            if len(shared) != 2 or abs(shared[0] - shared[1]) > 1:
                raise SystemExit(
                    f"devices answered with {shared} tokens, not two with equal shares"
                )
            times[pair], worked[pair] = answer["wall_s"], _worked_s(house, pair) - before
        if number >= WARM:
            found.append(Round(times[SECURE], times[PLAIN], worked[SECURE], worked[PLAIN]))
    return found


def _worked_s(house: House, pair: Sequence[str]) -> float:
    """Seconds that both peers' processors have worked."""
    used = house.usage()
    return sum(used[device].used_s for device in pair)


def figure(houses: Sequence[Sequence[Round]]) -> Figure:
    """From the rounds of a case in each laboratory to its figure."""
    rounds = list(itertools.chain.from_iterable(houses))
    ratios = [[one.secure_s / one.plain_s for one in house] for house in houses]
    more = [statistics.mean(o.secure_cpu_s - o.plain_cpu_s for o in house) for house in houses]
    return Figure(
        statistics.median(one.secure_s for one in rounds),
        statistics.median(one.plain_s for one in rounds),
        statistics.median(itertools.chain.from_iterable(ratios)),
        *interval_of_groups(ratios),
        len(rounds),
        statistics.mean(more),
    )


def main(arguments: Sequence[str]) -> int:
    """The command line; 3 where there can be no laboratory."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.tls", description=__doc__)
    parser.add_argument("--mbps", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=40, help="of each case and laboratory")
    parser.add_argument("--houses", type=int, default=6, help="laboratories")
    parser.add_argument("--anew", action="store_true", help="a client's link for each request")
    parser.add_argument("--only", default="", metavar="TEXT", help="requests with this in the name")
    parser.add_argument("--control", action="store_true", help="TLS for both pairs")
    parser.add_argument("--json", type=Path, help="write all times here")
    parsed = parser.parse_args(arguments)
    cases = [case for case in CASES if parsed.only in case.name]
    if not cases:
        parser.error(f"no request is called so: {', '.join(case.name for case in CASES)}")
    if status := machine.hindrance(busy=True, lab=True):
        return status
    device = Device(
        cpu=0.5,
        threads=1,
        options=("--dtype", "fp32"),
        up_mbps=parsed.mbps,
        down_mbps=parsed.mbps,
        start=False,
    )
    scenario = Scenario(
        devices=dict.fromkeys((*SECURE, *PLAIN), device),
        offer=("vit-tiny", "tiny-gpt2", str(ensure(LARGE, default_cache()) / LARGE)),
    )
    times: dict[Case, list[list[Round]]] = {case: [] for case in cases}
    for number in range(parsed.houses):
        with TlsHouse(scenario, print, timelines=False) as house:
            house.anew, house.control = parsed.anew, parsed.control
            start(house)
            for case in cases:
                rounds = parsed.rounds // (4 if case.model == LARGE else 1)
                times[case].append(measure(house, case, rounds))
                print(f"{number + 1} of {parsed.houses}: {case.name:32}", end=" ")
                print(_line(figure(times[case][-1:])), flush=True)
    for case in cases:
        print(f"all: {case.name:32} {_line(figure(times[case]))}")
    if parsed.json is not None:
        kept = {
            case.name: {"times": times[case], **figure(times[case])._asdict()} for case in cases
        }
        parsed.json.write_text(json.dumps(kept))
    return 0


def _line(one: Figure) -> str:
    return (
        f"with TLS {one.secure_s * 1e3:.1f} ms, without {one.plain_s * 1e3:.1f}; "
        f"ratio {one.ratio:.3f} [{one.low:.3f}, {one.high:.3f}], {one.rounds} rounds; "
        f"processors {one.more_cpu_s * 1e3:+.2f} ms"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
