"""What is told of long work where standard error is no terminal."""

from __future__ import annotations

import re
import threading
import time

import pytest

from astra_mesh.cli import progress


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_TELL_S", 0.05)


def test_a_log_gets_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    """Also where nothing moves meanwhile, and no more than one in that time."""
    began = time.monotonic()
    with progress.counting(quiet=False) as advance:
        for step in range(1000):
            advance(step, 1000, "compa\x1bring")
        advance(3, 8, "compa\x1bring")
        time.sleep(0.2)
        advance(0, 1, "reading the data")
        time.sleep(0.2)
    took = time.monotonic() - began
    shown = capsys.readouterr()
    lines = shown.err.splitlines()
    assert shown.out == ""
    assert 2 <= len(lines) <= took / 0.05
    found = {re.sub(r" \(\d+ s\)$", "", line) for line in lines}
    assert {"compa ring, 3/8", "reading the data"} <= found
    assert not [one for one in threading.enumerate() if one.name == "progress"]


def test_nothing_is_told_of_short_work_or_beside_json(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.counting(quiet=True) as advance:
        advance(1, 2, "comparing")
        time.sleep(0.15)
    with progress.counting(quiet=False) as advance:
        advance(1, 2, "comparing")
    assert capsys.readouterr() == ("", "")
