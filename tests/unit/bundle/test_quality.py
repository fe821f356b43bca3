"""Stored quality: what is written is read again, what was tampered with is refused by name."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from astra_mesh import limits
from astra_mesh.bundle import Bundle, open_bundle, verify
from astra_mesh.bundle.quality import (
    NAME,
    Measured,
    TaskQuality,
    code_name,
    limit_in_words,
    loss_in_words,
    loss_of,
    read_quality,
    recommend,
    save_quality,
)
from astra_mesh.errors import BadBundleError
from tests.bundles import GPT2, gpt2_tensors, write_bundle

LIMIT = 0.02  # of the perplexity
LONG, SHORT = "a" * 64, "b" * 64


def row(book: str, bits: int, loss: float, peers: int = 4, history: int = -1) -> Measured:
    return Measured(
        "vq", book, history, bits // 8, bits, peers, {"cosine": 1 - loss, "loss_error": 0.0}
    )


ROWS = [
    row(LONG, 16, 0.04),
    row(LONG, 32, 0.012),
    row(LONG, 64, 0.004),
    row(LONG, 16, 0.001, peers=2),
    row(SHORT, 64, 0.013, history=0),
    row(SHORT, 128, 0.006, history=0),
    Measured("fp16", "", 0, 1, 512, 4, {"cosine": 1.0, "loss_error": 0.0}),
]


def task(rows: list[Measured] = ROWS, limit: float = 0.015) -> TaskQuality:
    return TaskQuality(
        data="valid.txt",
        sequences=8,
        tokens=100,
        class_token="single",
        shards="even",
        measure="cosine",
        limit=limit,
        baseline={},
        definitions={"cosine": "a mean"},
        measured=rows,
        recommended=recommend(rows, limit),
    )


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return open_bundle(write_bundle(tmp_path / "toy", GPT2, gpt2_tensors(GPT2)))


def reopened(bundle: Bundle) -> Bundle:
    return open_bundle(bundle.path)


def text_row(bits: int, increase: float, kl: float, codec: str = "vq") -> Measured:
    metrics = {"nats_increase": increase, "kl": kl}
    return Measured(codec, LONG, -1, bits // 8, bits, 4, metrics)


@pytest.mark.parametrize(
    ("increase", "kl", "cost"),
    [
        (0.01, 0.005, math.expm1(0.01)),
        (0.01, 0.03, math.expm1(0.03)),
        (0.0, 0.03, math.expm1(0.03)),
        (-0.05, 0.03, math.expm1(0.03)),
        (-0.05, 0.001, math.expm1(0.001)),
    ],
)
def test_a_gain_does_not_hide_that_answers_are_others(
    increase: float, kl: float, cost: float
) -> None:
    found = text_row(16, increase, kl)
    assert found.cost == pytest.approx(cost)
    assert found.loss == pytest.approx(math.expm1(increase))  # what is shown
    best = recommend([found, text_row(64, 0.001, 0.002)], LIMIT)
    assert best is not None
    assert best.bits == (16 if cost <= LIMIT else 64)


def test_the_divergence_counts_for_perplexity_only() -> None:
    """What is right or wrong, or a vector's direction, says by itself what has become other."""
    metrics = {"accuracy_change": 0.01, "kl": 5.0, "agreement": 0.9}
    found = Measured("vq", LONG, -1, 2, 16, 4, metrics)
    assert found.cost == found.loss == -0.01
    assert limit_in_words("accuracy", 0.005) == loss_in_words("accuracy", 0.005)
    assert limit_in_words("perplexity", 0.02) == "perplexity +2.0 % and a KL of 0.02"


def test_rows_measured_on_the_same_inputs_stay(bundle: Bundle) -> None:
    save_quality(bundle, "embed", task(ROWS[1:3]))
    better = row(LONG, 64, 0.002)
    saved = save_quality(bundle, "embed", task([better, ROWS[0]])).tasks["embed"]
    assert [(one.bits, round(1000 * one.loss)) for one in saved.measured] == [
        (64, 2),
        (32, 12),
        (16, 40),
    ]
    assert saved.recommended is not None
    assert saved.recommended.bits == 32  # of a row that only the first run measured


@pytest.mark.parametrize(
    "other",
    [
        {"sequences": 9},
        {"data": "other.txt"},
        {"class_token": "distributed"},
        {"shards": "random"},
        {"baseline": {"cosine": 0.5}},
    ],
)
def test_rows_measured_on_other_inputs_go(bundle: Bundle, other: dict[str, Any]) -> None:
    save_quality(bundle, "embed", task(ROWS))
    found = structs.replace(task(ROWS[:1]), **other)
    assert save_quality(bundle, "embed", found).tasks["embed"].measured == ROWS[:1]


def test_a_codebook_that_was_deleted_is_no_broken_bundle(bundle: Bundle) -> None:
    book = bundle.path / "codebook-h0.safetensors"
    book.write_bytes(b"codes")
    save_quality(bundle, "embed", task())
    book.unlink()
    (bundle.path / NAME).unlink()
    assert read_quality(reopened(bundle)) is None
    (bundle.path / "model.safetensors").unlink()
    with pytest.raises(BadBundleError):
        reopened(bundle)


