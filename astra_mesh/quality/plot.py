"""Rate against quality as a picture. matplotlib is an optional extra: ``astra-mesh[plot]``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from astra_mesh.bundle.configs import full_disk, no_room
from astra_mesh.errors import AstraMeshError, InputError
from astra_mesh.quality.evaluation import EvalRow, Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES: Final = (".svg", ".png", ".pdf")
MISSING: Final = (
    "plots need matplotlib, which is not installed: pip install 'astra-mesh[plot]' "
    "(in a clone: pip install -c constraints.txt '.[plot]')"
)
# Okabe and Ito's colours, which all eyes tell apart; yellow is left out: too pale for a line.
_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_PLAIN_COLOUR: Final = "#777777"
_DASHES: Final = ("-", "--", ":", "-.")  # most peers first
_WIDTH, _HEIGHT = 5.2, 4.2  # inches of one panel
_GAP: Final = 0.055  # between two direct labels, as a share of the panel's height


@dataclass(frozen=True)
class Panel:
    """One quantity over the rate."""

    title: str
    value: Callable[[EvalRow], float]
    log: bool = False  # on a scale that is logarithmic above a small value
    limit: float | None = None
    signed: bool = False  # may be negative: linear below the limit
    error: Callable[[EvalRow], float] | None = None  # standard error of the value


def check_plot(path: Path) -> None:
    """InputError where this path cannot be plotted to; before hours of measuring, not after."""
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"--plot takes a file that ends in {', '.join(SUFFIXES)}, not {path.name}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError(MISSING) from None


def save_plot(found: Evaluation, path: Path) -> None:
    """Write the plot; AstraMeshError where that cannot be."""
    check_plot(path)
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "astra-mesh", "font.size": 10}):
        figure = draw(found)
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else None
        try:
            figure.savefig(path, dpi=150, metadata=metadata)
        except OSError as exc:
            if no_room(exc):
                raise full_disk(path) from None
            raise AstraMeshError(f"{path} cannot be written: {exc.strerror or exc}") from None


def draw(found: Evaluation) -> Figure:
    """The figure: a panel each for the task's loss, the divergence and the agreement."""
    from matplotlib.figure import Figure

    panels = panels_of(found)
    figure = Figure(figsize=(_WIDTH * len(panels), _HEIGHT), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for one, panel in zip(axes, panels, strict=True):
        _draw_panel(one, panel, found)
    where = f"{_listed(found.peers)} peers, {found.sequences} inputs of {found.data}"
    figure.suptitle(f"{found.model}: what codes cost, {where}", fontsize=11)
    return figure


def _listed(numbers: Sequence[int]) -> str:
    *rest, last = map(str, numbers)
    return f"{', '.join(rest)} and {last}" if rest else last


def panels_of(found: Evaluation) -> list[Panel]:
    """What is shown of a task."""
    titles = {
        "perplexity": "perplexity increase, %",
        "accuracy": "accuracy drop, points",
        "agreement": "other most likely answer, % of inputs",
        "cosine": "1 - cosine, %",
    }

    def loss(row: EvalRow) -> float:
        return 100 * row.loss

    def error(row: EvalRow) -> float:
        return 100 * row.metrics["loss_error"]

    known = None if found.lacking else error
    panels = [Panel(titles[found.measure], loss, True, 100 * found.limit, True, known)]
    metrics = found.rows[0].metrics
    if "kl" in metrics:
        most = math.log1p(found.limit) if found.measure == "perplexity" else None
        panels.append(Panel("KL to one device, nats", lambda row: row.metrics["kl"], True, most))
    if found.measure != "agreement" and "agreement" in metrics:
        title = "same most likely answer, %"
        panels.append(Panel(title, lambda row: 100 * row.metrics["agreement"]))
    if "cosine_min" in metrics:
        panels.append(Panel("smallest cosine", lambda row: row.metrics["cosine_min"]))
    return panels


@dataclass(frozen=True)
class Line:
    """The rates of one codebook, or all plain codecs, on one number of peers."""

    name: str
    colour: str
    peers: int
    rows: list[EvalRow]  # ascending in bits


def lines_of(found: Evaluation) -> list[Line]:
    """The lines, in the order of the table; most peers first."""
    keys = dict.fromkeys((row.codebook if row.codebook_id else "") for row in found.rows)
    books = [key for key in keys if key]
    colours = {key: _COLOURS[i % len(_COLOURS)] for i, key in enumerate(books)}
    lines = []
    for key in keys:
        for peers in reversed(found.peers):
            rows = [row for row in found.rows if row.codebook == key and row.peers == peers]
            rows.sort(key=lambda row: row.bits_per_token)
            name = found.name_of(rows[0]) if key else ""
            lines.append(Line(name, colours.get(key, _PLAIN_COLOUR), peers, rows))
    return lines


def _draw_panel(axes: Axes, panel: Panel, found: Evaluation) -> None:
    lines = lines_of(found)
    rows = [row for line in lines for row in line.rows]
    values = [panel.value(row) for row in rows]
    if panel.error is not None:
        values += [panel.value(row) + sign * panel.error(row) for row in rows for sign in (-1, 1)]
    axes.set_xscale("log", base=2)
    axes.set_title(panel.title, loc="left", fontsize=10)
    axes.set_xlabel("bits per token and block")
    if panel.log:
        if panel.signed or not panel.limit:
            _log_scale(axes, values, panel.limit)
        else:
            _log_scale(axes, [*values, panel.limit], None)
    for line in lines:
        _draw_line(axes, panel, line, _DASHES[found.peers[::-1].index(line.peers) % len(_DASHES)])
    _ticks(axes, found)
    if panel.limit is not None:
        _draw_limit(axes, panel, found)
    _label_lines(axes, panel, [line for line in lines if line.peers == max(found.peers)])
    if len(found.peers) > 1:
        _legend(axes, found)


def _log_scale(axes: Axes, values: Sequence[float], limit: float | None) -> None:
    """Logarithmic, but linear below the limit, or else below a thousandth of the largest value."""
    largest, least = max([*values, limit or 0.0]), min([*values, 0.0])
    threshold = limit or max(abs(least), _decade(1e-3 * largest))
    axes.set_yscale("symlog", linthresh=threshold, linscale=1.0 if limit else 0.5)
    low, high = min(1.4 * least, -0.4 * threshold), 1.6 * max(largest, threshold)
    axes.set_ylim(low, high)
    if limit:
        axes.set_yticks(_loss_ticks(least, 1.6 * largest, limit))
    else:  # matplotlib's own include one in the linear part, on top of 0
        decades = [10.0**power for power in range(-12, 13)]
        axes.set_yticks([0.0, *(tick for tick in decades if 0.99 * threshold <= tick <= high)])


def _decade(value: float) -> float:
    """The largest power of ten that is not above it."""
    return 10.0 ** math.floor(math.log10(max(value, 1e-9)))


def _loss_ticks(least: float, largest: float, limit: float) -> list[float]:
    """Halves of the limit around zero; beyond it 1, 2, 5, 10, ..."""
    steps = [digit * 10.0**power for power in range(-6, 7) for digit in (1, 2, 5)]
    above = [limit / 2, limit, *(step for step in steps if step > 1.5 * limit)]
    low, high = 1.4 * least, largest
    ticks = [sign * step for step in above for sign in (-1, 1)]
    return [0.0, *(tick for tick in ticks if low <= tick <= high)]


def _draw_line(axes: Axes, panel: Panel, line: Line, dashes: str) -> None:
    bits = [row.bits_per_token for row in line.rows]
    values = [panel.value(row) for row in line.rows]
    most = dashes == _DASHES[0]
    errors = [panel.error(row) for row in line.rows] if panel.error is not None and most else None
    axes.errorbar(
        bits,
        values,
        yerr=errors,
        elinewidth=1.0,
        capsize=2.5,
        linestyle=dashes,
        marker="o" if most else ".",
        markersize=5 if most else 4,
        linewidth=1.8 if most else 1.2,
        color=line.colour,
        alpha=1.0 if most else 0.75,
        clip_on=False,
        zorder=3,
    )


def _ticks(axes: Axes, found: Evaluation) -> None:
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

    bits = [row.bits_per_token for row in found.rows]
    powers = [2**i for i in range(40) if 2 * 2**i > min(bits) and 2**i <= max(bits)]
    axes.xaxis.set_major_locator(FixedLocator(powers))
    axes.xaxis.set_major_formatter(lambda value, at: f"{value:,.0f}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, at: f"{value:g}")
    axes.set_xlim(min(bits) / 1.4, max(bits) * 2.6)
    axes.tick_params(axis="x", labelrotation=45 if len(powers) > 7 else 0)
    axes.grid(visible=True, color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)


def _draw_limit(axes: Axes, panel: Panel, found: Evaluation) -> None:
    """The limit as a line, and a ring around the recommended rate."""
    assert panel.limit is not None
    axes.axhline(panel.limit, color="#444444", linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
    axes.annotate(
        f"limit {panel.limit:.3g}",
        (1.0, panel.limit),
        xycoords=("axes fraction", "data"),
        xytext=(-2, 3),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color="#444444",
    )
    best = found.recommended_row
    if best is not None:
        place = (best.bits_per_token, panel.value(best))
        axes.plot(*place, marker="o", markersize=12, fillstyle="none", color="#444444", zorder=4)
        axes.annotate(
            f"recommended: {best.bits_per_token} bits",
            place,
            xytext=(8, 8),
            textcoords="offset points",
            annotation_clip=False,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
            fontsize=8,
            color="#444444",
        )


def _label_lines(axes: Axes, panel: Panel, lines: Sequence[Line]) -> None:
    """Names beside the lines' ends, moved apart where they would overlap; plain codecs by point."""
    places: list[tuple[float, Line, tuple[float, float]]] = []
    for line in lines:
        if not line.name:
            for row in line.rows:
                _text(axes, row.codec, (row.bits_per_token, panel.value(row)), (0, 7), line.colour)
            continue
        at = (float(line.rows[-1].bits_per_token), panel.value(line.rows[-1]))
        height = axes.transAxes.inverted().transform(axes.transData.transform(at))[1]
        places.append((float(height), line, at))
    below = -1.0
    for height, line, at in sorted(places, key=lambda one: one[0]):
        wanted = max(height, below + _GAP)
        below, shift = wanted, (wanted - height) * _HEIGHT * 72 * 0.7
        _text(axes, line.name, at, (8, shift), line.colour, "left", "center")


def _text(
    axes: Axes,
    text: str,
    at: tuple[float, float],
    offset: tuple[float, float],
    colour: str,
    ha: str = "center",
    va: str = "bottom",
) -> None:
    axes.annotate(
        text,
        at,
        xytext=offset,
        textcoords="offset points",
        ha=ha,
        va=va,
        fontsize=8.5,
        color=colour,
        annotation_clip=False,
    )


def _legend(axes: Axes, found: Evaluation) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color="#444444", linestyle=_DASHES[i % len(_DASHES)], label=f"{peers} peers")
        for i, peers in enumerate(reversed(found.peers))
    ]
    axes.legend(handles=handles, loc="best", fontsize=8, frameon=False)
