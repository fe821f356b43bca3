"""How exact the laboratory is on this machine: rates, delays, losses, quotas, measured from inside.

The figures of docs/lab.md come from ``python -m tools.lab measure``; the tests use the same
functions.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from tools.lab.cpu import CpuGroup, make_group
from tools.lab.network import Lan, require_lab
from tools.lab.system import LabError, new_stem

PORT = 9000
TCP_SHARE = 1448 / 1514  # payload in a full frame, with timestamps

# Takes what comes on one connection and prints bits and seconds between first and last byte.
_SINK = f"""
import socket, time
with socket.create_server(("0.0.0.0", {PORT})) as server:
    print("ready", flush=True)
    link, _ = server.accept()
    with link:
        got, start = len(link.recv(1)), time.monotonic()
        while data := link.recv(65536):
            got += len(data)
        print(8 * got / (time.monotonic() - start), flush=True)
"""

_POUR = f"""
import socket, sys
with socket.create_connection((sys.argv[1], {PORT}), timeout=60) as link:
    link.sendall(bytes(int(sys.argv[2])))
"""

_ECHO = f"""
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
    link.bind(("0.0.0.0", {PORT}))
    print("ready", flush=True)
    while True:
        data, sender = link.recvfrom(100)
        link.sendto(data, sender)
"""

_PING = f"""
import socket, sys, time
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
    link.settimeout(float(sys.argv[3]))
    for number in range(int(sys.argv[2])):
        sent = time.monotonic()
        try:
            link.sendto(str(number).encode(), (sys.argv[1], {PORT}))
            while link.recv(100) != str(number).encode():
                pass
            print((time.monotonic() - sent) * 1e3)
        except OSError:  # a timeout, or no answer to the question for the other's address
            print("lost")
        time.sleep(0.001)
"""

# Computes for some seconds; prints the share of a core that it got, and the longest pause in ms.
_BURN = """
import sys, time
began = last = time.monotonic()
used, pause = time.process_time(), 0.0
while last - began < float(sys.argv[1]):
    now = time.monotonic()
    pause, last = max(pause, now - last), now
print((time.process_time() - used) / (last - began), pause * 1e3)
"""


class Pings(NamedTuple):
    """Round trips of small datagrams."""

    times_ms: list[float]
    lost: int

    def quantile(self, share: float) -> float:
        """The time below which this share of the answers came, ms."""
        return sorted(self.times_ms)[int(share * (len(self.times_ms) - 1))]


def throughput_mbps(lan: Lan, sender: str, receiver: str, size: int) -> float:
    """Payload of one TCP connection that carries ``size`` bytes, Mbit/s."""
    sink = _serve(lan, receiver, _SINK)
    done = lan.run(sender, _python(_POUR, lan.address(receiver), size), capture_output=True)
    if done.returncode != 0:
        raise LabError(f"nothing flows from {sender} to {receiver}: {done.stderr.decode()}")
    output, _ = sink.communicate(timeout=20)
    return float(output) / 1e6


def ping(lan: Lan, sender: str, receiver: str, count: int, timeout_s: float = 1.0) -> Pings:
    """One datagram after the other, there and back."""
    echo = _serve(lan, receiver, _ECHO)
    argv = _python(_PING, lan.address(receiver), count, timeout_s)
    done = lan.run(sender, argv, capture_output=True, text=True, check=True)
    echo.kill()
    echo.communicate()
    lines = done.stdout.split()
    return Pings([float(line) for line in lines if line != "lost"], lines.count("lost"))


def burn(group: CpuGroup, seconds: float) -> tuple[float, float]:
    """The share of a core that a busy program in a group got, and its longest pause in ms."""
    into = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group.door)]
    argv = [*into, *_python(_BURN, seconds)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    share, pause = done.stdout.split()
    return float(share), float(pause)


def _python(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code, *map(str, arguments)]


def _serve(lan: Lan, device: str, code: str) -> subprocess.Popen[Any]:
    process = lan.popen(device, _python(code), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise LabError(f"a program on {device} did not start")
    return process


def measure() -> Iterator[str]:
    """Lines of text, as they are measured; about a minute.

    Raises:
        LabUnavailableError: this machine or user can have no laboratory.
    """
    require_lab()
    yield from _measure_quotas()
    with Lan(["a", "b", "c"], delayed=["c"], medium=True) as lan:
        yield from _measure_rates(lan)
        yield from _measure_delays(lan)
        yield from _measure_losses(lan)


def _measure_quotas() -> Iterator[str]:
    for cores in (1.0, 0.5, 0.25):
        group = make_group(new_stem(), "burn", cores)
        try:
            share, pause = burn(group, 3.0)
        finally:
            group.close()
        yield f"quota {cores:g} cores: {share:.3f} used, longest pause {pause:.0f} ms"


def _measure_rates(lan: Lan) -> Iterator[str]:
    for mbps in (1.0, 10.0, 100.0):
        size = int(mbps * 400_000)
        lan.set_rate("a", mbps)
        for name, ends in (("up", ("a", "b")), ("down", ("b", "a"))):
            yield f"rate {mbps:g} Mbit/s {name}: {_line_rate(lan, *ends, size):.2f}"
        lan.set_rate("a", None)
    lan.set_medium(10.0)
    yield f"medium 10 Mbit/s: {_line_rate(lan, 'a', 'b', 4_000_000):.2f}"
    lan.set_medium(None)
    free = throughput_mbps(lan, "a", "b", 100_000_000)
    yield f"no rate: {free:.0f} Mbit/s"


def _line_rate(lan: Lan, sender: str, receiver: str, size: int) -> float:
    return throughput_mbps(lan, sender, receiver, size) / TCP_SHARE


def _measure_delays(lan: Lan) -> Iterator[str]:
    for delay_ms, jitter_ms in ((0.0, 0.0), (5.0, 0.0), (20.0, 0.0), (20.0, 5.0)):
        lan.set_delay("c", delay_ms, jitter_ms)
        found = ping(lan, "c", "b", 200)
        low, middle, high = (found.quantile(share) for share in (0.05, 0.5, 0.95))
        about = f"delay {delay_ms:g} ms, jitter {jitter_ms:g} ms"
        yield f"{about}: {middle:.2f} ms there and back (90 %: {low:.2f} to {high:.2f})"
    plain = statistics.median(ping(lan, "a", "b", 200).times_ms)
    yield f"a cable without delay: {plain:.2f} ms there and back"
    for mbps in (10.0, 20.0):
        lan.set_delay("c", 20.0)
        lan.set_rate("c", mbps)
        before = lan.delay_cpu_s()
        rate = _line_rate(lan, "c", "b", int(mbps * 400_000))
        used = (lan.delay_cpu_s() - before) / (mbps * 400_000 * 8 / 1e6 / rate)
        yield f"delay 20 ms at {mbps:g} Mbit/s: {rate:.2f}, {used:.1%} of a core"
    lan.set_rate("c", None)
    lan.set_delay("c", 0.0)


def _measure_losses(lan: Lan) -> Iterator[str]:
    for percent in (1.0, 10.0):
        lan.set_loss("b", percent)
        lost = ping(lan, "a", "b", 1000, 0.05).lost
        both = 100 * (1 - (1 - percent / 100) ** 2)
        yield f"loss {percent:g} % each way: {lost / 10:.1f} % there and back, {both:.1f} expected"
