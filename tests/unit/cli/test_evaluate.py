"""``eval`` with toy models: what it prints and writes; and the line on quality in reports."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from msgspec.structs import replace
from rich.console import Console
from typer.testing import CliRunner, Result

from astra_mesh import __version__
from astra_mesh.bundle import open_bundle, verify
from astra_mesh.bundle.quality import read_quality
from astra_mesh.cli import progress
from astra_mesh.cli.app import app
from astra_mesh.cli.evaluate import _doubts
from astra_mesh.cli.report import cost_line, precision_line, report_block
from astra_mesh.errors import ModelError
from astra_mesh.naming import Names
from astra_mesh.quality import FitOptions, fit
from astra_mesh.wire.messages import ExpectedCost
from tests.unit.cli.stub import ME, OTHER, planned, report
from tests.unit.quality.making import toy_bundle, words, write
from tools.models.common import REPO_ROOT

QUICK = FitOptions(history=0, rates=(16, 32), groups=4, codewords=16, iterations=2)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLUMNS", "120")
    bundle, data = toy_bundle(tmp_path / "toy", "gpt2"), text(tmp_path)
    fit(bundle, data, QUICK)
    return bundle.path


def text(folder: Path) -> Path:
    return write(folder, {"x.txt": words(600)}) / "x.txt"


def call(model: Path, *arguments: str, status: int = 0) -> Result:
    data = str(model.parent / "x.txt")
    found = CliRunner().invoke(
        app, ["eval", str(model), "--data", data, "--limit", "3", *arguments]
    )
    assert found.exit_code == status, found.output
    return found


def test_the_table_says_what_was_measured_and_what_is_recommended(model: Path) -> None:
    out = call(model, "--peers", "2,4", "--loss", "1").stdout
    assert "3 inputs of x.txt, 144 tokens, 2, 4 peers with even shards" in out
    for part in ("one device", "memoryless", "fp32", "perplexity", "agreement", "±"):
        assert part in out
    assert "recommended: 16 bits, memoryless (perplexity " in out
    assert "on 4 peers; the limit is perplexity +100 % and a KL of 0.69)" in out
    assert "stored" not in out
    assert not (model / "quality.json").exists()


def test_saving_lists_it_in_the_manifest(model: Path) -> None:
    out = call(model, "--save", "--loss", "1").stdout
    assert "stored in the model's quality.json" in out
    stored = read_quality(open_bundle(model))
    assert stored is not None
    best = stored.tasks["generate"].recommended
    assert best is not None
    assert best.bits == 16
    assert "quality.json" in verify(open_bundle(model))


def test_what_cannot_be_recommended_is_said(model: Path) -> None:
    none = call(model, "--loss", "0", "--rates", "16", "--codec", "vq").stdout
    assert "recommended: " in none
    plain = call(model, "--codec", "fp16").stdout
    assert "no codebook was measured, so no rate is recommended" in plain


def test_too_few_inputs_for_the_limit_are_a_hint(model: Path) -> None:
    """A limit just above the loss that was found cannot be told from one below it."""
    document = json.loads(call(model, "--codec", "vq", "--json").stdout)
    loss = max(row["loss"] for row in document["rows"])
    if loss <= 0:
        pytest.skip("the codes happened to do better")
    assert "measure more inputs" in call(model, "--codec", "vq", "--loss", f"{loss + 1e-9}").stderr


@pytest.mark.parametrize(
    ("measure", "words"),
    [
        ("perplexity", "3.3 % ("),
        ("accuracy", "3.3 points of accuracy ("),
        ("agreement", "3.3 % ("),
        ("cosine", "0.033 of the cosine ("),
    ],
)
def test_an_error_has_the_unit_of_its_loss(measure: str, words: str) -> None:
    row = SimpleNamespace(loss=0.001, metrics={"loss_error": 0.0331})
    found = SimpleNamespace(lacking="", recommended_row=row, limit=0.005, measure=measure)
    (line,) = _doubts(found)  # type: ignore[arg-type]
    assert f"is uncertain by {words}one standard error)" in line


def test_the_error_of_one_input_is_unknown(model: Path) -> None:
    """What was stored before stays."""
    call(model, "--save")
    before = (model / "quality.json").read_bytes()
    found = call(model, "--limit", "1", "--loss", "1")
    assert "± ?" in found.stdout
    assert "± 0" not in found.stdout
    assert "recommended: none yet, that takes at least 2 windows of text" in found.stdout
    assert "uncertain the losses are takes at least 2 windows of text (--limit" in found.stderr
    refused = call(model, "--limit", "1", "--save", status=2)
    assert "--save takes 2 inputs or more, and --limit is 1" in refused.stderr
    assert (model / "quality.json").read_bytes() == before
    document = json.loads(call(model, "--limit", "1", "--loss", "1", "--json").stdout)
    assert document["recommended"] is None
    assert all("loss_error" not in row["metrics"] for row in document["rows"])


def test_what_was_measured_is_shown_although_it_cannot_be_kept(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk may have become full meanwhile."""

    def full(*_: object) -> None:
        raise ModelError("no space left")

    monkeypatch.setattr("astra_mesh.bundle.quality.save_quality", full)
    found = call(model, "--save", "--loss", "1", status=1)
    assert "recommended: 16 bits" in found.stdout
    assert "stored in" not in found.stdout
    assert "no space left" in found.stderr
    found = call(model, "--save", "--json", "--output", str(tmp_path / "x.csv"), status=1)
    document = json.loads(found.stdout)
    assert document["rows"]
    assert document["error"]["message"] == "no space left"
    assert "no space left" in found.stderr
    assert (tmp_path / "x.csv").exists()