def test_what_is_saved_is_read_and_in_the_manifest(bundle: Bundle) -> None:
    assert read_quality(bundle) is None
    saved = save_quality(bundle, "embed", task())
    assert read_quality(reopened(bundle)) == saved
    assert saved.model == bundle.model_id
    assert NAME in verify(reopened(bundle))


def test_tasks_lie_side_by_side_and_a_new_run_replaces_its_own(bundle: Bundle) -> None:
    save_quality(bundle, "embed", task())
    save_quality(reopened(bundle), "classify", task(limit=0.5))
    found = save_quality(reopened(bundle), "embed", task(limit=0.001))
    assert {name: one.limit for name, one in found.tasks.items()} == {
        "classify": 0.5,
        "embed": 0.001,
    }


def test_what_another_run_stored_meanwhile_stays(bundle: Bundle) -> None:
    """Both opened the folder before either had measured anything."""
    save_quality(bundle, "embed", task(ROWS[:1]))
    other = reopened(bundle)
    save_quality(reopened(bundle), "embed", task(ROWS[1:2]))
    save_quality(reopened(bundle), "classify", task())
    found = save_quality(other, "embed", task(ROWS[2:3]))
    assert set(found.tasks) == {"classify", "embed"}
    assert len(found.tasks["embed"].measured) == 3
    assert read_quality(reopened(bundle)) == found


def test_runs_that_store_at_once_wait_for_each_other(bundle: Bundle) -> None:
    save_quality(bundle, "embed", task(ROWS[:1]))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda row: save_quality(bundle, "embed", task([row])), ROWS * 5))
    found = read_quality(reopened(bundle))
    assert found is not None
    assert len(found.tasks["embed"].measured) == len(ROWS)
    assert not list(bundle.path.glob(".*.lock"))


def test_while_another_file_is_being_written_nothing_is_lost(bundle: Bundle) -> None:
    """``fit`` puts its codebook in place before it renews the manifest."""
    book = bundle.path / "codebook.safetensors"
    book.write_bytes(b"codes")
    save_quality(bundle, "embed", task(ROWS[:1]))
    before = (bundle.path / NAME).read_bytes()
    book.write_bytes(b"other codes")
    with pytest.raises(BadBundleError):
        save_quality(bundle, "classify", task())
    assert (bundle.path / NAME).read_bytes() == before
    assert not list(bundle.path.glob(".*.lock"))


def test_figures_of_other_weights_are_ignored_and_replaced(bundle: Bundle, tmp_path: Path) -> None:
    save_quality(bundle, "embed", task())
    other = open_bundle(write_bundle(tmp_path / "other", GPT2, gpt2_tensors(GPT2, seed=1)))
    (other.path / NAME).write_bytes((bundle.path / NAME).read_bytes())
    assert read_quality(other) is None
    assert set(save_quality(other, "classify", task()).tasks) == {"classify"}


