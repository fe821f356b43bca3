"""What TLS costs: ``python -m tools.bench.tls`` (root, an idle machine; some minutes).

Two pairs of devices in one laboratory, one pair with TLS and one without, each device with half a
core, all links at the same rate, the tokens shared evenly. Both pairs answer the same request in
turns, first one, then the other, in an order that changes; the client's own link counts too. The
figure is the median of the ratios within rounds, with an interval that holds it in 95 of 100
repetitions (bootstrap).
"""

from __future__ import annotations

import argparse
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

from tools.bench.medians import interval
from tools.bench.sizes import default_cache, ensure, random_picture
from tools.lab.house import House
from tools.lab.process import environment_of
from tools.lab.scenario import Device, Options, Request, Scenario

SECURE: Final = ("s0", "s1")
PLAIN: Final = ("p0", "p1")
PORT: Final = 7475
LARGE: Final = "gpt2-124m"  # with random weights
WARM: Final = 5  # rounds that do not count
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


class TlsHouse(House):
    """A house in which some devices' programs do without TLS."""

    def popen(
        self, device: str, argv: Sequence[str | Path], **options: Any
    ) -> subprocess.Popen[Any]:
        """As of a :class:`House`."""
        return super().popen(device, _for(device, argv), **options)

    def _start_asker(self, device: str) -> subprocess.Popen[str]:
        return self.lan.popen(
            device,
            _for(device, [sys.executable, "-m", "tools.lab.asker"]),
            env=environment_of(self, device),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )


def _for(device: str, argv: Sequence[str | Path]) -> list[str | Path]:
    """A module of Python as both pairs run it, without TLS on the devices that do without."""
    how = "plain" if device in PLAIN else "even"
    return [*argv[:2], f"tools.bench.{how}", *argv[2:]]


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


def measure(house: House, case: Case, rounds: int) -> list[tuple[float, float]]:
    """Seconds with and without TLS, of each round."""
    found = []
    for number in range(WARM + rounds):
        times = {}
        pair = (SECURE[0], PLAIN[0])
        for device in pair if number % 2 else reversed(pair):
            answer = house.ask(request(house, device, case))
            shared = [one["tokens"] for one in answer["report"]["peers"]]
            if len(shared) != 2 or abs(shared[0] - shared[1]) > 1:
                raise SystemExit(
                    f"devices answered with {shared} tokens, not two with equal shares"
                )
            times[device] = answer["wall_s"]
        if number >= WARM:
            found.append((times[SECURE[0]], times[PLAIN[0]]))
    return found


def figure(times: Sequence[tuple[float, float]]) -> Figure:
    """From the rounds of a case to its figure."""
    ratios = [secure / plain for secure, plain in times]
    return Figure(
        statistics.median(secure for secure, _ in times),
        statistics.median(plain for _, plain in times),
        statistics.median(ratios),
        *interval(ratios),
        len(times),
    )


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.tls", description=__doc__)
    parser.add_argument("--mbps", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=200, help="of each case")
    parser.add_argument("--only", default="", metavar="TEXT", help="requests with this in the name")
    parser.add_argument("--json", type=Path, help="write all times here")
    parsed = parser.parse_args(arguments)
    cases = [case for case in CASES if parsed.only in case.name]
    if not cases:
        parser.error(f"no request is called so: {', '.join(case.name for case in CASES)}")
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
    kept = {}
    with TlsHouse(scenario, print, timelines=False) as house:
        start(house)
        for case in cases:
            times = measure(house, case, parsed.rounds)
            one = figure(times)
            print(
                f"{case.name:32} with TLS {one.secure_s * 1e3:.1f} ms, "
                f"without {one.plain_s * 1e3:.1f}; "
                f"ratio {one.ratio:.3f} [{one.low:.3f}, {one.high:.3f}], {one.rounds} rounds",
                flush=True,
            )
            kept[case.name] = {"times": times, **one._asdict()}
    if parsed.json is not None:
        parsed.json.write_text(json.dumps(kept))


if __name__ == "__main__":
    main(sys.argv[1:])