def test_json_and_csv_hold_the_same(model: Path, tmp_path: Path) -> None:
    path, table = tmp_path / "out.json", tmp_path / "out.csv"
    shown = call(model, "--json", "--output", str(path)).stdout
    document = json.loads(path.read_text())
    told = json.loads(shown)
    ago = datetime.now(UTC) - datetime.fromisoformat(told["date"])
    assert timedelta() <= ago < timedelta(minutes=5)
    assert told | {"date": document["date"]} == document
    assert document["astra_mesh"] == __version__
    assert (document["window"], document["seed"]) == (48, None)
    assert document["class_token"] == "none"
    assert set(document["definitions"]) >= {"kl", "loss_error"}
    call(model, "--output", str(table))
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows[0]["codec"] == "one device"
    assert float(rows[0]["perplexity"]) == document["baseline"]["perplexity"]
    assert [float(row["kl"]) for row in rows[1:]] == [x["metrics"]["kl"] for x in document["rows"]]
    assert [row["codebook"] for row in rows[1:]] == [x["codebook"] for x in document["rows"]]


def test_the_bound_has_a_table_of_its_own(model: Path) -> None:
    out = call(model, "--bound", "1", "--codec", "vq").stdout
    assert "error of a block's attention" in out
    assert "bound, mean" in out
    document = json.loads(call(model, "--bound", "1", "--codec", "vq", "--json").stdout)
    assert {(row["bits_per_token"], row["block"]) for row in document["bounds"]} == {
        (bits, block) for bits in (16, 32) for block in (1, 2)
    }
    assert all(row["error"] < row["bound"] for row in document["bounds"])


def test_a_bound_without_a_codebook_is_missed(model: Path) -> None:
    none = "no bound is told: it is of a codebook's codes, and none was measured"
    assert none in call(model, "--bound", "1", "--codec", "fp32").stderr
    assert none not in call(model, "--codec", "fp32").stderr
    assert none not in call(model, "--bound", "1", "--codec", "vq").stderr


