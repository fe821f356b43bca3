"""Whole scenarios with real peers: what is recorded, and that nothing is left, however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.made import made_by
from tests.timings import patient
from tools.lab import cpu, runner
from tools.lab.client import AskError
from tools.lab.house import House, sweep
from tools.lab.scenario import (
    Device,
    Kill,
    Network,
    Options,
    Request,
    Scenario,
    SetDelay,
    SetRate,
    Start,
)
from tools.lab.system import LabError

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(180)]

REPO_ROOT = Path(__file__).resolve().parents[2]
ALL = Options(use="all", max_new_tokens=4)
PROMPT = "To be, or not to be, that is the question: whether it is nobler in the mind to suffer"


def ask(device: str, options: Options = ALL, **more: Any) -> Request:
    return Request(device=device, model="tiny-gpt2", text=PROMPT, options=options, **more)


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    """A run with a quota, a delay, a change and a kill."""
    needs_quota = cpu.unavailable_reason() is None
    board = Device(cpu=0.7 if needs_quota else None, rate_mbps=20.0)
    scenario = Scenario(
        devices={"attic": board, "cellar": board},
        offer=("tiny-gpt2",),
        network=Network(delay_ms=5.0),
        requests=(ask("attic", repeat=2), ask("attic", at_s=10.0, may_fail=True, repeat=2)),
        events=(
            SetRate(at_s=8.0, device="cellar", up_mbps=5.0),
            SetDelay(at_s=8.5, device="cellar", delay_ms=1.0),
            Kill(at_s=9.0, device="cellar"),
            Kill(at_s=9.2, device="cellar"),
        ),
        meet_s=patient(60),
    )
    return json.loads(json.dumps(runner.run(scenario)))


@pytest.mark.xdist_group("result")  # made once
class TestResult:
    def test_it_says_where_and_with_what_it_was_made(self, result: dict[str, Any]) -> None:
        assert {"astra_mesh", "python", "torch", "kernel"} <= result["versions"].keys()
        assert result["machine"]["cores"] == os.cpu_count()
        assert result["scenario"]["device"]["attic"]["rate_mbps"] == 20.0
        assert result["met_s"] > 0

    def test_the_answers_have_plan_and_report(self, result: dict[str, Any]) -> None:
        first = result["requests"][0]
        assert len(first["report"]["peers"]) == 2
        assert first["tokens"]
        assert 0 < first["first_s"] <= first["wall_s"]
        assert first["report"]["predicted_s"] > 0

    def test_each_has_the_times_of_all_peers(self, result: dict[str, Any]) -> None:
        (attempt,) = result["requests"][1]["attempts"]
        left, right = attempt["peers"]
        assert (left["device"], right["device"]) == ("cellar", "attic")
        assert [block["block"] for block in right["blocks"]] == list(range(6))
        for sent, got in zip(left["blocks"][1:], right["blocks"][1:], strict=True):
            (part,) = got["parts"]
            assert part["from"] == "cellar"
            assert sent["encoded_ns"] <= sent["sent_ns"]
            delay_ns = part["arrived_ns"] - sent["encoded_ns"]
            assert 5e6 <= delay_ns < patient(200) * 1e6
            assert part["arrived_ns"] <= part["attended_ns"] <= got["done_ns"]

    def test_after_the_kill_one_peer_answers(self, result: dict[str, Any]) -> None:
        for request in result["requests"][2:]:
            assert len(request["report"]["peers"]) == 1
            assert len(request["attempts"][-1]["peers"]) == 1

    def test_events_are_recorded_also_those_that_fail(self, result: dict[str, Any]) -> None:
        names = [event["action"] for event in result["events"]]
        assert names == ["rate", "delay", "kill", "kill"]
        assert all(event["began_s"] >= event["at_s"] for event in result["events"])
        assert "no peer runs on cellar" in result["events"][-1]["error"]
        assert result["failed"]
        assert result["logs"].keys() == {"attic", "cellar"}

    def test_devices_have_their_use_of_cpu_and_network(self, result: dict[str, Any]) -> None:
        attic = result["devices"]["attic"]
        assert attic["sent_bytes"] > 1000
        if cpu.unavailable_reason() is None:
            assert attic["cpu_s"] > 0.1

    def test_nothing_of_it_is_left(self, result: dict[str, Any]) -> None:
        assert made_by(os.getpid()) == []


def test_peers_come_late_die_and_come_back() -> None:
    devices = {"attic": Device(), "cellar": Device(start=False)}
    with House(Scenario(devices=devices, offer=("tiny-gpt2",), meet_s=patient(60))) as house:
        assert house.names("attic") == {"attic"}
        with pytest.raises(AskError, match="no peer runs on cellar"):
            house.ask(ask("cellar"))
        house.start("cellar")
        house.meet()
        with pytest.raises(LabError, match="runs already"):
            house.apply(Start(device="cellar", at_s=0))
        with pytest.raises(AskError, match="no model 'none'") as caught:
            house.ask(Request(device="cellar", model="none", text="x"))
        assert caught.value.code == "unknown-model"
        house.apply(Kill(device="cellar", at_s=0))
        assert house.running() == {"attic"}
        house.apply(Start(device="cellar", at_s=0))
        house.meet()
        answer = house.ask(ask("cellar"))
        assert len(answer["report"]["peers"]) == 2


def test_a_peer_that_ends_at_once_is_an_error_with_its_log() -> None:
    scenario = Scenario(devices={"attic": Device(options=("--model", "nowhere"))})
    with pytest.raises(LabError, match=r"(?s)peer on attic ended.*no model") as caught:
        House(scenario).__enter__()
    assert "attic" in str(caught.value)


class TestEnd:
    SCENARIO = """
