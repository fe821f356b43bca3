"""The LAN of namespaces: what crosses it, how fast, and that nothing of it stays."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.timings import patient
from tools.lab.network import NAMESPACES, Lan, sweep
from tools.lab.system import owner_of

pytestmark = pytest.mark.lab

REPO_ROOT = Path(__file__).resolve().parents[2]

ECHO_TCP = """
import socket
with socket.create_server(("0.0.0.0", 9000)) as server:
    print("ready", flush=True)
    link, _ = server.accept()
    with link:
        link.sendall(link.recv(100)[::-1])
"""

ASK_TCP = """
import socket, sys
with socket.create_connection((sys.argv[1], 9000), timeout=5) as link:
    link.sendall(b"hello")
    print(link.recv(100).decode())
"""

ECHO_UDP = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
    link.bind(("0.0.0.0", 9000))
    print("ready", flush=True)
    while True:
        data, sender = link.recvfrom(100)
        link.sendto(data[::-1], sender)
"""

ASK_UDP = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
    link.settimeout(5)
    link.sendto(b"hello", (sys.argv[1], 9000))
    print(link.recv(100).decode())
"""

HEAR_MDNS = """
import socket, struct
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
    link.bind(("", 5353))
    group = struct.pack("4s4s", socket.inet_aton("224.0.0.251"), socket.inet_aton("0.0.0.0"))
    link.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
    link.settimeout(5)
    print("ready", flush=True)
    data, sender = link.recvfrom(1500)
    print(data.hex(), sender[0])
"""

SAY_MDNS = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
    link.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
    link.sendto(bytes.fromhex(sys.argv[1]), ("224.0.0.251", 5353))
"""

# RFC 6762: a query for PTR records of _astra-mesh._tcp.local.
MDNS_QUERY = b"\0\0\0\0\0\1\0\0\0\0\0\0\x0b_astra-mesh\x04_tcp\x05local\0\0\x0c\0\1"

# Takes what comes on one connection and prints the bits per second between first and last byte.
MEASURE = """
import socket, time
with socket.create_server(("0.0.0.0", 9000)) as server:
    print("ready", flush=True)
    link, _ = server.accept()
    with link:
        got, start = len(link.recv(1)), time.monotonic()
        while data := link.recv(65536):
            got += len(data)
        print(8 * got / (time.monotonic() - start), flush=True)
"""

POUR = """
import socket, sys
with socket.create_connection((sys.argv[1], 9000), timeout=20) as link:
    link.sendall(bytes(int(sys.argv[2])))
"""

ABANDON = """
import subprocess, sys, time
from tools.lab.network import Lan
with Lan(["a"]) as lan:
    code = "import time; print('ready', flush=True); time.sleep(120)"
    sleeper = lan.popen("a", [sys.executable, "-c", code], stdout=subprocess.PIPE)
    sleeper.stdout.readline()
    print(lan.namespace("a"), sleeper.pid, flush=True)
    time.sleep(120)
"""


def namespaces() -> list[str]:
    return sorted(path.name for path in NAMESPACES.glob("*"))


def python(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]


