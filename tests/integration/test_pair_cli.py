"""``pair``, ``unpair`` and ``doctor`` as people run them: processes of two devices."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from astra_mesh.mesh.invitations import Invitations
from tests.forks import python
from tests.timings import patient

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),  # programs that start programs
    pytest.mark.usefixtures("forks"),
]
WAIT_S = 60.0


def command(*arguments: str, own: bool = False) -> list[str]:
    """In a fork of :mod:`tests.forks`, or in a process of its ``own`` from the start."""
    return [*([sys.executable] if own else python()), "-m", "astra_mesh", *arguments]


def environment(trust: Path) -> dict[str, str]:
    return {**os.environ, "ASTRA_MESH_TRUST": str(trust)}


def run(trust: Path, *arguments: str, status: int = 0, stdin: str | None = None) -> Any:
    """The JSON that a command prints."""
    done = subprocess.run(
        command(*arguments, "--json"),
        env=environment(trust),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=patient(WAIT_S),
        check=False,
    )
    assert done.returncode == status, done.stderr + done.stdout
    return json.loads(done.stdout.splitlines()[-1])


Started = Iterator[tuple[dict[str, Any], subprocess.Popen]]


@contextmanager
def shown_code(trust: Path, own: bool = False) -> Started:
    """A device that shows a code until the end of the ``with``."""
    with started(trust, "pair", own=own) as found:
        yield found


@contextmanager
def started(trust: Path, *arguments: str, own: bool = False) -> Started:
    """A command that runs until the end of the ``with``, and the first that it printed."""
    process = subprocess.Popen(
        command(*arguments, "--json", own=own), env=environment(trust), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline()), process
    finally:
        process.terminate()
        process.wait(patient(WAIT_S))
        process.stdout.close()


def names(listed: dict[str, Any]) -> int:
    return len(listed["devices"])


def test_two_devices_pair_and_part(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    with shown_code(one) as (shown, process):
        at = f"127.0.0.1:{shown['addresses'][0].rpartition(':')[2]}"
        assert shown["code"] in shown["uri"]
        wrong = run(two, "pair", "2345-678A", "--at", at, status=2)
        assert "mistyped" in json.dumps(wrong)
        paired = run(two, "pair", shown["code"], "--at", at)
        assert len(paired["members"]) == 2 == len(set(paired["members"])), "one name, two ids"
        assert any(f"({paired['id'][:8]})" in one for one in paired["members"])
        assert process.stdout is not None
        came = json.loads(process.stdout.readline())
        assert came["type"] == "paired"
        assert process.wait(patient(WAIT_S)) == 0
    listed = run(two, "pair", "--list")
    assert names(listed) == names(run(one, "pair", "--list")) == 2
    other = next(row["id"] for row in listed["devices"] if not row["this"])
    assert paired["id"] == other
    assert came["id"] == next(row["id"] for row in listed["devices"] if row["this"])
    assert "no other device" in json.dumps(run(two, "unpair", "nobody-here", status=2))
    assert names(run(two, "unpair", other[:12])) == 1
    assert names(run(one, "unpair", "--leave")) == 1


def test_a_device_that_leaves_tells_the_other(tmp_path: Path) -> None:
    """Both with a running peer; then, paired again, with none on the device that leaves."""
    one, two = tmp_path / "one", tmp_path / "two"
    fixed = ("--listen", "127.0.0.1", "--port", "0", "--no-api", "--no-discovery")
    with started(one, "peer", *fixed) as (here, _):
        at = f"127.0.0.1:{here['port']}"
        for again in (False, True):
            with shown_code(one) as (shown, process):
                run(two, "pair", shown["code"], "--at", at)
                assert "paired" in ended(process, 0)
            other = next(row for row in run(two, "pair", "--list")["devices"] if not row["this"])
            if again:
                left = run(two, "unpair", "--leave")
            else:
                with started(two, "peer", *fixed):
                    left = run(two, "unpair", "--leave")
            assert (left["told"], left["untold"]) == ([other["id"]], [])
            assert names(left) == names(run(one, "pair", "--list")) == 1
    nobody = run(two, "unpair", "--leave")
    assert (nobody["told"], nobody["untold"]) == ([], []), "it was alone"


FIXED = ("--listen", "127.0.0.1", "--port", "0", "--no-api", "--no-discovery")


def called(listed: dict[str, Any]) -> dict[bool, str]:
    """How this device and the other one are called."""
    return {row["this"]: row["name"] for row in listed["devices"]}


def test_devices_are_called_as_their_peers_are(tmp_path: Path) -> None:
    """Paired while both run; then the first one's peer comes again under another name."""
    one, two = tmp_path / "one", tmp_path / "two"
    with started(one, "peer", *FIXED, "--name", "kitchen") as (here, _):
        at = f"127.0.0.1:{here['port']}"
        with started(two, "peer", *FIXED, "--name", "attic"), shown_code(one) as (shown, process):
            paired = run(two, "pair", "-", "--at", at, stdin=f"{shown['code']}\n")
            assert paired["name"] == "kitchen"
            assert {one.partition(" (")[0] for one in paired["members"]} == {"kitchen", "attic"}
            assert json.loads(ended(process, 0))["name"] == "attic"
    assert called(run(one, "pair", "--list")) == {True: "kitchen", False: "attic"}
    assert called(run(two, "pair", "--list")) == {True: "attic", False: "kitchen"}
    with started(one, "peer", *FIXED, "--name", "cellar"):
        listed = run(one, "pair", "--list")
    assert called(listed) == {True: "cellar", False: "attic"}


