"""Options that cannot be are refused before a laboratory is built."""

from __future__ import annotations

import os
import shutil
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.lab import __main__ as command
from tools.lab import accuracy, options, runner
from tools.lab.scenario import Mbps


@pytest.mark.parametrize(
    "argv",
    [
        ("run", "a.toml", "-o", "no such folder/x"),
        ("run", "a.toml", "-o", "."),
        ("nemesis", "-o", "no such folder/x"),
        ("nemesis", "--table", "no such folder/x"),
        ("soak", "--table", "no such folder/x"),
        ("soak", "--minutes", "-3"),
        ("soak", "--minutes", "0"),
        ("soak", "--minutes", "nan"),
        ("nemesis", "--seeds", "5-1"),
        ("nemesis", "--seeds", "x"),
    ],
    ids=" ".join,
)
def test_bad_options(
    argv: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        command._parser().parse_args(argv)
    assert ended.value.code == 2
    assert argv[-2] in capsys.readouterr().err


def test_measuring_without_a_laboratory_says_what_the_others_say(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(shutil, "which", lambda name: f"/sbin/{name}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(accuracy, "make_group", lambda *_: pytest.fail("it began"))
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert command.main(["measure"]) == command.UNAVAILABLE
    assert capsys.readouterr().err == "error: network namespaces need root\n"


def test_nothing_is_run_for_a_result_without_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = tmp_path / "a.toml"
    scenario.write_text("[devices.a]\n")
    ran: list[object] = []
    monkeypatch.setattr(runner, "run", lambda *args: ran.append(args))
    with pytest.raises(SystemExit):
        command.main(["run", str(scenario), "-o", str(tmp_path / "none" / "x")])
    assert not ran


def test_numbers_have_bounds_and_say_them() -> None:
    whole, rate = options.within(int, 1, 200), options.as_annotated(Mbps)
    assert [whole("1"), whole("200")] == [1, 200]
    assert [rate("0.01"), rate("10000")] == [0.01, 10_000]
    for text in ("0", "201", "1.5", "x"):
        with pytest.raises(ArgumentTypeError, match=r"^a whole number from 1 to 200, not "):
            whole(text)
    for text in ("0", "10001", "nan", "x"):
        with pytest.raises(ArgumentTypeError, match=r"^a number from 0\.01 to 10000, not "):
            rate(text)
    assert options.above_zero("inf") > 0


def test_lists_of_seeds() -> None:
    assert options.seeds("1-3,7") == [1, 2, 3, 7]
    assert command._parser().parse_args(["nemesis"]).seeds == list(range(1, 21))
    for text in ("one", "5-1", "1,5-1", "1,", "-3", ""):
        with pytest.raises(ArgumentTypeError, match=r"^seeds as 1-20 or 3,5,9, not "):
            options.seeds(text)


def test_files_and_folders(tmp_path: Path) -> None:
    there = tmp_path / "file"
    there.touch()
    assert options.file(str(there)) == there
    assert options.file("beside") == Path("beside")
    assert options.folder(str(tmp_path / "new" / "er")) == tmp_path / "new" / "er"
    with pytest.raises(ArgumentTypeError, match="file is no folder"):
        options.folder(str(there / "below"))
    assert options.existing_folder(str(tmp_path)) == tmp_path
    for wrong in (there, tmp_path / "new"):
        with pytest.raises(ArgumentTypeError, match="no folder"):
            options.existing_folder(str(wrong))


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="a folder that root cannot write to")
@pytest.mark.parametrize(("parsed", "text"), [(options.file, "x"), (options.folder, "x/y")])
def test_where_nothing_can_be_written_is_told_at_once(
    parsed: Callable[[str], Path], text: str
) -> None:
    with pytest.raises(ArgumentTypeError, match=r"^/proc cannot be written to"):
        parsed(f"/proc/{text}")
