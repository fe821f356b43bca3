"""The grid of the speed benchmark and its figures; nothing is measured here."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tools.bench.machine import facts
from tools.bench.shifts import CHOSEN, MESH, VARIANTS, Shift
from tools.bench.speed import PRESETS, Bench, Cell, _parsed, main, sweep_of
from tools.bench.speed_plots import COLOURS, LABELS, draw, load, remarks, table
from tools.bench.speed_plots import main as plots
from tools.bench.speed_results import read
from tools.lab.system import LabUnavailableError


def made_up_rows() -> list[dict[str, Any]]:
    """Two rates, two lengths, one to four devices, three rounds of three variants."""
    grid = itertools.product((10.0, 100.0), (64, 128), (1, 2, 4), range(3))
    return [
        made_up_row(Cell("gpt2-124m", tokens, mbps, members), turn, variant)
        for mbps, tokens, members, turn in grid
        for variant in ("single", "tensor", "mesh-16")
    ]


def made_up_row(cell: Cell, turn: int, variant: str) -> dict[str, Any]:
    seconds = 0.01 * cell.tokens + 0.001 * turn
    peer = {"compute_s": 0.5 * seconds, "encode_s": 0.01, "decode_s": 0.01, "wait_s": 0.02}
    peer["sent_bytes"] = 0 if variant == "single" else 99
    row = {"variant": variant, "round": turn, "seconds": seconds, "peers": [peer] * cell.members}
    if variant in MESH:
        row["predicted_s"] = 1.1 * seconds
    return cell._asdict() | row


@pytest.fixture(scope="session")
def _fonts_opened(tmp_path_factory: pytest.TempPathFactory) -> None:
    """matplotlib keeps the files of the fonts that it has used open."""
    path = tmp_path_factory.mktemp("fonts") / "speed-x.json"
    path.write_text(json.dumps({"rows": made_up_rows()}))
    draw([path], path.parent)


def test_every_variant_has_a_name_and_a_colour() -> None:
    assert set(VARIANTS) == set(LABELS) == set(COLOURS)


@pytest.mark.parametrize("preset", list(PRESETS))
def test_presets_are_grids(preset: str) -> None:
    sweep = sweep_of(_parsed(["--preset", preset]))
    cells = [c for m in sweep.models for count in sweep.peers for c in sweep.cells(m, count)]
    assert len(set(cells)) == len(cells)
    assert {cell.members for cell in cells} == set(sweep.peers)
    assert all(cell.mbps == sweep.rates[0] for cell in cells if cell.members == 1)
    assert 0 < sweep.cores * max(sweep.peers) <= max(sweep.peers)


@pytest.mark.parametrize(
    ("only", "alone"),
    [
        (VARIANTS, ["single", CHOSEN]),
        (("mesh-16", "tensor", "single"), ["mesh-16", "single"]),
        (("mesh-128", CHOSEN), [CHOSEN]),
        (("single", "tensor"), ["single"]),
    ],
)
def test_one_device_has_one_plan(only: tuple[str, ...], alone: list[str]) -> None:
    sweep = sweep_of(_parsed(["--only", *only]))
    assert sweep.variants(1) == alone
    assert sweep.variants(2) == list(only)


def test_options_change_a_preset_and_pictures_have_their_own_tokens() -> None:
    argv = ["--preset", "tokens", "--models", "vit-base", "gpt2-124m", "--rounds", "7"]
    sweep = sweep_of(_parsed(argv))
    assert (sweep.rounds, list(sweep.peers)) == (7, [4])
    assert sweep.tokens_of("vit-base") == [197]
    assert 4096 in sweep.tokens_of("gpt2-124m")
    assert sweep.variants(1)[0] == "single"


def test_the_dtype_is_of_all_processes_and_in_the_results(tmp_path: Path) -> None:
    sweep = sweep_of(_parsed(["--dtype", "bf16"]))
    assert sweep.dtype == "bf16"
    path = tmp_path / "speed-x.json"
    Bench(sweep, path, []).save()
    assert json.loads(path.read_text())["settings"]["dtype"] == "bf16"
    assert _parsed(["--preset", "tokens", "--dtype", "bf16"]).label == "tokens-bf16"
    assert _parsed(["--preset", "tokens"]).label == "tokens"
    with pytest.raises(SystemExit):
        _parsed(["--dtype", "auto"])  # not the same for peers and baselines


@pytest.fixture
def _no_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is measured, also where there could be a laboratory."""

    def refuse() -> None:
        raise LabUnavailableError("network namespaces need root")

    def ensure(*_: object) -> None:
        raise AssertionError("it went on")

    monkeypatch.setattr("tools.bench.speed.require_lab", refuse)
    monkeypatch.setattr("tools.bench.speed.ensure", ensure)


