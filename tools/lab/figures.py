"""What faults cost in time: the figures of docs/reliability.md, measured with real peers.

python -m tools.lab figures
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tools.lab import rates
from tools.lab.client import AskError
from tools.lab.history import held
from tools.lab.house import House, Say
from tools.lab.scenario import Device, Kill, Network, Options, Request, Scenario, SetRate

MODEL = "tiny-gpt2"
TOKENS = tuple(1 + (37 * i) % 500 for i in range(230))
REPEATS = 5
MEDIUM_MBPS = 8.0
AUTOMATIC = 30
IN_TURN = 15  # answers with a device, before they are without it


def ask(device: str, **options: Any) -> Request:
    """A long prompt over all peers, in full precision: much to send and to compute."""
    given: dict[str, Any] = {"use": "all", "codec": "fp16", "max_new_tokens": 1} | options
    return Request(device=device, model=MODEL, tokens=TOKENS, options=Options(**given))


def house(say: Say, devices: dict[str, Device], network: Network | None = None) -> House:
    """Peers that offer one model."""
    scenario = Scenario(devices=devices, offer=(MODEL,), network=network or Network(), meet_s=180.0)
    return House(scenario, say, timelines=False)


def usual_s(one: House, request: Request, repeats: int = REPEATS) -> float:
    """The median time of some answers, after one that does not count."""
    one.ask(request)
    return statistics.median(float(one.ask(request)["wall_s"]) for _ in range(repeats))


def killed_in_prefill(say: Say) -> str:
    """One of four peers is killed in the middle of a prefill."""
    board = Device(cpu=0.3, rate_mbps=20.0)
    names = ("attic", "cellar", "kitchen", "garage")
    ratios = []
    with house(say, dict.fromkeys(names, board)) as one:
        request = ask("attic")
        plain_s = usual_s(one, request)
        for victim in names[1:]:
            with ThreadPoolExecutor(1) as pool:
                answer = pool.submit(one.ask, request)
                time.sleep(plain_s / 2)
                one.apply(Kill(device=victim, at_s=0))
                found = answer.result()
            if found["report"]["notes"]:
                ratios.append(found["wall_s"] / plain_s)
            one.start(victim)
            one.meet()
            one.ask(request)
    shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    return f"killed in prefill: {plain_s:.2f} s undisturbed; times {shown} of it (target 2.2)"


def coordinator_lost_in_decode(say: Say) -> str:
    """The peer that answers is killed while it decodes."""
    board = Device(cpu=0.5, rate_mbps=20.0)
    found = []
    with house(say, dict.fromkeys(("attic", "cellar", "kitchen"), board)) as one:
        request = ask("attic", max_new_tokens=24, codec="fp16")
        for device in ("attic", "kitchen"):
            one.ask(ask(device))
        prefill_s = one.ask(ask("cellar"))["wall_s"]
        plain = one.ask(request)
        for _ in range(3):
            with ThreadPoolExecutor(1) as pool:
                answer = pool.submit(one.ask, request)
                time.sleep(plain["first_s"] + (plain["wall_s"] - plain["first_s"]) / 2)
                one.apply(Kill(device="attic", at_s=0))
                times = answer.result()["token_s"]
            found.append(max(b - a for a, b in itertools.pairwise(times)))
            one.start("attic")
            one.meet()
            one.ask(request)
    shown = ", ".join(f"{pause:.2f}" for pause in found)
    return (
        f"coordinator killed in decode: pauses of {shown} s; a prefill of the prompt takes "
        f"{prefill_s:.2f} s (target: 1 s more)"
    )


def halved(say: Say) -> str:
    """The rate of all cables is halved between two requests; the next plan may be the old one."""
    medians = []
    for start_mbps in (4.0, 2.0):
        board = Device(cpu=0.3, rate_mbps=start_mbps)
        with house(say, dict.fromkeys(("attic", "cellar"), board)) as one:
            request = ask("attic", codec="int8", use="auto")
            usual_s(one, request)
            for device in ("attic", "cellar"):
                one.apply(SetRate(device=device, at_s=0, up_mbps=2.0, down_mbps=2.0))
            medians.append(statistics.median(one.ask(request)["wall_s"] for _ in range(9)))
    ratio = medians[0] / medians[1]
    return (
        f"4 to 2 Mbit/s: the next requests take {medians[0]:.2f} s, {medians[1]:.2f} s where it "
        f"was 2 Mbit/s from the start ({ratio:.2f}, target 1.3; medians of 9)"
    )


def slow_third(say: Say) -> str:
    """A peer five times slower joins two equal ones, leaves and comes again."""
    fast, slow = Device(cpu=0.3), Device(cpu=0.06, start=False)
    request, used = ask("attic", use="auto", codec=""), set[int]()
    without: list[float] = []
    with_it: list[float] = []
    with house(say, {"attic": fast, "cellar": fast, "shed": slow}) as one:
        usual_s(one, request, IN_TURN)  # plans learn what the two are worth
        without.append(usual_s(one, request, IN_TURN))
        for _ in range(REPEATS):
            one.start("shed")
            one.meet()
            with_it.append(usual_s(one, request, IN_TURN))
            used.add(len(one.ask(request)["report"]["plan"]["shards"]))
            one.apply(Kill(device="shed", at_s=0))
            one.meet()
            without.append(usual_s(one, request, IN_TURN))
    ratios = [
        took / statistics.mean(beside)
        for took, beside in zip(with_it, itertools.pairwise(without), strict=True)
    ]
    took_part = " or ".join(str(number) for number in sorted(used))
    return (
        f"a third peer, five times slower: {1e3 * statistics.median(with_it):.0f} ms with it "
        f"({took_part} took part), {1e3 * statistics.median(without):.0f} ms without: "
        f"{statistics.median(ratios):.2f} of it, {min(ratios):.2f} to {max(ratios):.2f} in "
        f"{REPEATS} turns (target 1.0; medians of {IN_TURN} in each)"
    )


def weak_asked(say: Say) -> str:
    """A weak device is asked for a long text; it stays there, or it does not."""
    request = ask("attic", use="auto", codec="", max_new_tokens=100)
    staying = ask("attic", use="auto", codec="", max_new_tokens=100, stay=True)
    with house(say, {"attic": Device(cpu=0.1), "study": Device(cpu=0.8)}) as one:
        for name in ("study", "attic"):
            one.ask(ask(name))
        referred, stayed = [], []
        for _ in range(REPEATS):
            stayed.append(one.ask(staying)["wall_s"])
            referred.append(one.ask(request)["wall_s"])
        notes = one.ask(request)["report"]["notes"]
    return (
        f"100 new tokens asked of a device of 0.1 cores beside one of 0.8: "
        f"{statistics.median(referred):.2f} s, {statistics.median(stayed):.2f} s if it has to "
        f"answer itself (medians of {REPEATS}); {'; '.join(notes)}"
    )


def shared_medium(say: Say) -> str:
    """Four devices share one medium that is too slow for what they send."""
    names = ("attic", "cellar", "kitchen", "garage")
    network = Network(medium_mbps=MEDIUM_MBPS)
    with house(say, dict.fromkeys(names, Device(cpu=0.4)), network) as one:
        for name in names:
            one.ask(ask(name))
        solo_s = usual_s(one, ask("attic", use="solo"), 9)
        answers = [one.ask(ask("attic", use="auto")) for _ in range(AUTOMATIC)]
        together_s = usual_s(one, ask("attic"), REPEATS)
    used = " ".join(str(len(one["report"]["plan"]["shards"])) for one in answers)
    slower = sum(one["wall_s"] > 1.1 * solo_s for one in answers)
    last_s = statistics.median(one["wall_s"] for one in answers[-9:])
    return (
        f"four devices on one medium of {MEDIUM_MBPS:g} Mbit/s, fp16 codes: {together_s:.2f} s by "
        f"all, {solo_s:.2f} s by one; of {AUTOMATIC} automatic answers {slower} took more than 1.1 "
        f"times one device, the last 9 {last_s:.2f} s ({last_s / solo_s:.2f}); devices: {used}"
    )


def lossy(say: Say) -> str:
    """One frame in a hundred is lost between two peers at 20 Mbit/s."""
    two, times = dict.fromkeys(("attic", "cellar"), Device(rate_mbps=20.0)), []
    for percent in (0.0, 0.5):  # it applies at both ends
        with house(say, two, Network(loss_percent=percent)) as one:
            times.append(usual_s(one, ask("attic", codec=""), 15))
    return (
        f"1 % loss at 20 Mbit/s: {1e3 * times[1]:.0f} ms, {1e3 * times[0]:.0f} ms without "
        f"({times[1] / times[0]:.2f}, target 1.5; medians of 15)"
    )


def crowd(say: Say) -> str:
    """64 requests at once on three peers."""
    board = Device()
    with house(say, dict.fromkeys(("attic", "cellar", "kitchen"), board)) as one:
        names = ("attic", "cellar", "kitchen")
        for name in names:
            one.ask(ask(name))
        before = {name: held(one.peers[name].pid) for name in names}
        requests = [ask(names[i % 3], max_new_tokens=16, codec="") for i in range(64)]
        times, errors = [], 0
        with ThreadPoolExecutor(64) as pool:
            for future in [pool.submit(one.ask, request) for request in requests]:
                try:
                    times.append(future.result()["wall_s"])
                except AskError:
                    errors += 1
        time.sleep(1.0)
        more = max(
            held(one.peers[name].pid).memory_bytes - before[name].memory_bytes for name in names
        )
    times.sort()
    return (
        f"64 at once on 3 peers: {len(times)} answered, {errors} errors; median "
        f"{statistics.median(times):.1f} s, p99 {times[int(0.99 * (len(times) - 1))]:.1f} s; "
        f"{more / 2**20:.0f} MiB more in the largest peer"
    )


def fallen(say: Say) -> str:
    """100 Mbit/s become 5 in the middle of a request."""
    return rates.figure(100.0, 5.0, say)


def halved_within(say: Say) -> str:
    """The rate of all cables is halved in the middle of a request."""
    return rates.figure(6.0, 3.0, say)


FIGURES: dict[str, Callable[[Say], str]] = {
    "prefill": killed_in_prefill,
    "decode": coordinator_lost_in_decode,
    "halved": halved,
    "halved-within": halved_within,
    "fallen": fallen,
    "slow": slow_third,
    "weak": weak_asked,
    "medium": shared_medium,
    "lossy": lossy,
    "crowd": crowd,
}


def measure(names: list[str], say: Say) -> Iterator[str]:
    """One line for each figure."""
    for name in names or list(FIGURES):
        yield FIGURES[name](say)