def test_a_broken_file_is_replaced_too(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    (bundle.path / NAME).write_text("{")
    save_quality(bundle, "embed", task())
    assert "what was stored before is replaced: " in caplog.text
    assert read_quality(reopened(bundle)) is not None


def test_the_smallest_rate_of_all_codebooks_within_the_limit() -> None:
    """On the largest number of peers; plain codecs do not count."""
    best = recommend(ROWS, 0.015)
    assert best is not None
    assert (best.codebook, best.bits, best.peers) == (LONG, 32, 4)
    assert best.loss == pytest.approx(0.012)
    assert recommend(ROWS, 0.001) is None
    assert recommend(ROWS[-1:], 1.0) is None
    same = [row(LONG, 64, 0.01), row(SHORT, 64, 0.002)]
    assert recommend(same, 0.02) == recommend(same[::-1], 0.02)
    assert (recommend(same, 0.02) or best).codebook == SHORT


@pytest.mark.parametrize(("peers", "loss"), [(2, 0.001), (3, 0.04), (4, 0.04), (9, 0.04)])
def test_a_plan_costs_what_as_many_peers_or_more_lost(peers: int, loss: float) -> None:
    found = task().expected("vq", LONG, 2, peers)
    assert found is not None
    assert found.loss == pytest.approx(loss)


def test_what_was_not_measured_has_no_expected_cost() -> None:
    assert task().expected("vq", LONG, 3, 4) is None
    assert task().expected("vq", "c" * 64, 2, 4) is None


@pytest.mark.parametrize(
    ("metrics", "measure", "loss", "words"),
    [
        ({"nats_increase": 0.01, "agreement": 0.5}, "perplexity", 0.01005, "perplexity +1.0 %"),
        ({"nats_increase": -0.01}, "perplexity", -0.00995, "perplexity -1.0 %"),
        ({"nats_increase": 1e9}, "perplexity", 72004899336.4, None),
        ({"accuracy_change": -0.02, "agreement": 0.9}, "accuracy", 0.02, "accuracy -2.0 points"),
        ({"accuracy_change": 0.02}, "accuracy", -0.02, "accuracy +2.0 points"),
        ({"accuracy_change": 0.0}, "accuracy", 0.0, "accuracy unchanged"),
        ({"agreement": 0.88}, "agreement", 0.12, "another answer for 12 % of the inputs"),
        ({"cosine": 0.9875}, "cosine", 0.0125, "cosine 0.9875"),
    ],
)
def test_losses(metrics: dict[str, float], measure: str, loss: float, words: str | None) -> None:
    found, value = loss_of(metrics)
    assert found == measure
    assert value == pytest.approx(loss, abs=1e-6, rel=1e-6)
    if words is not None:
        assert loss_in_words(measure, loss) == words


def test_an_unknown_measure_is_shown_as_it_is() -> None:
    assert loss_in_words("odd", 0.25) == "odd loss 0.25"


def test_codes_have_names() -> None:
    names = [code_name("vq", 0), code_name("vq", -1), code_name("vq", 2), code_name("astra", 0)]
    assert names == ["memoryless", "predictive", "predictive over 2", "astra"]


# --- hostile files --------------------------------------------------------------------------------


def written(bundle: Bundle, change: Any) -> Bundle:
    """The bundle with the stored document changed by ``change`` and no manifest."""
    save_quality(bundle, "embed", task())
    document = json.loads((bundle.path / NAME).read_text())
    change(document)
    (bundle.path / NAME).write_text(json.dumps(document))
    (bundle.path / "manifest.json").unlink()
    return reopened(bundle)


def in_task(**values: Any) -> Any:
    return lambda document: document["tasks"]["embed"].update(values)


def in_row(**values: Any) -> Any:
    return lambda document: document["tasks"]["embed"]["measured"][0].update(values)


def in_metrics(**values: Any) -> Any:
    return lambda document: document["tasks"]["embed"]["measured"][0]["metrics"].update(values)


CHANGES = [
    lambda document: document.update(format="astra-mesh-quality/9"),
    lambda document: document.update(model="a"),
    lambda document: document.update(model=7),
    lambda document: document.update(tasks=[]),
    lambda document: document["tasks"].update(steal=document["tasks"]["embed"]),
    lambda document: document.pop("tasks"),
    in_task(data="x" * 65),
    in_task(data="a\x1b[2Jb"),
    in_task(sequences=-1),
    in_task(tokens=2**70),
    in_task(class_token="y" * 33),
    in_task(measure="accuracy"),
    in_task(measure="odd"),
    in_task(limit=float("nan")),
    in_task(limit=-0.1),
    in_task(baseline={"x": float("inf")}),
    in_task(definitions={"x": "y" * 501}),
    in_task(definitions={"x": "two\nlines"}),
    in_task(measured={}),
    in_task(recommended={"codec": "vq"}),
    lambda document: document["tasks"]["embed"]["recommended"].update(bits=8),
    lambda document: document["tasks"]["embed"]["recommended"].update(loss=float("nan")),
    in_row(codec="\u202e"),
    in_row(codebook="b"),
    in_row(codebook="B" * 64),
    in_row(history=-2),
    in_row(stages=0),
    in_row(stages=65),
    in_row(stages=1.5),
    in_row(bits=0),
    in_row(bits=2**40),
    in_row(peers=0),
    in_row(peers=65),
    in_row(metrics={}),
    in_row(metrics={"nats_increase": 0.0}),
    in_metrics(cosine=float("nan")),
    in_metrics(cosine=1e300),
    in_metrics(cosine="1"),
    in_metrics(**{f"m{i}": 0.0 for i in range(20)}),
    in_metrics(**{"x\n": 0.0}),
]


@pytest.mark.parametrize("change", CHANGES, ids=range(len(CHANGES)))
def test_what_is_out_of_range_is_refused_by_name(bundle: Bundle, change: Any) -> None:
    with pytest.raises(BadBundleError, match=r"quality\.json"):
        read_quality(written(bundle, change))


def test_more_rows_than_allowed(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = written(bundle, lambda document: None)
    monkeypatch.setattr(limits, "QUALITY_ROWS", 3)
    with pytest.raises(BadBundleError, match="measured"):
        read_quality(opened)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{", b"\xff", b'{"format": 1, "format": 2}', b"[" * 100_000]
)
def test_what_is_no_object(bundle: Bundle, data: bytes) -> None:
    (bundle.path / NAME).write_bytes(data)
    with pytest.raises(BadBundleError, match=r"quality\.json"):
        read_quality(bundle)


def test_a_large_file_is_not_read(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = written(bundle, lambda document: None)
    monkeypatch.setattr(limits, "QUALITY_BYTES", 100)
    with pytest.raises(BadBundleError, match="more than the 100 allowed"):
        read_quality(opened)


def test_an_altered_file_is_refused_by_the_manifest(bundle: Bundle) -> None:
    save_quality(bundle, "embed", task())
    path = bundle.path / NAME
    path.write_text(path.read_text().replace("valid.txt", "laved.txt"))
    with pytest.raises(BadBundleError, match="differs"):
        read_quality(reopened(bundle))


def test_reading_needs_no_torch() -> None:
    code = "import sys, astra_mesh.bundle.quality; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
