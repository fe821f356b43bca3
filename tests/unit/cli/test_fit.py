"""The command ``fit``: what it prints, and errors in one line."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

from astra_mesh.bundle import open_bundle, verify
from astra_mesh.cli import fitting, learn
from astra_mesh.cli.app import app
from astra_mesh.quality import finetuning
from astra_mesh.quant import block_fit as fit_module
from astra_mesh.quant import options as fit_options
from astra_mesh.quant.codebook import load_codebook
from astra_mesh.quant.options import FitOptions
from astra_mesh.tune.options import TuneOptions
from astra_mesh.tune.trainer import Trainer
from tests.unit.quality.making import picture, toy_bundle, words, write

QUICK = ("--codewords", "16", "--rates", "4,8", "--sensitivity", "0")
TUNE = ("--finetune", "--steps", "4", "--batch", "4", "--check", "2", "--held-out", "4")


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(finetuning, "BUFFER", 32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return toy_bundle(tmp_path / "toy", "gpt2").path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path, {"data.txt": words(48 * 30)}) / "data.txt"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["fit", *map(str, arguments)])


# --- what it does ---------------------------------------------------------------------------------


def test_models_without_tokenizer_take_token_ids(model: Path, data: Path) -> None:
    """``eval`` and ``fit --finetune`` as well; where texts are given, the error says so."""
    ids = data.with_name("ids.npy")
    np.save(ids, np.array([int(word[1:]) for word in data.read_text().split()], "uint8"))
    (model / "tokenizer.json").unlink()
    measure = ["eval", str(model), "--limit", "3", "--data"]
    for result in (
        call(model, "--data", data, *QUICK),
        call(model, "--data", data, *QUICK, *TUNE, "-o", model.parent / "tuned"),
        CliRunner().invoke(app, [*measure, str(data)]),
    ):
        assert result.exit_code == 2
        assert "toy has no tokenizer.json, so it reads no text: " in result.stderr
        assert "or give token ids (.npy, see the README)" in result.stderr
    result = call(model, "--data", ids, *QUICK)
    assert result.exit_code == 0, result.output
    assert "30 sequences, 1440 tokens" in result.stdout
    measured = CliRunner().invoke(app, [*measure, str(ids), "--codec", "vq", "--save"])
    assert measured.exit_code == 0, measured.output
    assert "toy, generate: 3 inputs of ids.npy, 144 tokens" in measured.stdout
    tuned = call(model, "--data", ids, *QUICK, *TUNE, "-o", model.parent / "tuned")
    assert tuned.exit_code == 0, tuned.output
    assert not (model.parent / "tuned/tokenizer.json").exists()


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        (np.ones(99), "ids.npy holds float64 values; token ids are whole numbers, as int32"),
        (np.full(99, 61), "ids.npy holds ids from 61 to 61, and the model's go from 0 to 60"),
        (np.ones((2, 2, 2), int), "ids.npy has 3 dimensions: give one"),
        (np.ones(1, int), "ids.npy holds too little"),
    ],
)
def test_token_ids_that_cannot_be_used(
    model: Path, tmp_path: Path, ids: NDArray[np.generic], text: str
) -> None:
    np.save(tmp_path / "ids.npy", ids)
    for command in ("fit", "eval"):
        result = CliRunner().invoke(app, [command, str(model), "--data", f"{tmp_path}/ids.npy"])
        assert result.exit_code == 2
        assert text in result.stderr
        assert "Traceback" not in result.output


def test_few_tokens_are_told(model: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = call(model, "--data", data, *QUICK)
    assert "1440 tokens are few for 16 codewords" in " ".join(result.stderr.split())
    monkeypatch.setattr(fitting, "FEW", 90)
    again = call(model, "--data", data, *QUICK, "--sample", "1000", "--iterations", "3")
    assert "tokens are few" not in again.stderr
    assert again.exit_code == 0


def test_a_codebook_is_fitted_and_the_report_printed(model: Path, data: Path) -> None:
    result = call(model, "--data", data, *QUICK)
    assert result.exit_code == 0
    assert "30 sequences, 1440 tokens" in result.stdout
    rates, header, first, second = result.stdout.splitlines()[1:5]
    assert re.split(r"\s{2,}", rates.strip()) == ["4 bits:", "8 bits:"]
    assert header.split() == ["block", "predicted", "coded", "predicted", "coded"]
    for row, block in ((first, 1), (second, 2)):
        number, *shares = row.split()
        assert int(number) == block
        assert all(0 < float(share) < 1.1 for share in shares)
    path = model / "codebook.safetensors"
    assert f"codebook in {path}" in result.stdout
    assert load_codebook(path, open_bundle(model).model_id).rates == {1: 4, 2: 8}
    assert "codebook.safetensors" in verify(open_bundle(model))


def test_json_has_the_same_and_more(model: Path, data: Path) -> None:
    result = call(model, "--data", data, *QUICK, "--json")
    assert result.exit_code == 0
    (line,) = result.stdout.splitlines()
    told = json.loads(line)
    book = load_codebook(model / "codebook.safetensors")
    assert told["id"] == book.id
    assert told["codebook"] == str(model / "codebook.safetensors")
    assert told["bytes"] == (model / "codebook.safetensors").stat().st_size
    assert (told["tokens"], told["sequences"], told["resumed_fits"]) == (1440, 30, 0)
    assert told["rates"] == [4, 8]
    assert {(one["block"], one["bits"]) for one in told["blocks"]} == {
        (1, 4),
        (2, 4),
        (1, 8),
        (2, 8),
    }


@pytest.mark.parametrize(
    ("history", "dear", "advised"), [("all", 0.0, True), ("all", 1e9, False), ("0", 0.0, False)]
)
def test_codes_that_take_long_are_told(
    model: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    history: str,
    dear: float,
    advised: bool,
) -> None:
    monkeypatch.setattr(fitting, "DEAR", dear)
    given = (model, "--data", data, *QUICK, "--history", history)
    shown = call(*given)
    assert ("codes without history answer sooner" in shown.stderr) == advised
    assert ("--history 0, then astra-mesh eval" in shown.stderr) == advised
    told = json.loads(call(*given, "--json").stdout)
    assert 0 < told["block_token_s"] < 1
    (of_a_block,) = re.findall(r"where the block itself takes ([\d.]+) us a token", shown.stdout)
    assert float(of_a_block) > 0
    rows = [line for line in shown.stdout.splitlines() if re.search(r"\s\d+%\s*$", line)]
    assert len(rows) == len(told["costs"])


def test_figures_of_a_replaced_codebook_no_longer_count(model: Path, data: Path) -> None:
    """Those of another one and of the same one again still do."""
    given = ("--data", data, *QUICK)
    assert "no longer counts" not in call(model, *given).stderr
    measure = ("eval", str(model), "--data", str(data), "--limit", "2", "--codec", "vq", "--save")
    assert CliRunner().invoke(app, measure).exit_code == 0
    for other in ((), ("--history", "0"), ("-o", model.parent / "other.safetensors")):
        told = json.loads(call(model, *given, *other, "--json").stdout)
        assert told["outdated_tasks"] == []
        assert told["passed_over"] == ("--history" in other)
    passed_over = "so that requests go on with that: astra-mesh eval"
    assert passed_over in call(model, *given, "--history", "0").stderr
    shown = call(model, *given, "--seed", "1")
    assert "what was measured before (generate) is of the codebook that this one" in shown.stderr
    assert f"astra-mesh eval {model} --data ... --save" in shown.stderr
    again = call(model, *given, "--seed", "2", "--json")
    assert json.loads(again.stdout)["outdated_tasks"] == []  # nothing is measured of the second
    assert CliRunner().invoke(app, measure).exit_code == 0
    told = json.loads(call(model, *given, "--seed", "3", "--json").stdout)
    assert told["outdated_tasks"] == ["generate"]


@pytest.mark.parametrize(
    ("options", "rates", "besides"),
    [
        (("--history", "0", "--rates", "8,16", "--groups", "1"), [4, 8, 16], [4]),
        (("--history", "0", "--rates", "8,16"), [8, 16], []),
        (("--history", "0", "--rates", "4,8"), [4, 8], []),
        (("--history", "1", "--rates", "8,16"), [8, 16], []),
        (("--codec", "astra", "--groups", "4"), [16], []),
    ],
)
def test_rates_that_come_besides_are_told(
    model: Path, data: Path, options: tuple[str, ...], rates: list[int], besides: list[int]
) -> None:
    given = (model, "--data", data, "--codewords", "16", "--sensitivity", "0", *options)
    told = json.loads(call(*given, "--json").stdout)
    assert (told["rates"], told["rates_besides"]) == (rates, besides)
    shown = call(*given).stdout
    assert ("4 bits were not asked for: codes without history begin" in shown) == bool(besides)
    assert ("not asked for" in shown) == bool(besides)


@pytest.mark.parametrize(
    ("options", "history", "name"),
    [
        (("--history", "all"), -1, "codebook"),
        (("--history", "unlimited"), -1, "codebook"),
        (("--history", "0"), 0, "codebook-h0"),
        (("--history", "1"), 1, "codebook-h1"),
        (("--codec", "astra", "--groups", "4"), 0, "codebook-astra-g4"),
    ],
)
def test_kinds_of_codebooks(
    model: Path, data: Path, options: tuple[str, ...], history: int, name: str
) -> None:
    given = ("--codewords", "16") if "astra" in options else QUICK
    assert call(model, "--data", data, *given, *options).exit_code == 0
    assert load_codebook(model / f"{name}.safetensors").history == history


@pytest.mark.parametrize(
    ("kind", "wide", "options", "wanted"),
    [
        ("gpt2", False, (), (-1, (16, 32, 64, 128), 64, 1, False)),
        ("gpt2", True, (), (0, (128, 256, 512), 256, 16, False)),
        ("vit", False, (), (-1, (16, 32, 64, 128), 64, 1, False)),
        ("vit", True, (), (0, (128, 256, 512), 256, 16, True)),
        ("vit", True, ("--exact-first",), (0, (128, 256, 512), 256, 16, False)),
        ("vit", True, ("--history", "all"), (-1, (16, 32, 64, 128), 64, 1, False)),
        ("vit", False, ("--history", "0"), (0, (128, 256, 512), 256, 16, False)),
        ("gpt2", True, ("--rates", "64,128"), (-1, (64, 128), 64, 1, False)),
        ("gpt2", True, ("--rates", "128,512"), (0, (128, 512), 256, 16, False)),
        ("gpt2", True, ("--history", "0", "--rates", "32,64"), (0, (32, 64), 256, 4, False)),
        ("gpt2", True, ("--codewords", "65536"), (0, (128, 256, 512), 256, 8, False)),
        ("gpt2", True, ("--groups", "8"), (0, (128, 256, 512), 256, 8, False)),
        ("gpt2", True, ("--default-rate", "512"), (0, (128, 256, 512), 512, 16, False)),
        ("gpt2", True, ("--codec", "astra"), (0, (), 64, 1, False)),
    ],
)
def test_codes_that_suit_the_model(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    wide: bool,
    options: tuple[str, ...],
    wanted: tuple[object, ...],
) -> None:
    """Wide ones get codes without history, and are told so unless they asked for some."""
    seen: list[FitOptions] = []
    monkeypatch.setattr(learn, "fit_codebook", lambda asked, options: seen.append(options))
    monkeypatch.setattr(fit_options, "WIDE", 0 if wide else 1 << 20)
    shown = call(toy_bundle(tmp_path / "toy", kind).path, "--data", tmp_path, *options)
    assert shown.exit_code == 0, shown.stderr
    (got,) = seen
    found = got.history, got.rates, got.default_rate, got.groups, got.code_first
    assert found == wanted
    told = "codes without history, which take more bits and less time" in shown.stderr
    assert told == (not {"--history", "--codec"} & {*options} and wanted[0] == 0)


@pytest.mark.parametrize(("hidden_size", "history"), [(511, -1), (512, 0)])
def test_where_models_are_wide(hidden_size: int, history: int) -> None:
    found = FitOptions.suited(hidden_size, pictures=True)
    assert (found.history, found.code_first) == (history, history == 0)
    found.check(hidden_size)


def test_options_reach_the_fit(model: Path, data: Path, tmp_path: Path) -> None:
    """Each changes the outcome."""
    changes = (
        (),
        ("--seed", "1"),
        ("--tokens", "800"),
        ("--window", "20"),
        ("--split", "fit"),
        ("--groups", "2", "--rates", "8,16"),
        ("--sensitivity", "0.5"),
        ("--rates", "4,12"),
    )
    ids = set()
    for number, change in enumerate(changes):
        path = tmp_path / f"{number}.safetensors"
        assert call(model, "--data", data, *QUICK, *change, "-o", path).exit_code == 0
        ids.add(load_codebook(path).id)
    assert len(ids) == len(changes)
    assert open_bundle(model).codebook_paths == {}


@pytest.mark.parametrize(
    ("whole", "history", "text"),
    [
        (1, "all", "1 of 4 fits (2 blocks at 2 rates)"),
        (3, "all", "3 of 4 fits (2 blocks at 2 rates)"),
        (1, "0", "1 of 2 blocks"),
    ],
)
def test_a_killed_run_goes_on_and_says_so(
    model: Path, data: Path, monkeypatch: pytest.MonkeyPatch, whole: int, history: str, text: str
) -> None:
    plain, calls = fit_module.BlockFit.run, []
    given = (model, "--data", data, *QUICK, "--history", history)

    def run(self: fit_module.BlockFit, *arguments: object) -> object:
        calls.append(self.index)
        if len(calls) == whole + 1:
            raise KeyboardInterrupt
        return plain(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(fit_module.BlockFit, "run", run)
    stopped = call(*given)
    assert stopped.exit_code == 130
    assert "the same command goes on" in stopped.stderr
    result = call(*given)
    assert result.exit_code == 0
    assert f"\n{text} came from an interrupted run" in result.stdout
    monkeypatch.setattr(fit_module.BlockFit, "run", plain)
    plainly = call(*given, "-o", model.parent / "whole.safetensors")
    assert plainly.stdout.splitlines()[:5] == result.stdout.splitlines()[:5]  # the whole report
    again = (model.parent / "whole.safetensors").read_bytes()
    (made,) = open_bundle(model).codebook_paths.values()
    assert again == made.read_bytes()
    told = json.loads(call(*given, "--json").stdout)
    assert (told["fits"], told["resumed_fits"]) == (len(calls) - 1, 0)


def test_fine_tuning_makes_a_new_model(model: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "new"
    result = call(model, "--data", data, *QUICK, *TUNE, "-o", output)
    assert result.exit_code == 0
    found = re.search(
        r"held-out loss with four peers ([\d.]+) at the start, ([\d.]+) now "
        r"\(kept: step (\d) of 4; one device ([\d.]+)\); curve in training.csv",
        result.stdout,
    )
    assert found
    with (output / "training.csv").open() as stream:
        rows = {row["step"]: row for row in csv.DictReader(stream)}
    kept = rows[found[3]]
    shown = rows["0"]["held_out_mesh"], kept["held_out_mesh"], kept["held_out_alone"]
    told_losses = [float(found[place]) for place in (1, 2, 4)]
    assert told_losses == pytest.approx([float(one) for one in shown], abs=1e-4)
    assert f"model and codebook in {output}; held-out" in result.stdout
    assert verify(open_bundle(output))
    (path,) = open_bundle(output).codebook_paths.values()
    again = call(model, "--data", data, *QUICK, *TUNE, "-o", tmp_path / "second", "--json")
    told = json.loads(again.stdout)
    assert told["bundle"] == str(tmp_path / "second")
    assert told["codebook"] == load_codebook(path).id  # the same run gives the same
    assert (told["steps"], told["stopped_early"]) == (4, False)
    assert told["best_step"] in (2, 4)
    assert "better than the start" not in result.stdout
    wanted = [told[f"held_out_{name}"] for name in ("start", "loss", "one_device")]
    assert told_losses == pytest.approx(wanted, abs=1e-4)


def test_options_reach_the_training(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy_bundle(tmp_path / "bert", "bert").path  # it has a class token
    seen: dict[str, Any] = {}

    def finetune(*arguments: object, **options: object) -> None:
        seen["fit"], seen["tune"], seen["output"] = arguments[2:5]
        seen.update(options)

    monkeypatch.setattr(finetuning, "finetune", finetune)
    text = (
        "--finetune --steps 7 --batch 3 --learning-rate 0.01 --train lora --noise 0.7 "
        "--covariance full --distill 0.2 --even --peers 2,5 --precision bf16 --patience 9 "
        "--check 4 --held-out 11 --seed 5 --class-token single --split fit --task embed "
        "--window 30 --lora-rank 3 --commitment 0.02 --codebook-rate 0.006"
    )
    place = ("-o", tmp_path / "new", "--work", tmp_path / "work")
    assert call(model, "--data", data, *QUICK, *text.split(), *place).exit_code == 0
    tune = {
        "steps": 7,
        "batch": 3,
        "learning_rate": 0.01,
        "trained": "lora",
        "noise": 0.7,
        "covariance": "full",
        "distill": 0.2,
        "uneven": False,
        "peers": (2, 5),
        "precision": "bf16",
        "patience": 9,
        "check": 4,
        "held_out": 11,
        "seed": 5,
        "distributed": False,
        "lora_rank": 3,
        "commitment": 0.02,
        "codebook_rate": 0.006,
    }
    plain = TuneOptions()
    assert all(getattr(plain, name) != value for name, value in tune.items())
    assert {name: getattr(seen["tune"], name) for name in tune} == tune
    assert (seen["fit"].codewords, seen["fit"].rates, seen["fit"].seed) == (16, (4, 8), 5)
    assert (seen["output"], seen["work"]) == (tmp_path / "new", tmp_path / "work")
    assert (seen["split"], seen["task"], seen["window"]) == ("fit", "embed", 30)


def test_the_defaults_are_those_of_the_training(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    monkeypatch.setattr(finetuning, "finetune", lambda *given, **named: seen.append(given[3]))
    assert call(model, "--data", data, "--finetune", "-o", tmp_path / "new").exit_code == 0
    assert seen == [TuneOptions()]


def test_no_gain_is_said(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "measure", lambda self: (1.0 + self.step, 1.0))
    result = call(model, "--data", data, *QUICK, *TUNE, "-o", tmp_path / "new")
    assert result.exit_code == 0
    assert (
        "; held-out loss with four peers 1.0000 (one device 1.0000): no step of 4 was better than "
        "the start, which is what was kept; curve"
    ) in result.stdout
    again = call(model, "--data", data, *QUICK, *TUNE, "-o", tmp_path / "second", "--json")
    told = json.loads(again.stdout)
    assert (told["steps"], told["best_step"], told["held_out_loss"]) == (4, 0, 1.0)


# --- what goes wrong ------------------------------------------------------------------------------

WRONG: dict[str, tuple[tuple[str, ...], int, str]] = {
    "history": (("--history", "some"), 2, "--history is all or a number of blocks, not 'some'"),
    "negative history": (("--history", "-3"), 2, "--history is all or a number of blocks"),
    "long history": (
        ("--history", "2"),
        2,
        "a history of 2 looks back no further than all does in a model of 3 blocks, and costs more",
    ),
    "rates": (("--rates", "4,x"), 2, "--rates is a list of whole numbers, as 16,64"),
    "no rates": (("--rates", ","), 2, "no rate is named"),
    "odd rate": (("--rates", "6"), 2, "a rate of 6 bits cannot be"),
    "negative rate": (("--rates", "-4"), 2, "a rate of -4 bits cannot be"),
    "too many codewords": (("--codewords", "4096"), 2, "too few for 4096 codewords"),
    "task": (("--task", "classify"), 2, "this gpt2 model cannot classify; it can generate"),
    "a folder that is not there": (("-o", "no/such/x.safetensors"), 2, "there is no folder"),
    "a folder as a file": (("-o", "."), 2, "it is a folder; name a file"),
    "class token": (("--class-token", "single"), 2, "toy has no class token: leave out --class"),
    "class token of training": (
        ("--finetune", "-o", "new", "--class-token", "distributed"),
        2,
        "toy has no class token: leave out --class-token",
    ),
    "no output": (("--finetune",), 2, "--finetune makes a new model: name its folder with"),
    "peers": (("--finetune", "-o", "new", "--peers", "2,x"), 2, "--peers is a list of whole"),
    "no peers": (("--finetune", "-o", "new", "--peers", "0"), 2, "peers must lie in 1..64"),
    "default rate": (
        ("--default-rate", "16"),
        2,
        "--default-rate 16 is none of the rates 4, 8",
    ),
    "rates of astra": (("--codec", "astra"), 2, "astra has one rate (--groups, --codewords)"),
    "sensitivity": (
        ("--sensitivity", "inf"),
        2,
        "sensitivity must be a finite number of at least 0",
    ),
    "noise": (
        ("--finetune", "-o", "new", "--noise", "inf"),
        2,
        "noise must be a finite number of at least 0, it is inf",
    ),
    "commitment": (
        ("--finetune", "-o", "new", "--commitment", "inf"),
        2,
        "commitment must be a finite number of at least 0, it is inf",
    ),
    "learning rate": (
        ("--finetune", "-o", "new", "--learning-rate", "0"),
        2,
        "learning rates must lie between 0 and 1",
    ),
    "codebook rate": (
        ("--finetune", "-o", "new", "--codebook-rate", "0"),
        2,
        "learning rates must lie between 0 and 1",
    ),
}


TRAINING = (
    "--steps 5", "--batch 2", "--learning-rate 0.01", "--train lora", "--noise 0.3",
    "--covariance full", "--distill 0.9", "--even", "--peers 2", "--precision fp32",
    "--lora-rank 8", "--commitment 0", "--codebook-rate 0.01", "--patience 5", "--check 9",
    "--held-out 5", "--held-out-data x.txt", "--work w",
)  # fmt: skip


def test_options_of_training_need_finetune(model: Path, data: Path) -> None:
    """Also with the value of the default: a plain fit would write over the model's codebook."""
    before = {path.name for path in model.iterdir()}
    for text in TRAINING:
        result = call(model, "--data", data, *QUICK, *text.split())
        option = text.split()[0]
        assert result.exit_code == 2, text
        assert f"error: {option} is an option of training: give --finetune too" in result.stderr
    assert {path.name for path in model.iterdir()} == before