RESUME = ("--busy", "--resume", "--label", "x", "--cores", "0.5")


@pytest.mark.usefixtures("_no_lab")
@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--dtype", "bf16", "of --dtype fp32, and these rows would be of bf16"),
        ("--cores", "0.25", "of --cores 0.5, and these rows would be of 0.25"),
        ("--threads", "2", "of --threads 1, and these rows would be of 2"),
        ("--delay-ms", "5", "of --delay-ms 0.0, and these rows would be of 5.0"),
    ],
)
def test_results_of_other_settings_are_not_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, said: str
) -> None:
    Bench(sweep_of(_parsed(RESUME)), tmp_path / "speed-x.json", []).save()
    argv = [*RESUME, "--out", str(tmp_path)]
    assert main([*argv, option, value]) == 1
    assert said in capsys.readouterr().err
    assert main([*argv, "--rounds", "2"]) == 3  # which makes no row incomparable: it began


def test_a_variant_more_is_measured_beside_the_base_alone(tmp_path: Path) -> None:
    """The others keep their rounds, and its ratios are to answers of its own rounds."""
    before, argv = ["single", "mesh-128"], ["--peers", "2", "--tokens", "256", "--rates", "10"]
    cell = Cell("gpt2-124m", 256, 10.0, 2)
    rows = [made_up_row(cell, 0, name) for name in before]
    sweep = sweep_of(_parsed([*argv, "--only", *before, "astra-1"]))
    ((shift, cells),) = Bench(sweep, tmp_path / "speed-x.json", rows)._todo("gpt2-124m")
    assert (shift.names, cells) == (("single", "astra-1"), [cell])
    ((whole, _),) = Bench(sweep, tmp_path / "speed-x.json", [])._todo("gpt2-124m")
    assert set(whole.names) == {*before, "astra-1"}
    assert whole.kind != shift.kind
    rows.append(made_up_row(cell, 0, "astra-1"))
    assert Bench(sweep, tmp_path / "speed-x.json", rows)._todo("gpt2-124m") == []


