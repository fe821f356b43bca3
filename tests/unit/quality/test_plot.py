"""The plot: what is in it, and what happens without matplotlib."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from astra_mesh.bundle.quality import loss_of
from astra_mesh.errors import AstraMeshError, InputError
from astra_mesh.quality import EvalRow, Evaluation
from astra_mesh.quality.plot import check_plot, draw, lines_of, panels_of, save_plot

BOOKS = {"": (0, "int4"), "codebook.safetensors": (-1, "vq"), "codebook-h0.safetensors": (0, "vq")}


def row(file: str, bits: int, peers: int, **metrics: float) -> EvalRow:
    history, codec = BOOKS[file]
    metrics |= {"loss_error": 0.001}
    key = "a" * 64 if file else ""
    loss = loss_of(metrics)[1]
    return EvalRow(codec, file, key, history, bits // 8, bits, peers, loss, metrics)


def evaluation(peers: tuple[int, ...] = (2, 4), **metrics: float) -> Evaluation:
    metrics = metrics or {"nats_increase": 0.3, "kl": 0.25, "agreement": 0.9}
    rows = [
        row(file, bits, count, **{key: value / bits * count for key, value in metrics.items()})
        for file in BOOKS
        for bits in ((864,) if not file else (64, 32, 16))
        for count in peers
    ]
    measure = loss_of(rows[0].metrics)[0]
    return Evaluation(
        model="toy",
        model_id="b" * 64,
        task="generate",
        data="x.txt",
        peers=peers,
        class_token="none",
        shards="even",
        sequences=3,
        tokens=30,
        measure=measure,
        limit=0.04,
        baseline={},
        rows=rows,
    )


@pytest.fixture(scope="session", autouse=True)
def _fonts_opened(tmp_path_factory: pytest.TempPathFactory) -> None:
    """matplotlib keeps the files of the fonts that it has used open."""
    for suffix in (".svg", ".png"):
        save_plot(evaluation(), tmp_path_factory.mktemp("fonts") / f"x{suffix}")


def texts(figure: Any) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_a_line_for_each_codebook_and_number_of_peers() -> None:
    found = evaluation()
    lines = lines_of(found)
    assert [(line.name, line.peers) for line in lines] == [
        ("", 4),
        ("", 2),
        ("predictive", 4),
        ("predictive", 2),
        ("memoryless", 4),
        ("memoryless", 2),
    ]
    assert [one.bits_per_token for one in lines[2].rows] == [16, 32, 64]
    assert len({line.colour for line in lines}) == 3


def test_panels_direct_labels_and_scales() -> None:
    figure = draw(evaluation())
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [
        "perplexity increase, %",
        "KL to one device, nats",
        "same most likely answer, %",
    ]
    for axes in figure.axes:
        assert axes.get_xscale() == "log"
        legend = axes.get_legend()
        assert legend is not None
        assert [text.get_text() for text in legend.get_texts()] == ["4 peers", "2 peers"]
        names = {text.get_text() for text in axes.texts}
        assert {"predictive", "memoryless", "int4"} <= names
    assert "limit 4" in texts(figure)
    assert "limit 0.0392" in texts(figure)  # ln(1.04), of the divergence
    assert "recommended: 32 bits" in texts(figure)
    low, high = figure.axes[0].get_xlim()
    assert low < 16 < 864 < high


@pytest.mark.parametrize("kls", [(3e-3, 4e-7), (3e-3, 0.0), (0.8, 2e-3), (0.0, 0.0), (1e-3, 1e-3)])
def test_labels_of_the_divergence_do_not_overlap(kls: tuple[float, float]) -> None:
    """From far apart to all the same; the plain codec has the second one."""
    found = evaluation((4,))
    for one in found.rows:
        one.metrics["kl"] = kls[0] / one.bits_per_token * 16 if one.codebook else kls[1]
    figure = draw(found)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    axes = figure.axes[1]
    low, high = axes.get_ylim()
    labels = [x for x in axes.get_yticklabels() if low <= x.get_position()[1] <= high]
    boxes = [label.get_window_extent(canvas.get_renderer()) for label in labels]
    boxes.sort(key=lambda box: box.y0)
    assert len(boxes) >= 2
    assert all(under.y1 < over.y0 for under, over in pairwise(boxes))
    assert labels[0].get_text() == "0"


def test_errors_that_are_unknown_are_not_drawn() -> None:
    found = evaluation()
    for one in found.rows:
        del one.metrics["loss_error"]
    assert panels_of(found)[0].error is None
    assert not any(text.startswith("recommended") for text in texts(draw(found)))


@pytest.mark.parametrize(
    ("metrics", "titles"),
    [
        (
            {"accuracy_change": 0.0, "kl": 0.0, "agreement": 0.9},
            ["accuracy drop, points", "KL to one device, nats", "same most likely answer, %"],
        ),
        (
            {"kl": 0.1, "agreement": 0.9},
            ["other most likely answer, % of inputs", "KL to one device, nats"],
        ),
        ({"cosine": 0.9, "cosine_min": 0.5}, ["1 - cosine, %", "smallest cosine"]),
    ],
)
def test_each_task_has_its_panels(metrics: dict[str, float], titles: list[str]) -> None:
    found = evaluation((4,), **metrics)
    assert [panel.title for panel in panels_of(found)] == titles
    assert len(draw(found).axes) == len(titles)


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_file_is_written_and_repeats(tmp_path: Path, suffix: str) -> None:
    first, second = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    save_plot(evaluation(), first)
    save_plot(evaluation(), second)
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_size > 10_000


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends in \.svg"):
        save_plot(evaluation(), tmp_path / "a.docx")
    with pytest.raises(AstraMeshError, match="cannot be written"):
        save_plot(evaluation(), tmp_path / "no" / "such.svg")


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"astra-mesh\[plot\]"):
        check_plot(Path("x.svg"))
