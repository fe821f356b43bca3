"""What floods of connections do to a request: ``python -m tools.bench.flood`` (root, an idle
machine, some minutes).

Two devices of the laboratory answer one request after the other; a third, which no other was paired
with, attacks the peer that plans it in every second one. Each pair is one request without an attack
and one with it, in an order that changes. The figure is the median of the ratios within pairs, with
an interval that holds it in 95 of 100 repetitions (bootstrap). Nothing comes from loopback, so all
limits for a host hold.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from tools.bench import machine
from tools.bench.attacker import KINDS
from tools.bench.medians import interval
from tools.lab.house import House
from tools.lab.scenario import Device, Options, Request, Scenario
from tools.lab.system import batch

PEERS: Final = ("near", "far")
STRANGER: Final = "stranger"
MEMBER: Final = "slow"  # the kind of attack with a member's key
PORT: Final = 7475
TARGET: Final = 1.2  # times the quiet request's time
WARM: Final = 3  # requests that do not count
REST_S: Final = 2.5  # after each request: the peer gets rid of what is left, hosts' turns come back
AHEAD_S: Final = 0.5  # that an attack runs before the request begins
_SPARE: Final = 100  # the stranger's further addresses begin here; devices have 1, 2, 3
_MEET_S: Final = 120.0


class Pair(NamedTuple):
    """One request without an attack and one with it."""

    quiet_s: float
    attacked_s: float
    opened: int  # connections that the attacker began
    handshakes: int  # and those in which TLS was complete
    quiet_cpu_s: float  # processor time of the attacked peer's device
    attacked_cpu_s: float


class Figure(NamedTuple):
    """Of one kind of attack; times are medians."""

    quiet_s: float
    attacked_s: float
    ratio: float
    low: float
    high: float
    per_s: float  # connections that the attacker began

    @property
    def told(self) -> str:
        """Of the target."""
        if self.ratio > TARGET:
            return "more than the target"
        return "within the target" if self.high <= TARGET else "within it by the median only"


def figure(pairs: Sequence[Pair]) -> Figure:
    """From the pairs of a kind to its figure."""
    ratios = [one.attacked_s / one.quiet_s for one in pairs]
    return Figure(
        statistics.median(one.quiet_s for one in pairs),
        statistics.median(one.attacked_s for one in pairs),
        statistics.median(ratios),
        *interval(ratios),
        sum(one.opened for one in pairs) / sum(one.attacked_s + AHEAD_S for one in pairs),
    )


def scenario(cores: float | None) -> Scenario:
    """Two peers, with so many cores each (None: no quota), and a stranger."""
    peer = Device(cpu=cores, threads=1, options=("--dtype", "fp32"), start=False)
    devices = {**dict.fromkeys(PEERS, peer), STRANGER: Device(start=False)}
    return Scenario(devices=devices, offer=("tiny-gpt2",))


def start(house: House) -> None:
    """The peers, until they know how fast their link is."""
    for index, device in enumerate(PEERS):
        others = [f"--peer={house.lan.address(one)}:{PORT}" for one in PEERS[:index]]
        house.start(device, f"--port={PORT}", "--no-discovery", *others)
    house.meet()
    deadline = time.monotonic() + _MEET_S
    while not all(one["self"] or one["send_bps"] for device in PEERS for one in house.view(device)):
        if time.monotonic() > deadline:
            raise SystemExit(f"the link was not measured within {_MEET_S:g} s")
        time.sleep(0.25)


def give_addresses(house: House) -> list[str]:
    """Gives the stranger as many as a kind of attack comes from, and a last one for those with a
    member's key: from there more is let in.
    """
    own = house.lan.address(STRANGER)
    net = own.rpartition(".")[0]
    more = [f"{net}.{_SPARE + n}" for n in range(max(k.addresses for k in KINDS.values()))]
    lines = [f"address add {one}/24 dev eth0" for one in more]
    batch(house.lan.namespace(STRANGER), lines)
    return [own, *more]


@contextmanager
def attacker(house: House, kind: str, addresses: list[str]) -> Iterator[subprocess.Popen[str]]:
    """The stranger's program, which waits for its line."""
    argv = [sys.executable, "-m", "tools.bench.attacker", kind]
    argv += [house.lan.address(PEERS[0]), str(PORT), "--trust", str(house.trust_folder)]
    strange = addresses[: KINDS[kind].addresses]
    argv += [f"--source={one}" for one in (addresses[-1:] if kind == MEMBER else strange)]
    pipe = subprocess.PIPE
    process = house.popen(STRANGER, argv, stdin=pipe, stdout=pipe, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            stream.close()


def asked(house: House, tokens: int) -> tuple[float, float]:
    """Seconds of one request, and of the attacked device's processor."""
    options = Options(use="all", max_peers=2, max_new_tokens=tokens)
    text = "To be, or not to be, that is the question: " * 4
    before = _used_s(house)
    found = house.ask(
        Request(device=PEERS[0], model="tiny-gpt2", text=text, options=options, timeout_s=300.0)
    )
    if len(found["report"]["peers"]) != len(PEERS):
        raise SystemExit("the request was not answered by both peers")
    wall_s: float = found["wall_s"]
    return wall_s, _used_s(house) - before


def _used_s(house: House) -> float:
    """Processor time of the attacked device so far; 0 where it has no quota to count by."""
    usage = house.usage()
    return usage[PEERS[0]].used_s if usage else 0.0


@contextmanager
def attacked(process: subprocess.Popen[str], done: dict[str, int]) -> Iterator[None]:
    """While the stranger attacks; what it did is in ``done`` at the end."""
    _tell(process, "go")
    time.sleep(AHEAD_S)
    yield
    _tell(process, "stop")
    assert process.stdout is not None
    done.update(json.loads(process.stdout.readline()))


def _tell(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{word}\n")
    process.stdin.flush()


def measure(house: House, kind: str, addresses: list[str], pairs: int, tokens: int) -> list[Pair]:
    """The pairs of one kind of attack."""
    found = []
    with attacker(house, kind, addresses) as process:
        for number in range(pairs):
            times: dict[bool, tuple[float, float]] = {}
            done: dict[str, int] = {}
            for under_attack in (False, True) if number % 2 else (True, False):
                with attacked(process, done) if under_attack else nullcontext():
                    times[under_attack] = asked(house, tokens)
                time.sleep(REST_S)
            (quiet_s, quiet_cpu_s), (attacked_s, attacked_cpu_s) = times[False], times[True]
            counts = done["opened"], done["handshakes"]
            found.append(Pair(quiet_s, attacked_s, *counts, quiet_cpu_s, attacked_cpu_s))
    return found


def main(arguments: Sequence[str]) -> int:
    """The command line; 3 where there can be no laboratory."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.flood", description=__doc__)
    parser.add_argument("--kind", action="append", choices=KINDS, help="default: all")
    parser.add_argument("--pairs", type=int, default=20, help="of each kind")
    parser.add_argument("--tokens", type=int, default=128, help="that a request makes")
    parser.add_argument(
        "--cores", type=float, default=0.5, help="of each peer's device; 0: no quota"
    )
    parser.add_argument("--json", type=Path, help="write all times here")
    parsed = parser.parse_args(arguments)
    if status := machine.hindrance(busy=True, lab=True):
        return status
    busy = machine.busy_share()
    kept: dict[str, Any] = {}
    with House(scenario(parsed.cores or None), print, timelines=False) as house:
        start(house)
        addresses = give_addresses(house)
        for _ in range(WARM):
            asked(house, parsed.tokens)
        for kind in parsed.kind or KINDS:
            pairs = measure(house, kind, addresses, parsed.pairs, parsed.tokens)
            one = figure(pairs)
            print(
                f"{kind:15} {one.quiet_s:.3f} s, attacked {one.attacked_s:.3f} s; ratio "
                f"{one.ratio:.3f} [{one.low:.3f} to {one.high:.3f}], {len(pairs)} pairs, "
                f"{one.per_s:.0f} connections/s, {one.told}",
                flush=True,
            )
            kept[kind] = {
                "what": KINDS[kind].text,
                **one._asdict(),
                "pairs": [pair._asdict() for pair in pairs],
            }
    if parsed.json is not None:
        document = {
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine.facts(),
            "busy_before": round(busy, 3),
            "cores_of_a_peer": parsed.cores,
            "tokens": parsed.tokens,
            "kinds": kept,
        }
        parsed.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