def test_what_is_slow_has_one_round_but_not_the_base_of_all_ratios(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only = ["single", "tensor", "mesh-128"]
    sweep = sweep_of(_parsed(["--only", *only, "--rounds", "3", "--slow-s", "2"]))
    bench, cell = Bench(sweep, tmp_path / "speed-x.json", []), Cell("gpt2-124m", 256, 10.0, 2)
    took = {"single": 3.0, "tensor": 3.0, "mesh-128": 1.0}
    monkeypatch.setattr("tools.bench.speed.ask", lambda _, __, name: {"seconds": took[name]})
    rig: Any = SimpleNamespace(settle=lambda: None)
    bench._cell(rig, cell, Shift(tuple(only), 2, 2))
    counts = Counter(row["variant"] for row in bench._rows)
    assert counts == {"single": 3, "tensor": 1, "mesh-128": 3}


def test_what_is_asked_for_twice_is_measured_once() -> None:
    argv = ["--peers", "2", "1", "2", "--rates", "10", "10", "--only", "single", "single"]
    sweep = sweep_of(_parsed([*argv, "--tokens", "64", "64", "--models", "vit-base", "vit-base"]))
    assert (sweep.peers, sweep.rates, sweep.only) == ([1, 2], [10.0], ["single"])
    assert (sweep.tokens, sweep.models) == ([64], ["vit-base"])


@pytest.mark.usefixtures("_no_lab")
@pytest.mark.parametrize(
    ("rounds", "slow_s", "said"),
    [
        ("2", "60", "cells that are there keep their rounds: none are added to make 2\n"),
        ("1", "60", ""),
        ("2", "0.01", ""),  # it has one round only as it is slow
    ],
)
def test_cells_that_are_there_get_no_more_rounds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rounds: str, slow_s: str, said: str
) -> None:
    path = tmp_path / "speed-x.json"
    row = made_up_row(Cell("gpt2-124m", 64, 10.0, 1), 0, "single")
    Bench(sweep_of(_parsed(RESUME)), path, [row]).save()
    grid = ["--models", "gpt2-124m", "--tokens", "64", "--rates", "10", "--peers", "1"]
    argv = [*RESUME, "--out", str(tmp_path), *grid, "--only", "single"]
    assert main([*argv, "--rounds", rounds, "--slow-s", slow_s]) == 0
    assert capsys.readouterr().err == f"{said}results: {path}\n"
    assert read(path).rows == [row]


@pytest.mark.usefixtures("_no_lab")
def test_results_of_another_commit_are_resumed_and_have_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, argv = tmp_path / "speed-x.json", [*RESUME, "--out", str(tmp_path)]
    for commit, both in (("abc", "abc"), ("def+", "abc, def+"), ("def+", "abc, def+")):
        here = facts() | {"commit": commit}
        monkeypatch.setattr("tools.bench.speed.facts", lambda here=here: here)
        before = read(path).machine if path.exists() else {}
        assert not path.exists() or main(argv) == 3  # not 1: it began
        Bench(sweep_of(_parsed(RESUME)), path, [], before).save()
        assert read(path).machine["commit"] == both


@pytest.mark.usefixtures("_no_lab")
def test_results_that_are_there_are_replaced_only_if_that_is_wanted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, argv = tmp_path / "speed-x.json", [*RESUME, "--out", str(tmp_path)]
    argv.remove("--resume")
    assert main(argv) == 3  # nothing is there: it began
    Bench(sweep_of(_parsed(RESUME)), path, []).save()
    assert main(argv) == 2
    assert "--resume goes on with it, --replace begins it anew" in capsys.readouterr().err
    assert main([*argv, "--replace"]) == 3


def test_results_of_a_busy_machine_say_so(tmp_path: Path) -> None:
    path, sweep = tmp_path / "speed-x.json", sweep_of(_parsed(RESUME))
    for others, before, busy in ((0.05, {}, False), (0.5, {}, True), (0.0, {"others": 0.5}, True)):
        Bench(sweep, path, made_up_rows(), before, others).save()
        (found,) = load(path)
        assert found.busy == busy
        assert any("other programs ran" in line for line in remarks(found)) == busy


@pytest.mark.usefixtures("_no_lab")
def test_results_of_another_machine_are_not_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Bench(sweep_of(_parsed(RESUME)), tmp_path / "speed-x.json", []).save()
    here = facts() | {"instructions": "AVX1024"}
    monkeypatch.setattr("tools.bench.speed.facts", lambda: here)
    assert main([*RESUME, "--out", str(tmp_path)]) == 1
    assert "and this machine has AVX1024" in capsys.readouterr().err


@pytest.mark.usefixtures("_no_lab")
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"settings": {}, "rows": [', "holds no results of tools.bench.speed: .*"),
        ('{"settings": {}}', "holds no results of tools.bench.speed: .*`rows`"),
        ('{"settings": {"dtype": "fp32"}, "rows": []}', "does not say its rows' cores"),
    ],
)
def test_a_damaged_file_is_not_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, said: str
) -> None:
    path = tmp_path / "speed-x.json"
    path.write_text(content)
    assert main([*RESUME, "--out", str(tmp_path)]) == 2
    assert re.fullmatch(f"error: {re.escape(str(path))} {said}.*\n", capsys.readouterr().err)
    assert path.read_text() == content


