"""A prefill beside transformers', on small models; how long it takes matters to nobody here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tools.bench import prefill
from tools.bench.sizes import CONFIGS

SMALL = {
    "gpt2-124m": {"n_embd": 64, "n_head": 4, "n_layer": 3, "vocab_size": 99},
    "llama-125m": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 99,
    },
}
CLOSE = {"fp32": 1e-4, "bf16": 0.1}  # standard deviations of the logits


def test_both_compute_the_same_and_the_ratio_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, config in SMALL.items():
        monkeypatch.setitem(CONFIGS, name, CONFIGS[name] | config)
        monkeypatch.setitem(prefill.TOKENS, name, 24)
    out, threads = tmp_path / "found.json", torch.get_num_threads()
    argv = ["--busy", "--rounds", "1", "--out", str(out), "--cache", str(tmp_path)]
    try:
        assert prefill.main([*argv, "--dtypes", "fp32", "bf16"]) == 0
    finally:
        torch.set_num_threads(threads)
    document = json.loads(out.read_text())
    assert document["machine"]["instructions"]
    assert (document["machine"]["threads"], document["rounds"]) == (1, 1)
    rows = document["rows"]
    assert [(row["model"], row["dtype"]) for row in rows] == [
        (name, dtype) for name in SMALL for dtype in CLOSE
    ]
    for row in rows:
        assert row["tokens"] == 24
        assert row["apart"] < CLOSE[row["dtype"]]
        assert row["ratio"] == pytest.approx(row["transformers_s"] / row["engine_s"])
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["model", "tokens", "dtype", "engine", "transformers", "ratio"]
    assert [line.split()[0] for line in lines] == [row["model"] for row in rows]
    assert lines[0].split()[-1] == f"{rows[0]['ratio']:.2f}"


@pytest.mark.parametrize(("has", "formats"), [(False, ("fp32",)), (True, ("fp32", "bf16"))])
def test_formats_are_those_that_the_processor_has(
    monkeypatch: pytest.MonkeyPatch, has: bool, formats: tuple[str, ...]
) -> None:
    monkeypatch.setattr(prefill, "can_pack", lambda _: has)
    assert prefill.able() == formats