def test_a_key_from_a_file_joins_and_is_in_no_list_of_processes(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    key = run(one, "pair", "--join-key")["key"]
    file = tmp_path / "key"
    file.write_text(f"{key}\n")
    with started(one, "peer", *FIXED, "--name", "desk") as (here, _):
        at = ("--peer", f"127.0.0.1:{here['port']}")
        options = (*FIXED, "--name", "board", *at, "--join-key-file", str(file))
        with started(two, "peer", *options, own=True) as (_, process):
            seen = Path(f"/proc/{process.pid}/cmdline")
            assert not seen.exists() or key.encode() not in seen.read_bytes()
            deadline = time.monotonic() + patient(30.0)
            while names(run(two, "pair", "--list")) < 2 and time.monotonic() < deadline:
                time.sleep(0.5)
    assert called(run(one, "pair", "--list")) == {True: "desk", False: "board"}


def place(shown: dict[str, Any]) -> str:
    return f"127.0.0.1:{shown['addresses'][0].rpartition(':')[2]}"


def ended(process: subprocess.Popen, status: int) -> str:
    """All that a command still says, once it ended."""
    said, _ = process.communicate(timeout=patient(WAIT_S))
    assert process.returncode == status, said
    return said.decode()


def test_a_guest_shows_no_code(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    with started(one, "pair", "--for", "1h") as (shown, process):
        run(two, "pair", shown["code"], "--at", place(shown))
        assert "paired" in ended(process, 0)
    for more in ([], ["--join-key"]):
        assert "limited time only" in json.dumps(run(two, "pair", *more, status=1))
    assert names(run(two, "pair", "--list")) == 2


def test_a_limit_that_would_limit_nobody_ends_both_commands(tmp_path: Path) -> None:
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    with shown_code(one) as (shown, process):
        run(two, "pair", shown["code"], "--at", place(shown))
        ended(process, 0)
    with started(three, "pair", "--for", "1m") as (shown, process):
        refused = run(two, "pair", shown["code"], "--at", place(shown), status=1)
        assert "Show the code here instead" in json.dumps(refused)
        assert "Show the code on the other device" in ended(process, 1)
    assert names(run(three, "pair", "--list")) == 1
    assert names(run(two, "pair", "--list")) == 2


def test_a_newer_window_ends_the_older_and_outlives_it(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    with shown_code(one) as (_, older), shown_code(one) as (shown, newer):
        assert "another window was opened" in ended(older, 1)
        run(two, "pair", shown["code"], "--at", place(shown))
        assert "paired" in ended(newer, 0)


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 130), (signal.SIGHUP, 130), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_a_signal_closes_the_window(tmp_path: Path, number: signal.Signals, status: int) -> None:
    with shown_code(tmp_path, own=True) as (_, process):
        assert Invitations(tmp_path).window() is not None
        process.send_signal(number)
        ended(process, status)
    assert Invitations(tmp_path).window() is None


def test_a_window_outlives_its_terminal_where_that_was_asked_for(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with shown_code(tmp_path, own=True) as (_, process):
            signal.signal(signal.SIGHUP, before)
            process.send_signal(signal.SIGHUP)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(2.0)
            assert Invitations(tmp_path).window() is not None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_window_that_was_closed_says_so(tmp_path: Path) -> None:
    with shown_code(tmp_path) as (_, process):
        Invitations(tmp_path).close()
        assert "the window was closed" in ended(process, 1)


def test_a_peer_on_loopback_names_no_address_that_does_not_answer(tmp_path: Path) -> None:
    fixed = ("--listen", "127.0.0.1", "--port", "0", "--no-api", "--no-discovery")
    with started(tmp_path, "peer", *fixed) as (peer, _), shown_code(tmp_path) as (shown, _):
        assert shown["addresses"] == peer["addresses"] == [f"127.0.0.1:{peer['port']}"]
        assert "at=" not in shown["uri"]
        assert "no other device can reach it" in shown["note"]
        assert len(run(tmp_path, "peers")["peers"]) == 1


def test_a_join_key_is_printed_once(tmp_path: Path) -> None:
    made = run(tmp_path, "pair", "--join-key", "--uses", "2", "--valid", "10m")
    assert made["valid_s"] == 600
    assert made["key"].startswith("amk-")
    kept = (tmp_path / "invitations").read_bytes()
    assert made["key"].encode() not in kept
    assert "no time" in json.dumps(run(tmp_path, "pair", "--join-key", "--valid", "x", status=2))


@pytest.mark.slow
def test_doctor(tmp_path: Path) -> None:
    found = run(tmp_path, "doctor")
    checks = {one["name"]: one["level"] for one in found["checks"]}
    assert checks["keys"] == checks["versions"] == checks["clock"] == "fine"
    assert checks["devices"] == "note"
    assert {"multicast", "port", "memory", "number formats", "firewall"} <= set(checks)
