"""The processor time of shards by step, on small models; how long it is matters to nobody here."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from tools.bench import arithmetic
from tools.bench.arithmetic import Case
from tools.bench.sizes import CONFIGS

SMALL = {
    "gpt2-124m": {"n_embd": 64, "n_head": 4, "n_layer": 3, "vocab_size": 99},
    "vit-base": {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "intermediate_size": 128,
        "image_size": 64,
    },
}
CASES = (Case("gpt2-124m", 48, 3), Case("vit-base", 17, 2))


def test_every_step_of_every_shard_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, config in SMALL.items():
        monkeypatch.setitem(CONFIGS, name, CONFIGS[name] | config)
    monkeypatch.setattr(arithmetic, "CASES", CASES)
    out = tmp_path / "found.json"
    argv = ["--busy", "--rounds", "2", "--out", str(out), "--cache", str(tmp_path)]
    assert arithmetic.main([*argv, "--codes", "plain", "half-first"]) == 0
    document = json.loads(out.read_text())
    assert document["machine"]["instructions"]
    text, coded, picture, coded_picture = document["rows"]

    for row, case in zip((text, picture), CASES, strict=True):
        edges = row["edges"]
        assert (edges[0], edges[-1], len(edges)) == (0, case.tokens, case.devices + 1)
        assert all(start < stop for start, stop in itertools.pairwise(edges))
        longest = max(sum(shard.values()) for shard in row["shards"])
        assert row["work"] * row["solo_s"] >= 0.5 * longest  # medians of two rounds
        assert row["bound_quartiles"][0] <= row["bound"] <= row["bound_quartiles"][1]
        assert set(row["solo"]) == {"known", "local", "finish", "head"}
    # The first of a text has nobody to its left, the last one nobody to send to, and the head.
    steps = [set(shard) for shard in text["shards"]]
    everybody = {"known", "local", "finish"}
    assert steps[0] == everybody | {"encode"}
    assert steps[1] == everybody | {"encode", "decode", "remote"}
    assert steps[2] == everybody | {"decode", "remote", "head"}
    # Of a picture everybody sends to everybody; the last one answers.
    assert [set(shard) for shard in picture["shards"]] == [
        everybody | {"encode", "decode", "remote"},
        everybody | {"encode", "decode", "remote", "head"},
    ]
    # Where the first block is coded, too, nobody computes others' tokens.
    for row in (coded, coded_picture):
        assert row["codes"] == "half-first"
        assert all("known" not in shard for shard in row["shards"])
        assert "decode" in row["shards"][-1]
