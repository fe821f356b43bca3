"""What coding takes beside a block, on a small model; how long it takes matters to nobody here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tools.bench import coding


def test_shares_of_a_block_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, threads = tmp_path / "found.json", torch.get_num_threads()
    try:
        assert coding.main(["--busy", "--hidden", "64", "--out", str(out)]) == 0
    finally:
        torch.set_num_threads(threads)
    document = json.loads(out.read_text())
    assert document["machine"]["threads"] == 1
    rows = document["rows"]
    assert [(row["codes"], row["bits"]) for row in rows] == [
        ("remembering", 64),
        ("remembering", 128),
        ("memoryless", 128),
        ("memoryless", 256),
        ("memoryless", 512),
    ]
    for row in rows:
        assert row["hidden_size"] == 64
        assert min(row["block_us"], row["encode"], row["decode"]) > 0
        for count, share in row["devices"].items():
            assert share == pytest.approx(row["encode"] + (int(count) - 1) * row["decode"])
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(rows)
