"""The study of the attention's bound: what docs/attention-error.md says of it is what was found."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tools.bench import fidelity
from tools.models.common import REPO_ROOT

FIGURES = r" \| ([\d.]+)-([\d.]+)"
ROW = re.compile(rf"its codebook, (\d+) bits{3 * FIGURES} \| \|")


def test_the_figures_of_the_bounds_are_those_of_the_file() -> None:
    found = json.loads((fidelity.OUT / "fidelity-bounds.json").read_text(encoding="utf-8"))
    text = (REPO_ROOT / "docs" / "attention-error.md").read_text(encoding="utf-8")
    shown = [tuple(map(float, row)) for row in ROW.findall(text)]
    wanted = [(name, bits) for name in fidelity.BOUNDED for bits in (128, 16)]
    for (name, bits), (told, *figures) in zip(wanted, shown, strict=True):
        rows = [row for row in found[name]["bounds"] if row["bits_per_token"] == bits]
        assert [row["block"] for row in rows] == [1, 2, 3, 4, 5]
        series = (
            [row["error"] for row in rows],
            [row["bound"] for row in rows],
            [row["bound"] / row["error"] for row in rows],
        )
        assert told == bits
        ends = [end for one in series for end in (min(one), max(one))]
        assert figures == pytest.approx(ends, rel=0.05, abs=0.005)


def test_the_study_measures_the_shipped_codebooks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def measured(folder: Path, data: Path, **settings: object) -> dict[str, object]:
        book = (folder / fidelity.BOOK).read_bytes()
        assert book == (REPO_ROOT / "models" / folder.name / fidelity.BOOK).read_bytes()
        seen.append((folder.name, data.name, settings["rates"], settings["bounds"]))
        return {"sequences": 1, "tokens": 2, "bounds": [3]}

    monkeypatch.setattr(fidelity, "measured", measured)
    monkeypatch.setattr("tools.bench.finetune.pictures", lambda *given: (None, Path("pictures")))
    monkeypatch.setattr("tools.bench.finetune.texts", lambda *given: (None, Path("texts")))
    found = fidelity.STUDIES["bounds"](tmp_path, tmp_path)
    assert found == {key: {"inputs": 1, "tokens": 2, "bounds": [3]} for key in fidelity.BOUNDED}
    assert seen == [
        ("vit-tiny", "pictures", (16, 128), 32),
        ("tiny-gpt2", "texts", (16, 128), 8),
    ]