def test_progress_is_told_in_a_log_unless_it_is_json(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_TELL_S", 0.0)
    given = ("--limit", "3", "--peers", "2", "--codec", "fp32")
    assert re.search(r"comparing, \d/3 \(\d+ s\)", call(model, *given).stderr)
    assert "comparing" not in call(model, *given, "--json").stderr


def test_random_shards_have_a_seed(model: Path) -> None:
    def kls(seed: str) -> list[float]:
        options = ("--shards", "random", "--seed", seed, "--codec", "vq", "--json")
        return [row["metrics"]["kl"] for row in json.loads(call(model, *options).stdout)["rows"]]

    assert kls("1") == kls("1") != kls("2")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--peers", "two"), "--peers is a list of whole numbers"),
        (("--peers", ""), "no number of peers"),
        (("--peers", "65"), "peers must lie in 1..64"),
        (("--plot", "x.docx"), "--plot takes a file that ends in .svg"),
        (("--rates", "7"), "no codec has one of the rates"),
        (("--class-token", "single"), "toy has no class token: leave out --class-token"),
        (("--output", "x.txt"), "--output takes a .json or .csv file"),
    ],
)
def test_what_cannot_be(model: Path, arguments: tuple[str, ...], text: str) -> None:
    assert text in call(model, *arguments, status=2).stderr


def test_a_folder_that_is_not_there(model: Path) -> None:
    assert "there is no folder" in call(model, "--output", "no/such/folder.json", status=2).stderr


def test_a_plot_without_matplotlib_is_refused_before_measuring(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    found = call(model, "--plot", str(tmp_path / "x.svg"), status=2)
    assert "astra-mesh[plot]" in found.stderr
    assert found.stdout == ""


def test_the_help_and_the_readme_say_that_the_kl_counts_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = re.sub(r"[\s│]+", " ", CliRunner().invoke(app, ["eval", "--help"]).stdout)
    assert "0.02 (2 %) more perplexity, and a KL of at most ln(1 + LOSS)" in shown
    readme = (REPO_ROOT / "README.md").read_text(encoding="utf-8")
    assert "2 % more perplexity and a KL of ln 1.02 at most" in readme


# --- reports --------------------------------------------------------------------------------------

COST = ExpectedCost(measure="perplexity", loss=0.009, peers=4, data="valid.txt", sequences=64)


def rendered(expected: ExpectedCost | None, peers: list[object]) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    made = report(peers, 0)  # type: ignore[arg-type]
    values = {name: getattr(made, name) for name in made.__struct_fields__}
    whole = type(made)(**values | {"expected": expected})
    console.print(report_block(planned(peers, {ME: "a", OTHER: "b"}), whole))  # type: ignore[arg-type]
    return console.export_text()


def test_the_report_shows_the_expected_cost_beside_the_speed() -> None:
    shown = rendered(COST, [OTHER, ME])
    cost = "expected cost: perplexity +0.9 % (measured on 4 peers, 64 inputs of valid.txt)"
    assert cost in shown
    assert shown.index(cost) < shown.index("predicted 10.0 ms")
    assert "not measured: run astra-mesh eval MODEL --data ... --save" in rendered(
        None, [OTHER, ME]
    )
    assert "expected cost" not in rendered(None, [ME])


@pytest.mark.parametrize(
    ("precisions", "line"),
    [
        (("fp32", "fp32"), ""),
        (("", ""), ""),
        (("int8", "int8"), "computed in int8"),
        (("int8", "fp32"), "computed in int8 on b, fp32 on a"),
        (("", "bf16"), "computed in bf16"),
    ],
)
def test_number_formats_are_said_where_they_matter(precisions: tuple[str, str], line: str) -> None:
    made = report([OTHER, ME], 0)
    peers = [replace(one, precision=p) for one, p in zip(made.peers, precisions, strict=True)]
    names = Names({ME: "a", OTHER: "b"})
    assert precision_line(replace(made, peers=peers), names) == line


def test_text_of_a_peer_cannot_steer_the_terminal() -> None:
    hostile = ExpectedCost(measure="odd", loss=0.5, peers=1, data="a\x1b[2Jb", sequences=1)
    assert cost_line(hostile) == "odd loss 0.5 (measured on 1 peers, 1 inputs of a [2Jb)"
