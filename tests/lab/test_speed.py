"""The speed benchmark from end to end on a tiny model: every variant answers on two devices."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.unit.bench.test_sizes import SMALL
from tools.bench import sizes
from tools.bench.quota import PARENT
from tools.bench.speed import VARIANTS, main

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.mark.skipif(not os.access(PARENT, os.W_OK), reason="no control groups of version 1")
def test_every_variant_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sizes.CONFIGS, "gpt2-124m", sizes.CONFIGS["gpt2-124m"] | SMALL["gpt2-124m"])
    argv = ["--busy", "--models", "gpt2-124m", "--tokens", "24", "--rates", "100", "--peers", "2"]
    argv += ["--rounds", "2", "--cores", "1", "--label", "t", "--only", *VARIANTS]
    assert main([*argv, "--out", str(tmp_path), "--cache", str(tmp_path / "cache")]) == 0
    rows = json.loads((tmp_path / "speed-t.json").read_text())["rows"]
    assert sorted((row["variant"], row["round"]) for row in rows) == sorted(
        (name, turn) for name in VARIANTS for turn in range(2)
    )
    for row in rows:
        assert row["seconds"] > 0
        assert len(row["peers"]) == (1 if row["variant"] == "single" else 2)
        if row["variant"] in ("tensor", "voltage-fp32", "block-1", "voltage-fp16"):
            alone = next(one for one in rows if one["variant"] == "single")
            assert row["best"] == alone["best"]
    # The same cells again: nothing to do.
    again = [*argv, "--out", str(tmp_path), "--cache", str(tmp_path / "cache"), "--resume"]
    assert main(again) == 0
    assert not list(PARENT.glob(f"astra-bench-{os.getpid()}-*"))