offer = ["tiny-gpt2"]
network.delay_ms = 1
[device.attic]
{cpu}
[[request]]
from = "attic"
model = "tiny-gpt2"
text = "x"
at_s = 600
"""

    @pytest.fixture
    def laboratory(self, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
        """One that has started its peer and waits."""
        quota = "cpu = 0.9" if cpu.unavailable_reason() is None else ""
        path = tmp_path / "waiting.toml"
        path.write_text(self.SCENARIO.format(cpu=quota))
        result = str(tmp_path / "result.json")
        argv = [sys.executable, "-m", "tools.lab", "run", str(path), "-o", result]
        with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, cwd=REPO_ROOT) as process:
            assert process.stderr is not None
            assert any(" met after" in line for line in process.stderr)
            yield process
            process.kill()

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_a_signal_cleans_up_and_what_happened_is_kept(
        self, laboratory: subprocess.Popen[str], number: int, tmp_path: Path
    ) -> None:
        assert made_by(laboratory.pid)
        laboratory.send_signal(number)
        assert laboratory.wait(patient(15)) == 130
        assert made_by(laboratory.pid) == []
        document = json.loads((tmp_path / "result.json").read_text())
        assert document["interrupted"]
        assert document["requests"] == []
        assert document["scenario"]["name"] == "waiting"

    def test_a_second_signal_leaves_nothing_behind(
        self, laboratory: subprocess.Popen[str], tmp_path: Path
    ) -> None:
        laboratory.send_signal(signal.SIGINT)
        for _ in range(8):  # while it clears away
            time.sleep(0.15)
            laboratory.send_signal(signal.SIGINT)
        # The last ones may come when Python itself is ending.
        assert laboratory.wait(patient(15)) in (130, -signal.SIGINT)
        assert made_by(laboratory.pid) == []
        assert json.loads((tmp_path / "result.json").read_text())["interrupted"]

    def test_after_a_kill_the_next_sweep_does(self, laboratory: subprocess.Popen[str]) -> None:
        made = made_by(laboratory.pid)
        laboratory.kill()
        laboratory.wait(patient(5))
        assert made_by(laboratory.pid) == made
        assert set(made) <= set(sweep())
        assert made_by(laboratory.pid) == []
        time.sleep(0.1)
        assert not [line for line in _commands() if made[0].rpartition("-")[0] in line]


def _commands() -> list[str]:
    """Command lines of all processes."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return found
