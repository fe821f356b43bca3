"""Results of the benchmarks' commands: whole, never overwritten unasked, and how busy it was."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.bench import command, machine
from tools.bench.command import Save, measured
from tools.lab.system import LabError, LabUnavailableError


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "busy_share", lambda: 0.064)
    monkeypatch.setattr(command, "end_in_order", lambda: None)


@pytest.fixture
def given(tmp_path: Path) -> Callable[..., argparse.Namespace]:
    def parsed(*argv: str) -> argparse.Namespace:
        return command.parser("What it is.\n\nMore.", tmp_path / "found.json").parse_args(argv)

    return parsed


def two_rows(save: Save) -> None:
    save({"rows": [1]})
    save({"machine": {"threads": 1}, "rows": [1, 2]})


def test_what_was_handed_over_last_is_written_with_the_machine(
    given: Callable[..., argparse.Namespace], capsys: pytest.CaptureFixture[str]
) -> None:
    args = given()
    assert measured(args, two_rows) == 0
    document = json.loads(args.out.read_text())
    assert document["rows"] == [1, 2]
    assert (document["machine"]["others"], document["machine"]["threads"]) == (0.06, 1)
    assert document["machine"]["cores"]
    assert f"results: {args.out}" in capsys.readouterr().err
    assert [path.name for path in args.out.parent.iterdir()] == ["found.json"]


def test_results_that_are_there_are_replaced_only_if_that_is_wanted(
    given: Callable[..., argparse.Namespace], capsys: pytest.CaptureFixture[str]
) -> None:
    given().out.write_text("{}")
    assert measured(given(), two_rows) == command.BAD
    assert "is there: --replace, or another --out" in capsys.readouterr().err
    assert given().out.read_text() == "{}"
    assert measured(given("--replace"), two_rows) == 0
    assert given().out.read_text() != "{}"


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (LabError("a peer ended"), 1, "error: a peer ended"),
        (LabUnavailableError("needs root"), machine.UNAVAILABLE, "error: needs root"),
        (KeyboardInterrupt(), command.INTERRUPTED, "found.json has what was measured"),
    ],
)
def test_what_was_measured_until_then_is_kept(
    given: Callable[..., argparse.Namespace],
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
    said: str,
) -> None:
    def fails(save: Save) -> None:
        two_rows(save)
        raise error

    assert measured(given(), fails) == status
    assert said in capsys.readouterr().err
    assert json.loads(given().out.read_text())["rows"] == [1, 2]


def test_an_interrupt_before_anything_was_measured(
    given: Callable[..., argparse.Namespace], capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_: Save) -> None:
        raise KeyboardInterrupt

    assert measured(given(), fails) == command.INTERRUPTED
    assert "has what was measured" not in capsys.readouterr().err
    assert not given().out.exists()
