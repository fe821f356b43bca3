"""A short run of every fuzz target, and of the fuzzer itself."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tools.fuzz import runner as fuzzer
from tools.fuzz.mutate import Mutator
from tools.fuzz.targets import TARGETS, Target

# Seconds matter here; `make fuzz` runs for as long as is wanted.
INPUTS = {"header": 300, "session": 800, "roster": 800, "api": 800}


@pytest.mark.parametrize("name", TARGETS)
def test_a_short_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzzer, "FINDINGS", tmp_path)
    count, _ = fuzzer.fuzz(name, TARGETS[name], INPUTS.get(name, 2_000), 30.0, seed=7)
    assert count >= 300


def test_a_finding_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(data: bytes) -> None:
        if data != b"good seed":
            raise KeyError("a bug")

    monkeypatch.setattr(fuzzer, "FINDINGS", tmp_path)
    with pytest.raises(fuzzer.Finding, match="a bug"):
        fuzzer.fuzz("broken", Target(breaks, lambda: [b"good seed"]), 10_000, 30.0, seed=1)
    (kept,) = tmp_path.iterdir()
    with pytest.raises(KeyError):
        breaks(kept.read_bytes())


def test_memory_that_grows_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bytes] = []
    monkeypatch.setattr(fuzzer, "GROWTH_BYTES", 16 << 20)
    target = Target(lambda data: kept.append(b"\x01" * (1 << 16)), lambda: [b"x"])
    with pytest.raises(fuzzer.Finding, match="grew"):
        fuzzer.fuzz("leak", target, 1_500, 30.0, seed=1)


def test_the_same_seed_gives_the_same_inputs() -> None:
    def first(seed: int) -> list[bytes]:
        mutator = Mutator([b"abc", b"0123456789"], seed)
        return [mutator.next() for _ in range(500)]

    assert first(1) == first(1) != first(2)
    assert len(set(first(1))) > 300
    assert max(map(len, first(1))) <= 64 * 1024


@pytest.mark.skipif(find_spec("atheris") is not None, reason="Atheris is installed")
def test_without_atheris_a_sentence_says_so() -> None:
    command = [sys.executable, "-m", "tools.fuzz", "--atheris", "--target", "address"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert "not installed" in done.stderr
    assert "Traceback" not in done.stderr


def test_two_processes_share_the_inputs() -> None:
    command = [sys.executable, "-m", "tools.fuzz", "--target", "address", "--jobs", "2"]
    done = subprocess.run(
        [*command, "--inputs", "1200"], capture_output=True, text=True, check=True, timeout=120
    )
    assert "1,200 inputs" in done.stdout