@pytest.mark.usefixtures("_no_lab")
def test_without_a_laboratory_its_own_sentence_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--busy", "--out", str(tmp_path), "--cache", str(tmp_path / "cache")]) == 3
    assert capsys.readouterr().err == "error: network namespaces need root\n"
    assert not list(tmp_path.iterdir())  # no model was made for it


@pytest.mark.parametrize(
    "argv",
    [
        ("--peers", "0"),
        ("--peers", "2", "201"),
        ("--tokens", "0"),
        ("--tokens", "4097"),
        ("--rates", "0"),
        ("--rates", "10", "-5"),
        ("--rates", "nan"),
        ("--cores", "0"),
        ("--cores", "-1"),
        ("--rounds", "0"),
        ("--threads", "0"),
        ("--delay-ms", "-1"),
        ("--dtype", "int8"),  # tensor is among the variants
        ("--only", "astra-1", "--peers", "1"),
        ("--label", "a/b"),
        ("--out", __file__),
        ("--out", f"{__file__}/results"),
    ],
    ids=" ".join,
)
def test_bad_options_are_told_before_anything_is_measured(
    argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        _parsed(argv)
    assert ended.value.code == 2
    assert f"error: argument {argv[0]}: " in capsys.readouterr().err


def test_more_cores_than_there_are_need_busy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    argv = ["--cores", "2.5", "--peers", "1", "2"]
    assert _parsed([*argv[:-1]]).cores == 2.5
    with pytest.raises(SystemExit) as ended:
        _parsed(argv)
    assert ended.value.code == 2
    said = "error: argument --cores: 2.5 for each of 2 devices, and this machine has 4\n"
    assert capsys.readouterr().err.endswith(said)
    assert _parsed([*argv, "--busy"]).cores == 2.5  # the laboratory warns


def test_lengths_that_pictures_do_not_have_are_no_error() -> None:
    assert _parsed(["--models", "vit-base", "--tokens", "9999"]).tokens == [9999]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seconds": 0}, r"`\$.rows\[1\].seconds`"),
        ({"variant": "mesh-17"}, "no variant 'mesh-17'"),
        ({"peers": []}, r"`\$.rows\[1\].peers`"),
        ({"tokens": "many"}, r"`\$.rows\[1\].tokens`"),
    ],
)
def test_damaged_rows_are_told_and_nothing_is_drawn(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    good, path = tmp_path / "good.json", tmp_path / "damaged.json"
    row = made_up_rows()[0]
    good.write_text(json.dumps({"rows": [row]}))
    path.write_text(json.dumps({"rows": [row, row | change]}))
    with pytest.raises(SystemExit, match=f"^error: .*damaged.json holds no results.*{said}"):
        plots([str(good), str(path)])
    assert {file.name for file in tmp_path.iterdir()} == {"good.json", "damaged.json"}


def test_missing_results_are_told(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: .*none.json cannot be read: No such file"):
        plots([str(tmp_path / "none.json")])


@pytest.mark.usefixtures("_fonts_opened")
def test_figures_and_table_of_made_up_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "speed-made-up.json"
    path.write_text(json.dumps({"machine": {}, "settings": {}, "rows": made_up_rows()}))
    assert read(path).rows[0]["variant"] == "single"
    (results,) = load(path)
    assert len(list(table(results))) == 2 + 3 * 2 * 2 * 3
    draw([path], tmp_path)
    assert "| tensor parallel |" in capsys.readouterr().out
    names = {file.name for file in tmp_path.glob("*.svg")}
    assert names == {
        *(f"speed-made-up-gpt2-124m-{kind}.svg"
          for kind in ("bandwidth", "scaling", "lengths", "parts", "wire")),
        "speed-made-up-prediction.svg",
    }  # fmt: skip
