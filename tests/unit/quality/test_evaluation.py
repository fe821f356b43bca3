"""Evaluation: exact codes cost nothing, fewer bits cost more, and the figures are what they say."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from statistics import stdev

import pytest
import torch

from astra_mesh.bundle import Bundle, open_bundle
from astra_mesh.bundle.quality import read_quality, save_quality
from astra_mesh.bundle.tensors import load_weights
from astra_mesh.engine.reference import hidden_rows, pooled, run_plan, run_solo
from astra_mesh.engine.shard import ShardRun
from astra_mesh.errors import AstraMeshError, CodebookError, InputError, WrongTaskError
from astra_mesh.families import Model, ModelInput, build_model
from astra_mesh.families.spec import Pooling
from astra_mesh.plan.layout import make_layout
from astra_mesh.quality import (
    EvalRow,
    EvalSettings,
    FitOptions,
    evaluate,
    evaluation,
    fit,
    load_samples,
)
from astra_mesh.quant.codebook import UNLIMITED, load_codebook
from astra_mesh.quant.codecs import make_codec
from tests.unit.quality.making import picture, toy_bundle, words, write

QUICK = FitOptions(history=0, rates=(16, 32), groups=4, codewords=16, iterations=2)
FILE = "codebook-h0.safetensors"


def toy(tmp_path: Path, kind: str) -> tuple[Bundle, Path]:
    """A bundle with a vq codebook (of some other data), and data."""
    bundle = toy_bundle(tmp_path / kind, kind)
    if kind == "vit":
        files: dict[str, bytes | str] = {
            f"{name}/{i}.png": picture(40 * i + j)
            for j, name in enumerate(("cat", "dog", "cow"))
            for i in range(6)
        }
        data = write(tmp_path / "pictures", files)
    elif kind == "bert":
        rows = [f"{words(12, 12, i).strip()}\t{i % 2}" for i in range(20)]
        data = write(tmp_path, {"x.tsv": "sentence\tlabel\n" + "\n".join(rows)}) / "x.tsv"
    else:
        data = write(tmp_path, {"x.txt": words(600)}) / "x.txt"
    fit(bundle, data, QUICK)
    return open_bundle(bundle.path), data


def by_name(rows: list[EvalRow]) -> dict[tuple[str, int], EvalRow]:
    return {(row.codec, row.bits_per_token): row for row in rows}


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert", "vit"])
def test_every_codec_and_rate_has_a_row(tmp_path: Path, kind: str) -> None:
    bundle, data = toy(tmp_path, kind)
    found = evaluate(bundle, data, EvalSettings(limit=4))
    rows = by_name(found.rows)
    assert list(rows) == [
        ("fp32", 1024),
        ("fp16", 512),
        ("int8", 288),
        ("int4", 144),
        ("vq", 32),
        ("vq", 16),
    ]
    assert {row.codebook for row in found.rows[:4]} == {""}
    assert {row.codebook for row in found.rows[4:]} == {FILE}
    assert {row.peers for row in found.rows} == {4}
    assert found.sequences == 4
    exact, coarse = rows["fp32", 1024].metrics, rows["vq", 16].metrics
    assert exact["kl"] < 1e-6
    assert exact["agreement"] == 1.0
    assert coarse["kl"] > 3e-4
    assert exact["kl"] < min(rows["int4", 144].metrics["kl"], coarse["kl"])


def test_generation_figures_by_hand(tmp_path: Path) -> None:
    """One codec, computed here in double precision from the logits of both."""
    bundle, data = toy(tmp_path, "gpt2")
    settings = EvalSettings(codecs=["vq"], rates=[16], limit=3, peers=[3])
    found = evaluate(bundle, data, settings)
    model = build_model(bundle.config, load_weights(bundle))
    codec = make_codec("vq", model, load_codebook(bundle.path / FILE))
    nats, alone_nats, kl, same, tokens, predicted = 0.0, 0.0, 0.0, 0, 0, 0
    more = []
    for sample in load_samples(bundle, data, limit=3):
        ids = sample.input.tokens
        assert ids is not None
        layout = make_layout(model.spec, [(0, 16), (16, 32), (32, 48)], pooling="all", stages=1)
        both = [
            model.logits(hidden_rows(runs)).double().log_softmax(-1)
            for runs in (
                run_plan(model, layout, codec, sample.input),
                [run_solo(model, sample.input, "all")],
            )
        ]
        mesh, alone = both
        here = float(mesh[torch.arange(47), ids[1:]].sum())
        there = float(alone[torch.arange(47), ids[1:]].sum())
        nats, alone_nats = nats - here, alone_nats - there
        more.append((there - here) / 47)
        kl += float((alone.exp() * (alone - mesh)).sum())
        same += int((alone.argmax(-1) == mesh.argmax(-1)).sum())
        tokens, predicted = tokens + 48, predicted + 47
    (row,) = found.rows
    assert found.tokens == tokens == 144
    assert found.baseline["nats_per_token"] == pytest.approx(alone_nats / predicted, rel=1e-5)
    increase = (nats - alone_nats) / predicted
    assert row.loss == pytest.approx(math.exp(increase) - 1, rel=1e-3)
    assert row.metrics == pytest.approx(
        {
            "nats_per_token": nats / predicted,
            "perplexity": math.exp(nats / predicted),
            "nats_increase": increase,
            "loss_error": math.exp(increase) * stdev(more) / math.sqrt(3),
            "kl": kl / tokens,
            "agreement": same / tokens,
        },
        rel=1e-3,
    )


def test_accuracy_is_of_the_labels(tmp_path: Path) -> None:
    bundle, data = toy(tmp_path, "bert")
    found = evaluate(bundle, data, EvalSettings(codecs=["fp32", "int4"], limit=20))
    model = build_model(bundle.config, load_weights(bundle))
    right = [
        int(model.classify(pooled([run_solo(model, one.input, "class")])).argmax()) == one.label
        for one in load_samples(bundle, data, limit=20, classes=model.labels)
    ]
    assert found.baseline == {"accuracy": sum(right) / 20}
    assert found.rows[0].metrics["accuracy_change"] == 0.0
    assert found.rows[0].metrics["loss_error"] == 1 / 20  # that nothing changed proves no more
    unlabelled = write(tmp_path, {"y.txt": words(90)}) / "y.txt"
    bare = evaluate(bundle, unlabelled, EvalSettings(codecs=["fp32"], limit=3))
    assert bare.baseline == {}
    assert set(bare.rows[0].metrics) == {"kl", "agreement", "loss_error"}
    assert (found.measure, bare.measure) == ("accuracy", "agreement")


def test_one_labelled_input_tells_no_error(tmp_path: Path) -> None:
    bundle, _ = toy(tmp_path, "bert")
    settings = EvalSettings(codecs=["fp32"], limit=9)
    for rows, lacking in (("1\n", "at least 2 labelled inputs"), ("1\nw3 w4\t0\n", "")):
        text = f"sentence\tlabel\nw5 w6\t\nw1 w2\t{rows}"
        data = write(tmp_path, {"one.tsv": text}) / "one.tsv"
        found = evaluate(bundle, data, settings)
        assert found.lacking == lacking
        assert ("loss_error" in found.rows[0].metrics) == (not lacking)
    alone = evaluate(bundle, data, EvalSettings(codecs=["fp32"], task="embed", limit=1))
    assert alone.lacking == "at least 2 inputs"


def test_embeddings_are_compared_by_cosine(tmp_path: Path) -> None:
    bundle, data = toy(tmp_path, "bert")
    found = by_name(evaluate(bundle, data, EvalSettings(task="embed", limit=5)).rows)
    exact, coarse = found["fp32", 1024].metrics, found["vq", 16].metrics
    assert exact["cosine"] == pytest.approx(1.0, abs=1e-5)
    assert coarse["cosine_min"] < coarse["cosine"] < 0.9999


def test_one_peer_has_nothing_to_lose(tmp_path: Path) -> None:
    bundle, data = toy(tmp_path, "gpt2")
    found = evaluate(bundle, data, EvalSettings(peers=[1], limit=2))
    assert {row.metrics["kl"] for row in found.rows} == {0.0}
    assert {row.metrics["nats_increase"] for row in found.rows} == {0.0}


def test_class_tokens_may_be_distributed(tmp_path: Path) -> None:
    bundle, data = toy(tmp_path, "vit")
    single, distributed = (
        evaluate(bundle, data, EvalSettings(class_token=kind, codecs=["vq"], limit=3))
        for kind in ("single", "distributed")
    )
    assert (single.class_token, distributed.class_token) == ("single", "distributed")
    assert single.rows[0].metrics["kl"] != distributed.rows[0].metrics["kl"]


def test_results_repeat_and_are_json(tmp_path: Path) -> None:
    bundle, data = toy(tmp_path, "llama")
    first, second = (evaluate(bundle, data, EvalSettings(limit=2)) for _ in range(2))
    assert first.to_dict() == second.to_dict()
    assert json.loads(json.dumps(first.to_dict(), allow_nan=False)) == first.to_dict()
    assert (first.window, first.seed) == (48, None)
    other = evaluate(bundle, data, EvalSettings(limit=2, window=20, shards="random", seed=3))
    assert (other.window, other.seed) == (20, 3)
    assert first.to_dict()["rows"][0]["codec"] == "fp32"
    assert first.model_id == bundle.model_id


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        (EvalSettings(peers=[]), InputError, "no number of peers"),
        (EvalSettings(peers=[2, 0]), InputError, "peers"),
        (EvalSettings(peers=[65]), InputError, "peers"),
        (EvalSettings(limit=0), InputError, "limit"),
        (EvalSettings(loss=1.5), InputError, "loss"),
        (EvalSettings(loss=float("nan")), InputError, "loss"),
        (EvalSettings(codecs=["zip"]), InputError, "unknown codec"),
        (EvalSettings(codecs=["fp32", "astra"]), CodebookError, "no astra codebook"),
        (EvalSettings(rates=[33]), InputError, r"rates \[33\]; there are \[16, 32, 144"),
        (EvalSettings(task="classify"), WrongTaskError, "cannot classify"),
    ],
)
def test_settings_that_cannot_be(
    tmp_path: Path, settings: EvalSettings, error: type[AstraMeshError], text: str
) -> None:
    bundle, data = toy(tmp_path, "gpt2")
    with pytest.raises(error, match=text):
        evaluate(bundle, data, settings)


def test_a_codebook_of_other_weights_is_not_measured(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle, data = toy(tmp_path, "gpt2")
    other = toy_bundle(tmp_path / "other", "llama")
    shutil.copy(bundle.path / FILE, other.path)
    with pytest.raises(CodebookError, match="other weights"):
        evaluate(open_bundle(other.path), data, EvalSettings(limit=1, codecs=("vq", "fp16")))
    assert not caplog.records  # once is enough
    found = evaluate(open_bundle(other.path), data, EvalSettings(limit=1))
    assert {row.codec for row in found.rows} == {"fp32", "fp16", "int8", "int4"}
    assert "a codebook is left out" in caplog.text


def test_a_real_story_model(data_dir: Path, tmp_path: Path) -> None:
    """Known: 1.27 nats a token on the sample. More bits are better, and all are near."""
    shutil.copytree(data_dir / "models" / "stories260K", tmp_path / "stories")
    bundle = open_bundle(tmp_path / "stories")
    data = data_dir / "datasets" / "tinystories_sample.txt"
    fit(bundle, data, FitOptions(history=0, rates=(48, 96), groups=8, codewords=64, iterations=4))
    found = evaluate(open_bundle(bundle.path), data, EvalSettings(codecs=["fp32", "vq"], limit=9))
    assert found.baseline["nats_per_token"] == pytest.approx(1.27, abs=0.02)
    exact, fine, coarse = (row.metrics for row in found.rows)
    assert exact["kl"] < 1e-8 < fine["kl"] < coarse["kl"] < 0.1
    assert fine["agreement"] > 0.9
    assert abs(fine["nats_increase"]) < 0.02


def test_each_number_of_peers_has_rows_and_the_largest_decides(tmp_path: Path) -> None:
    bundle, data = toy(tmp_path, "gpt2")
    settings = EvalSettings(peers=[4, 1, 2, 2], codecs=["vq"], limit=4, loss=1.0)
    found = evaluate(bundle, data, settings)
    assert found.peers == (1, 2, 4)
    assert [(row.bits_per_token, row.peers) for row in found.rows] == [
        (bits, peers) for bits in (32, 16) for peers in (1, 2, 4)
    ]
    losses = {row.peers: row.metrics["kl"] for row in found.rows if row.stages == 1}
    assert 0.0 == losses[1] < losses[2] < losses[4]
    best = found.recommended
    assert best is not None
    assert (best.peers, best.bits) == (4, 16)
    assert found.recommended_row is found.rows[-1]
    strict = evaluate(bundle, data, EvalSettings(codecs=["vq"], limit=4, loss=0.0, rates=[16]))
    assert strict.recommended is None or strict.rows[0].loss <= 0


def test_codebooks_are_told_apart(tmp_path: Path) -> None:
    bundle, data = toy(tmp_path, "gpt2")
    fit(bundle, data, FitOptions(**vars(QUICK) | {"history": UNLIMITED}))
    fit(bundle, data, FitOptions(**vars(QUICK) | {"history": 1}))
    opened = open_bundle(bundle.path)
    found = evaluate(opened, data, EvalSettings(codecs=["vq"], limit=2, rates=[16]))
    assert {found.name_of(row): (row.codebook, row.history) for row in found.rows} == {
        "memoryless": (FILE, 0),
        "predictive": ("codebook.safetensors", -1),
        "predictive over 1": ("codebook-h1.safetensors", 1),
    }
    ids = {load_codebook(path).id for path in opened.codebook_paths.values()}
    assert {row.codebook_id for row in found.rows} == ids
    shutil.copy(bundle.path / FILE, bundle.path / "codebook-other.safetensors")
    twice = evaluate(open_bundle(bundle.path), data, EvalSettings(codecs=["vq"], limit=2))
    names = {twice.name_of(row) for row in twice.rows if row.history == 0}
    assert names == {"memoryless (h0)", "memoryless (other)"}


def test_random_shards_repeat_with_their_seed(tmp_path: Path) -> None:
    bundle, data = toy(tmp_path, "bert")
    kls = [
        evaluate(
            bundle,
            data,
            EvalSettings(codecs=["vq"], rates=[16], limit=3, shards="random", seed=seed),
        )
        .rows[0]
        .metrics["kl"]
        for seed in (1, 1, 2)
    ]
    assert kls[0] == kls[1] != kls[2]


def test_what_is_stored_is_what_was_found(tmp_path: Path) -> None:
    bundle, data = toy(tmp_path, "gpt2")
    found = evaluate(bundle, data, EvalSettings(limit=2, peers=[2, 4], loss=1.0))
    save_quality(bundle, found.task, found.stored())
    stored = read_quality(open_bundle(bundle.path))
    assert stored is not None
    task = stored.tasks["generate"]
    assert (task.data, task.sequences, task.tokens) == ("x.txt", 2, 96)
    assert [row.metrics for row in task.measured] == [row.metrics for row in found.rows]
    assert [row.loss for row in task.measured] == pytest.approx([row.loss for row in found.rows])
    assert task.recommended == found.recommended is not None
    assert set(task.definitions) == set(found.rows[0].metrics)


def test_the_single_device_runs_once_a_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many codecs are compared with it."""
    bundle, data = toy(tmp_path, "gpt2")
    calls: list[ModelInput] = []

    def counted(model: Model, inputs: ModelInput, pooling: Pooling) -> ShardRun:
        calls.append(inputs)
        return run_solo(model, inputs, pooling)

    monkeypatch.setattr(evaluation, "run_solo", counted)
    evaluate(bundle, data, EvalSettings(limit=3))
    assert len(calls) == 3