@pytest.mark.parametrize("name", WRONG)
def test_errors_are_one_line(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    options, status, text = WRONG[name]
    monkeypatch.chdir(tmp_path)
    rates = ("--rates", "12") if "--codewords" in options else ()
    before = {path.name for path in model.iterdir()}
    result = call(model, "--data", data, *QUICK, *rates, *options)
    assert result.exit_code == status
    assert f"error: {text}" in result.stderr or (
        "error:" in result.stderr and text in result.stderr
    )
    assert len([line for line in result.stderr.splitlines() if "error:" in line]) == 1
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert {path.name for path in model.iterdir()} == before
    assert not (tmp_path / "new").exists()
    as_json = call(model, "--data", data, *QUICK, *rates, *options, "--json")
    assert text in json.loads(as_json.stdout)["error"]["message"]


@pytest.mark.parametrize(
    "options",
    [
        ("--default-rate", "0"),
        ("--codewords", "1"),
        ("--codec", "fp16"),
        ("--train", "some"),
        ("--distill", "1.5"),
        ("--steps", "0"),
        ("--lora-rank", "0"),
        ("--commitment", "-1"),
        ("--window", "1"),
    ],
)
def test_impossible_values_are_usage_errors(
    model: Path, data: Path, options: tuple[str, ...]
) -> None:
    assert call(model, "--data", data, *options).exit_code == 2


def test_data_of_the_wrong_kind(model: Path, tmp_path: Path) -> None:
    write(tmp_path, {"x.png": picture(1)})
    result = call(model, "--data", tmp_path / "x.png")
    assert result.exit_code == 2
    assert (
        "this model reads text: give a .txt file, or token ids (.npy), not x.png" in result.stderr
    )
    result = call(tmp_path / "nowhere", "--data", tmp_path / "x.png")
    assert result.exit_code == 2
    assert "there is no folder" in result.stderr


def test_the_model_s_own_folder_is_no_output(model: Path, data: Path) -> None:
    result = call(model, "--data", data, *QUICK, *TUNE, "-o", model)
    assert result.exit_code == 2
    assert "needs a folder of its own" in result.stderr


# --- help -----------------------------------------------------------------------------------------

OPTIONS = """
    --data --codec --history --rates --default-rate --groups --codewords --class-token --tokens
    --sensitivity --window --split --task --seed --output --finetune --steps --batch
    --learning-rate --train --noise --covariance --distill --even --peers --precision --patience
    --check --held-out --work --lora-rank --commitment --codebook-rate --json
"""


def test_the_help_lists_every_option() -> None:
    result = call("--help")
    assert result.exit_code == 0
    found = set(re.findall(r"--[a-z][a-z-]+", result.stdout))
    assert found >= set(OPTIONS.split())
    assert learn.FIT_EXAMPLE in result.stdout
    assert "Fine-tuning" in result.stdout
