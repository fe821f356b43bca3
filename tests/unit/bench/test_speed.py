"""The grid of the speed benchmark and its figures; nothing is measured here."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from tools.bench.shifts import MESH, VARIANTS
from tools.bench.speed import PRESETS, Bench, Cell, _parsed, main, rows_of, sweep_of
from tools.bench.speed_plots import COLOURS, LABELS, draw, load, table


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


@pytest.fixture(scope="session", autouse=True)
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


def test_results_of_one_dtype_are_not_resumed_with_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Bench(sweep_of(_parsed([])), tmp_path / "speed-x.json", []).save()
    argv = ["--busy", "--dtype", "bf16", "--resume", "--label", "x", "--out", str(tmp_path)]
    assert main(argv) == 1
    assert "of --dtype fp32" in capsys.readouterr().err


def test_figures_and_table_of_made_up_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "speed-made-up.json"
    path.write_text(json.dumps({"machine": {}, "settings": {}, "rows": made_up_rows()}))
    assert rows_of(path)[0]["variant"] == "single"
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