def serve(lan: Lan, device: str, code: str) -> subprocess.Popen[Any]:
    """Starts a program and waits for its "ready"."""
    process = lan.popen(device, python(code), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def printed(process: subprocess.Popen[Any]) -> str:
    output, _ = process.communicate(timeout=patient(20))
    return str(output).strip()


def answer(lan: Lan, device: str, command: Sequence[str]) -> str:
    done = lan.run(device, command, capture_output=True, text=True, timeout=patient(20))
    assert done.returncode == 0, done.stderr
    return str(done.stdout).strip()


def throughput_mbps(lan: Lan, sender: str, receiver: str, size: int) -> float:
    sink = serve(lan, receiver, MEASURE)
    answer(lan, sender, python(POUR, lan.address(receiver), size))
    return float(printed(sink)) / 1e6


@pytest.fixture
def lan() -> Iterator[Lan]:
    with Lan(["a", "b", "c"]) as network:
        yield network


class TestTraffic:
    @pytest.mark.parametrize(("server", "client"), [(ECHO_TCP, ASK_TCP), (ECHO_UDP, ASK_UDP)])
    def test_a_datagram_or_stream_crosses_and_returns(
        self, lan: Lan, server: str, client: str
    ) -> None:
        serve(lan, "b", server)
        assert answer(lan, "a", python(client, lan.address("b"))) == "olleh"

    def test_a_multicast_query_reaches_every_other_device(self, lan: Lan) -> None:
        listeners = [serve(lan, device, HEAR_MDNS) for device in ("b", "c")]
        answer(lan, "a", python(SAY_MDNS, MDNS_QUERY.hex()))
        heard = f"{MDNS_QUERY.hex()} {lan.address('a')}"
        assert [printed(listener) for listener in listeners] == [heard, heard]

    def test_there_is_no_way_out(self, lan: Lan) -> None:
        routes = answer(lan, "a", ["ip", "-4", "route"]).splitlines()
        assert [route.split()[0] for route in routes] == ["10.77.0.0/24", "224.0.0.0/4"]

    def test_an_unplugged_device_is_not_reached_and_a_replugged_one_is(self, lan: Lan) -> None:
        serve(lan, "b", ECHO_UDP)
        lan.unplug("b")
        ask = python(ASK_UDP.replace("settimeout(5)", "settimeout(0.3)"), lan.address("b"))
        lost = lan.run("a", ask, capture_output=True)
        assert lost.returncode != 0
        lan.plug("b")
        assert answer(lan, "a", python(ASK_UDP, lan.address("b"))) == "olleh"


class TestRate:
    @pytest.mark.parametrize(("sender", "receiver"), [("a", "b"), ("b", "a")])
    def test_it_limits_both_directions(self, lan: Lan, sender: str, receiver: str) -> None:
        lan.set_rate("a", 8)
        # TCP in 1,500-byte frames carries 94 % of the line rate; the first 16 KB pass at once.
        assert 4 < throughput_mbps(lan, sender, receiver, 1_000_000) < 8.5

    def test_other_devices_and_a_lifted_limit_are_fast(self, lan: Lan) -> None:
        lan.set_rate("a", 8)
        assert throughput_mbps(lan, "b", "c", 4_000_000) > 40
        lan.set_rate("a", None)
        assert throughput_mbps(lan, "a", "b", 4_000_000) > 40

    def test_lifting_what_is_not_there_is_no_error(self, lan: Lan) -> None:
        lan.set_rate("c", None)


class TestCleanUp:
    def test_nothing_is_left_after_the_context(self) -> None:
        before = namespaces()
        with Lan(["a"]) as lan:
            process = lan.popen("a", python("import time; time.sleep(60)"))
            assert len(namespaces()) == len(before) + 2
        assert namespaces() == before
        assert process.returncode == -signal.SIGTERM

    def test_nothing_is_left_after_an_error_in_the_body(self) -> None:
        before = namespaces()
        with pytest.raises(ZeroDivisionError), Lan(["a"]):
            raise ZeroDivisionError
        assert namespaces() == before

    def test_a_process_that_ignores_the_signal_is_killed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tools.lab.system.STOP_GRACE_S", 0.2)
        stubborn = """
            import signal, time
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            print("ready", flush=True)
            time.sleep(60)
        """
        with Lan(["a"]) as lan:
            process = serve(lan, "a", stubborn)
        assert process.returncode == -signal.SIGKILL

    def test_a_sweep_removes_what_a_killed_owner_left(self) -> None:
        command = python(ABANDON)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPO_ROOT) as owner:
            assert owner.stdout is not None
            namespace, sleeper = owner.stdout.readline().split()
            owner.kill()
        assert namespace in namespaces()
        assert namespace in sweep()
        assert namespace not in namespaces()
        assert not _runs(int(sleeper))

    def test_a_sweep_leaves_living_owners_and_other_namespaces_alone(self, lan: Lan) -> None:
        assert lan.namespace("a") not in sweep()
        assert lan.namespace("a") in namespaces()
        assert owner_of("someone-elses") is None

    def test_a_lan_is_entered_once(self, lan: Lan) -> None:
        with pytest.raises(RuntimeError, match="once"):
            lan.__enter__()


def _runs(pid: int) -> bool:
    """Whether the process runs; one that was killed and not yet reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"
