"""The speed benchmark from end to end on a tiny model: every variant answers on two devices."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from tests.lab.made import made_by
from tests.unit.bench.test_sizes import SMALL
from tools.bench import sizes
from tools.bench.shifts import VARIANTS
from tools.bench.speed import main

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(240)]


SOME = ("single", "tensor", "voltage-int4", "astra-16", "mesh-16", "mesh-int8")


@pytest.mark.parametrize(
    ("dtype", "names", "gib"),
    [("fp32", VARIANTS, math.inf), ("bf16", SOME, 5.2)],
    ids=["fp32, all at once", "bf16, one kind after the other"],
)
def test_every_variant_is_measured(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    names: tuple[str, ...],
    gib: float,
) -> None:
    monkeypatch.setitem(sizes.CONFIGS, "gpt2-124m", sizes.CONFIGS["gpt2-124m"] | SMALL["gpt2-124m"])
    argv = ["--busy", "--models", "gpt2-124m", "--tokens", "24", "--rates", "100", "--peers", "2"]
    argv += ["--rounds", "2", "--cores", "1", "--label", "t", "--dtype", dtype, "--only", *names]
    argv += ["--memory-gib", str(gib), "--out", str(tmp_path), "--cache", str(tmp_path / "cache")]
    assert main(argv) == 0
    document = json.loads((tmp_path / "speed-t.json").read_text())
    assert document["settings"]["dtype"] == dtype
    rows = document["rows"]
    kinds = {row["shift"] for row in rows}
    assert len(kinds) == (1 if gib == math.inf else 2)
    assert {(row["variant"], row["round"]) for row in rows} == {
        (name, turn) for name in names for turn in range(2)
    }
    assert len(rows) == 2 * (len(names) + len(kinds) - 1)  # each shift has the single device
    for row in rows:
        assert row["seconds"] > 0
        alone = row["variant"] == "single"
        chosen = row["variant"] == "mesh-auto"  # for so few tokens one device is enough
        assert len(row["peers"]) in ((1,) if alone else (1, 2) if chosen else (2,))
        if row["variant"] in ("tensor", "voltage-fp32", "block-1", "voltage-fp16"):
            base = next(one for one in rows if one["variant"] == "single")
            assert row["best"] == base["best"]
    # The same cells again: nothing to do.
    assert main([*argv, "--resume"]) == 0
    assert json.loads((tmp_path / "speed-t.json").read_text()) == document
    assert made_by(os.getpid()) == []
