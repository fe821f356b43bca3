"""The result: which lane a request runs in, and timelines put on one clock."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tools.lab import __main__ as command
from tools.lab import record, runner
from tools.lab.record import _attempt, _is_of
from tools.lab.scenario import Request, Scenario
from tools.lab.system import LabError, LabUnavailableError

FILES: dict[str, Any] = {
    "kitchen": {
        "request": "2a",
        "shard": 1,
        "answering": True,
        "bounds": [[0, 4], [4, 10]],
        "began_ns": 5_000_000_100,
        "blocks": [
            {"block": 1, "local_ns": 5, "parts": {"0": {"arrived_ns": 7}}, "done_ns": 9},
        ],
    },
    "attic": {
        "request": "2a",
        "shard": 0,
        "answering": False,
        "bounds": [[0, 4], [4, 10]],
        "began_ns": 5_000_000_000,
        "blocks": [{"block": 1, "encoded_ns": 2, "sent_ns": 3}],
    },
}


def test_times_of_all_peers_are_on_one_clock() -> None:
    found = _attempt(FILES, zero=4.0)
    assert (found["request"], found["began_s"]) == ("2a", 1.0)
    attic, kitchen = found["peers"]
    assert (attic["device"], attic["tokens"], attic["began_ns"]) == ("attic", [0, 4], 0)
    assert attic["blocks"] == [{"block": 1, "encoded_ns": 2, "sent_ns": 3}]
    part = {"from": "attic", "arrived_ns": 107}
    assert kitchen["blocks"] == [{"block": 1, "local_ns": 105, "done_ns": 109, "parts": [part]}]


@pytest.mark.parametrize(
    ("device", "began_s", "wall_s", "same"),
    [
        ("kitchen", 0.9, 0.2, True),
        ("kitchen", 1.1, 0.2, False),
        ("kitchen", 0.5, 0.2, False),
        ("attic", 0.9, 0.2, False),
        ("hall", 0.9, 0.2, False),
    ],
)
def test_an_attempt_belongs_to_the_request_that_was_running(
    device: str, began_s: float, wall_s: float, same: bool
) -> None:
    request = {"from": device, "began_s": began_s, "wall_s": wall_s}
    assert _is_of(FILES, request, zero=4.0) is same


def test_requests_without_a_time_follow_the_one_before() -> None:
    def request(at_s: float | None) -> Request:
        return Request(device="a", model="m", text="t", at_s=at_s)

    requests = [request(at_s) for at_s in (None, None, 3.0, None, 1.0)]
    lanes = runner.lanes_of(requests)
    assert [[number for number, _ in lane] for lane in lanes] == [[0, 1], [2, 3], [4]]
    assert runner.lanes_of([]) == []


def test_a_result_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    record.write({"a": "ü"}, path)
    assert json.loads(path.read_text()) == {"a": "ü"}
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(LabError, match="cannot be written"):
        record.write({}, tmp_path / "none" / "result.json")


class TestCommand:
    def run(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, result: object) -> int:
        def pretend(scenario: Scenario, say: object) -> object:
            if isinstance(result, BaseException):
                raise result
            return result

        monkeypatch.setattr(runner, "run", pretend)
        monkeypatch.setattr("signal.signal", lambda *_: None)
        (tmp_path / "house.toml").write_text("[device.a]\n")
        return command.main(["run", str(tmp_path / "house.toml"), "-o", str(tmp_path / "r.json")])

    @pytest.mark.parametrize(
        ("result", "status"),
        [
            ({"failed": False, "interrupted": False}, 0),
            ({"failed": True, "interrupted": False, "logs": {"a": "it broke"}}, command.FAILED),
            ({"failed": True, "interrupted": True, "logs": {}}, command.INTERRUPTED),
            (LabError("no"), command.FAILED),
            (LabUnavailableError("need root"), command.UNAVAILABLE),
            (KeyboardInterrupt(), command.INTERRUPTED),
        ],
    )
    def test_exit_statuses(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, result: object, status: int
    ) -> None:
        assert self.run(monkeypatch, tmp_path, result) == status
        assert (tmp_path / "r.json").exists() == isinstance(result, dict)

    def test_a_bad_scenario_is_for_the_caller_to_mend(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("signal.signal", lambda *_: None)
        (tmp_path / "house.toml").write_text("[device.a]\ncpu = 'x'\n")
        assert command.main(["run", str(tmp_path / "house.toml")]) == command.MENDABLE
        assert "device.a.cpu" in capsys.readouterr().err
