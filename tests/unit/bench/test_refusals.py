"""What the benchmarks refuse before they measure anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest

from tools.bench import arithmetic, coding, decode, flood, machine, memory, prefill, tls, wire
from tools.lab.system import LabUnavailableError

BUSY_SHARE = 0.5


@pytest.fixture(autouse=True)
def _busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that nothing is measured, whatever is accepted."""

    def ensure(*_: object, form: str = "") -> None:
        raise AssertionError("it began")

    for module in (arithmetic, memory, prefill):
        monkeypatch.setattr(module, "ensure", ensure)
    monkeypatch.setattr(machine, "busy_share", lambda: BUSY_SHARE)
    monkeypatch.setattr(machine, "require_lab", lambda: None)


@pytest.fixture
def out(tmp_path: Path) -> str:
    """Results that are not there yet."""
    return str(tmp_path / "found.json")


@pytest.mark.parametrize("module", [arithmetic, coding, decode, memory, prefill, wire])
def test_a_busy_machine(module: ModuleType, out: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert module.main(["--out", out]) == 1
    assert "other programs use 50% of the cores" in capsys.readouterr().err


@pytest.mark.parametrize("module", [arithmetic, memory, prefill])
def test_busy_measures_all_the_same(module: ModuleType, out: str) -> None:
    with pytest.raises(AssertionError, match="it began"):
        module.main(["--busy", "--out", out])


@pytest.mark.parametrize("module", [arithmetic, coding, decode, memory, prefill, wire])
def test_committed_results_are_not_replaced_unasked(
    module: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert module.main(["--busy"]) == 2
    assert "docs/data/" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("main", "argv"),
    [
        (memory.main, ["--busy", "--replace"]),
        (wire.main, ["--busy", "--replace"]),
        (flood.main, []),
        (tls.main, []),
    ],
    ids=lambda one: one.__module__ if callable(one) else "",
)
def test_without_a_laboratory(
    main: Callable[[Sequence[str]], int],
    argv: Sequence[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse() -> None:
        raise LabUnavailableError("network namespaces need root")

    monkeypatch.setattr(machine, "require_lab", refuse)
    assert main(argv) == machine.UNAVAILABLE
    assert "error: network namespaces need root" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("main", "argv"),
    [
        (memory.main, ("--tokens", "4097")),
        (memory.main, ("--tokens", "0")),
        (memory.main, ("--out", "no such folder/memory.json")),
        (wire.main, ("--answers", "0")),
        (wire.main, ("--rounds", "0")),
        (wire.main, ("--out", "no such folder/wire.json")),
        (arithmetic.main, ("--rounds", "0")),
        (arithmetic.main, ("--out", "no such folder/arithmetic.json")),
        (arithmetic.main, ("--models", "gpt-9")),
        (decode.main, ("--rounds", "0")),
        (decode.main, ("--threads", "-3")),
        (decode.main, ("--out", "no such folder/decode.json")),
        (prefill.main, ("--rounds", "0")),
        (prefill.main, ("--dtypes", "fp8")),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, tuple) else one.__module__,
)
def test_bad_options(
    main: Callable[[Sequence[str]], int],
    argv: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    assert f"error: argument {argv[0]}: " in capsys.readouterr().err


def test_pictures_have_their_own_number_of_tokens(out: str) -> None:
    argv = ["--models", "vit-base", "--tokens", "9999", "--out", out]
    assert memory.main(argv) == 1  # busy, no bad option
