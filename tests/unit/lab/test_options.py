"""Options that cannot be are refused before a laboratory is built."""

from __future__ import annotations

from argparse import ArgumentTypeError
from pathlib import Path

import pytest

from tools.lab import __main__ as command
from tools.lab import options, runner
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


def test_files_and_folders(tmp_path: Path) -> None:
    there = tmp_path / "file"
    there.touch()
    assert options.file(str(there)) == there
    assert options.file("beside") == Path("beside")
    assert options.folder(str(tmp_path / "new" / "er")) == tmp_path / "new" / "er"
    with pytest.raises(ArgumentTypeError, match="file is no folder"):
        options.folder(str(there / "below"))
