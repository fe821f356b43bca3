"""Draws the figures of docs/benchmarks.md from docs/data/speed-*.json, and prints their tables.

    python -m tools.bench.speed_plots                     # of all results, beside them
    python -m tools.bench.speed_plots FILE... --out FOLDER

Needs the optional packages of `.[plot]`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from tools.bench.shifts import CHOSEN, VARIANTS
from tools.bench.speed import OUT
from tools.bench.speed_results import ResultsError, is_busy, read
from tools.bench.speed_stats import (
    PARTS,
    Key,
    Row,
    Spread,
    foreseen,
    grouped,
    latencies,
    planning,
    predictions,
    sent_bytes,
    shares,
    speedups,
    within,
)
from tools.lab.options import folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELS: Final = {
    "single": "one device",
    "tensor": "tensor parallel",
    "voltage-fp32": "Voltage fp32",
    "voltage-fp16": "Voltage fp16",
    "voltage-int8": "Voltage int8",
    "voltage-int4": "Voltage int4",
    "block-1": "block parallel, Nb = 1",
    "block-4": "block parallel, Nb = 4",
    "astra-1": "astra as published, 10 bits",
    "astra-16": "astra as published, 160 bits",
    "astra-32": "astra as published, 320 bits",
    "mesh-16": "this project, 16 bits",
    "mesh-32": "this project, 32 bits",
    "mesh-128": "this project, 128 bits",
    "mesh-auto": "this project, 128 bits, devices chosen",
    "mesh-int8": "this project, int8",
    "mesh-fp16": "this project, fp16",
}
# One colour for a family, dark to light by rate; ours are solid with filled markers.
COLOURS: Final = {
    "single": "#000000", "tensor": "#8c510a",
    "voltage-fp32": "#01665e", "voltage-fp16": "#35978f", "voltage-int8": "#80cdc1",
    "voltage-int4": "#b8e0da", "block-1": "#bf812d", "block-4": "#dfc27d",
    "astra-1": "#c51b7d", "astra-16": "#de77ae", "astra-32": "#f1b6da",
    "mesh-16": "#08306b", "mesh-32": "#08519c", "mesh-128": "#2171b5",
    "mesh-auto": "#4b2991",
    "mesh-int8": "#6baed6", "mesh-fp16": "#9ecae1",
}  # fmt: skip
PART_COLOURS: Final = {
    "compute_s": "#2171b5", "encode_s": "#e6ab02", "decode_s": "#d95f02",
    "wait_s": "#cccccc", "other": "#888888",
}  # fmt: skip
FORMATS: Final = ("svg", "png")


class Results:
    """The rows of one model in one file."""

    def __init__(self, model: str, rows: Sequence[Row], *, busy: bool = False) -> None:
        self.model, self.rows = model, rows
        self.busy = busy  # other programs ran
        self.latency, self.speedup = latencies(rows), speedups(rows)
        keys = self.latency.keys()
        self.variants = [name for name in VARIANTS if any(k.variant == name for k in keys)]
        self.tokens = sorted({key.tokens for key in keys})
        self.rates = sorted({key.mbps for key in keys})
        self.members = sorted({key.members for key in keys})

    def titled(self, text: str) -> str:
        """A figure's title."""
        return f"{self.model}, {text}" + (" (other programs ran: it says nothing)" * self.busy)

    def line(
        self, values: dict[Key, Spread], over: str, **fixed: Any
    ) -> tuple[list[float], list[Spread]]:
        """Points of a variant over one dimension, with the others fixed."""
        keys = [
            key for key in values if all(getattr(key, name) == one for name, one in fixed.items())
        ]
        keys.sort(key=lambda key: float(getattr(key, over)))
        return [float(getattr(key, over)) for key in keys], [values[key] for key in keys]


def load(path: Path) -> list[Results]:
    """One for each model of a results file; ResultsError where it is missing or damaged."""
    machine, _, rows = read(path)
    models = list(dict.fromkeys(row["model"] for row in rows))
    return [
        Results(model, [row for row in rows if row["model"] == model], busy=is_busy(machine))
        for model in models
    ]


# --- figures --------------------------------------------------------------------------------------


def bandwidth(results: Results) -> Figure | None:
    """Latency over bandwidth, one panel for each number of devices."""
    members = [count for count in results.members if count > 1]
    if len(results.rates) < 2 or not members:
        return None
    tokens = max(results.tokens)
    figure, axes = _panels(len(members))
    for axis, count in zip(axes, members, strict=True):
        for name in results.variants:
            fixed = {"variant": name, "members": count, "tokens": tokens}
            _draw(axis, name, *results.line(results.latency, "mbps", **fixed))
        _logarithmic(axis, results.rates)
        axis.set_title(f"{count} devices")
    axes[0].set_ylabel("latency, s")
    figure.supxlabel("bandwidth of each device, Mbit/s", fontsize=10)
    return _finished(figure, axes, results.titled(f"{tokens} tokens: latency"))


def scaling(results: Results) -> Figure | None:
    """Speedup over the number of devices, one panel for each bandwidth."""
    if len([count for count in results.members if count > 1]) < 2:
        return None
    tokens = max(results.tokens)
    figure, axes = _panels(len(results.rates))
    for axis, mbps in zip(axes, results.rates, strict=True):
        for name in results.variants:
            fixed = {"variant": name, "mbps": mbps, "tokens": tokens}
            _draw(axis, name, *results.line(results.speedup, "members", **fixed))
        axis.plot(results.members, results.members, ":", color="#999999", linewidth=1)
        _logarithmic(axis, results.members)
        axis.set_title(f"{mbps:g} Mbit/s")
    axes[0].set_ylabel("times faster than one device")
    figure.supxlabel("devices", fontsize=10)
    return _finished(figure, axes, results.titled(f"{tokens} tokens: strong scaling"))


def lengths(results: Results) -> Figure | None:
    """Latency over the number of tokens."""
    if len(results.tokens) < 2:
        return None
    count, mbps = max(results.members), min(results.rates)
    figure, axes = _panels(2, same=False)
    for axis, values in zip(axes, (results.latency, results.speedup), strict=True):
        for name in results.variants:
            fixed = {"variant": name, "members": count, "mbps": mbps}
            _draw(axis, name, *results.line(values, "tokens", **fixed))
        _logarithmic(axis, results.tokens)
    axes[0].set_ylabel("latency, s")
    axes[1].set_ylabel("times faster than one device")
    figure.supxlabel("tokens", fontsize=10)
    return _finished(figure, axes, results.titled(f"{count} devices, {mbps:g} Mbit/s"))


def parts(results: Results) -> Figure | None:
    """What devices spend their time on, at the lowest and the highest bandwidth."""
    count, tokens = max(results.members), max(results.tokens)
    rates = sorted({min(results.rates), max(results.rates)})
    if count < 2:
        return None
    figure, axes = _panels(len(rates), width=5.2)
    rounds = grouped(results.rows)
    for axis, mbps in zip(axes, rates, strict=True):
        keys = [Key(results.model, tokens, mbps, count, name) for name in results.variants]
        keys = [key for key in keys if key in rounds and key.variant != "single"]
        _stack(axis, keys, rounds)
        axis.set_title(f"{mbps:g} Mbit/s")
        axis.set_xlabel("share of the latency, mean of all devices")
    title = results.titled(f"{tokens} tokens, {count} devices: where their time goes")
    return _finished(figure, axes, title)


def _stack(axis: Axes, keys: Sequence[Key], rounds: dict[Key, list[Row]]) -> None:
    names = [LABELS[key.variant] for key in keys]
    left = [0.0] * len(keys)
    for part in (*PARTS, "other"):
        widths = [shares(rounds[key])[part] for key in keys]
        label = part.removesuffix("_s")
        axis.barh(names, widths, left=left, color=PART_COLOURS[part], label=label)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axis.invert_yaxis()
    axis.set_xlim(0, 1)


def wire(results: Results) -> Figure | None:
    """Bytes that all devices together send for one answer."""
    count, tokens, mbps = max(results.members), max(results.tokens), max(results.rates)
    rounds = grouped(results.rows)
    names, sizes = [], []
    for name in results.variants:
        key = Key(results.model, tokens, mbps, count, name)
        if key in rounds and (size := sent_bytes(rounds[key])) > 0:
            names.append(name)
            sizes.append(size)
    if not sizes:
        return None
    figure, (axis,) = _panels(1, width=6.0)
    bars = axis.barh(
        [LABELS[name] for name in names], sizes, color=[COLOURS[name] for name in names]
    )
    axis.bar_label(bars, [_amount(size) for size in sizes], padding=3, fontsize=8)
    axis.set_xscale("log")
    axis.set_xlim(min(sizes) / 2, max(sizes) * 6)
    axis.invert_yaxis()
    axis.set_xlabel("bytes sent by all devices")
    title = f"{tokens} tokens, {count} devices, {mbps:g} Mbit/s: bytes on the wire"
    return _finished(figure, [], results.titled(title))


def prediction(found: Sequence[Results]) -> Figure | None:
    """Predicted over measured time, all models."""
    figure, (axis,) = _panels(1, width=5.0)
    some = [(one, predictions(one.rows)) for one in found]
    every = [p for _, predicted in some for p in predicted]
    if not every:
        return None
    names = [name for name in VARIANTS if any(p.key.variant == name for p in every)]
    for name in names:
        mine = [p for p in every if p.key.variant == name]
        for alone, marker in ((False, "o"), (True, "s")):
            points = [p for p in mine if (p.key.members == 1) is alone]
            if points:
                x, y = [p.measured_s for p in points], [p.predicted_s for p in points]
                label = "one device, asked alone" if alone else LABELS[name]
                axis.scatter(x, y, s=18, color=COLOURS[name], marker=marker, label=label, zorder=3)
    times = [p.measured_s for p in every] + [p.predicted_s for p in every]
    ends = [min(times) / 1.3, max(times) * 1.3]
    axis.plot(ends, ends, color="#666666", linewidth=1)
    axis.fill_between(
        ends, [0.8 * x for x in ends], [1.2 * x for x in ends], color="#dddddd", label="within 20 %"
    )
    _plain_numbers(axis, "x")
    _plain_numbers(axis, "y")
    axis.set_xlabel("measured, s")
    axis.set_ylabel("predicted, s")
    near = round(within(every) * len(every))
    return _finished(figure, [axis], f"{near} of {len(every)} predictions within 20 %")


# --- drawing --------------------------------------------------------------------------------------


def _panels(count: int, width: float = 3.6, same: bool = True) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(width * count, 5.0), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, count, sharey=same, squeeze=False)[0]
    return figure, list(axes)


def _draw(axis: Axes, name: str, x: Sequence[float], y: Sequence[Spread]) -> None:
    """A line of medians in a band of quartiles."""
    if not x:
        return
    ours = name.startswith("mesh")
    style = "-" if ours else ":" if name == "single" else "--"
    marker = "o" if ours else "" if name == "single" else "x"
    axis.plot(
        x,
        [one.median for one in y],
        style,
        marker=marker,
        markersize=4,
        color=COLOURS[name],
        label=LABELS[name],
        linewidth=1.8 if ours else 1.2,
    )
    axis.fill_between(
        x, [one.low for one in y], [one.high for one in y], color=COLOURS[name], alpha=0.15
    )


def _logarithmic(axis: Axes, ticks: Sequence[float]) -> None:
    """Both axes, with these ticks along x and plain numbers along y."""
    axis.set_xscale("log")
    _plain_numbers(axis, "y")
    names = [f"{tick:g}" for tick in ticks]
    axis.set_xticks(list(ticks), names, rotation=45 if max(map(len, names)) > 3 else 0)
    axis.set_xticks([], minor=True)
    axis.grid(True, color="#eeeeee")


def _plain_numbers(axis: Axes, which: Literal["x", "y"]) -> None:
    """A logarithmic axis that says 0.2 and 5 rather than powers of ten."""
    from matplotlib.ticker import LogLocator, NullLocator

    (axis.set_xscale if which == "x" else axis.set_yscale)("log")
    one = axis.xaxis if which == "x" else axis.yaxis
    one.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    one.set_minor_locator(NullLocator())
    one.set_major_formatter("{x:g}")


def _finished(figure: Figure, axes: Sequence[Axes], title: str) -> Figure:
    """With a title, and one legend for all panels."""
    figure.suptitle(title, fontsize=11)
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        figure.legend(
            list(found.values()), list(found), loc="outside right center", fontsize=8, frameon=False
        )
    return figure


def _amount(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} GiB"


# --- tables ---------------------------------------------------------------------------------------


def table(results: Results) -> Iterator[str]:
    """A Markdown table: every variant of every cell."""
    names = ("tokens", "Mbit/s", "devices", "variant", "latency, s", "quartiles")
    yield f"| {' | '.join((*names, 'times one device', 'sent'))} |"
    yield "|---:|---:|---:|---|---:|---:|---:|---:|"
    rounds = grouped(results.rows)
    order = {name: place for place, name in enumerate(VARIANTS)}
    for key in sorted(rounds, key=lambda one: (*one[1:4], order[one.variant])):
        time, gain = results.latency[key], results.speedup.get(key)
        ratio = "" if gain is None else f"{gain.median:.2f}"
        yield (
            f"| {key.tokens} | {key.mbps:g} | {key.members} | {LABELS[key.variant]} "
            f"| {time.median:.3f} | {time.low:.3f} to {time.high:.3f} | {ratio} "
            f"| {_amount(sent_bytes(rounds[key]))} |"
        )


def remarks(results: Results) -> Iterator[str]:
    """How well answers were predicted, and what the planner's choice was worth."""
    if results.busy:
        yield "\nother programs ran when this was measured: the figures say nothing"
    told = predictions(results.rows)
    if told:
        yield f"\n{within(told):.0%} of {len(told)} predictions within 20 %"
    alone = foreseen(results.rows)
    if alone:
        errors = [one.error for one in alone]
        yield (
            f"one device as answers foretold it: {within(alone):.0%} of {len(alone)} within 20 % "
            f"({min(errors):+.0%} to {max(errors):+.0%})"
        )
    around = planning(results.rows)
    if around:
        times = [1000 * one for one in around.values()]
        yield (
            "beyond an answer (the client, planning, the others' reports): "
            f"{min(times):.0f} to {max(times):.0f} ms"
        )
    chosen = {key: one for key, one in results.speedup.items() if key.variant == CHOSEN}
    if chosen:
        key, least = min(chosen.items(), key=lambda one: one[1].median)
        yield (
            f"devices chosen by the planner: at least {least.median:.2f} times one device "
            f"({key.members} devices, {key.mbps:g} Mbit/s, {key.tokens} tokens), "
            f"{len(chosen)} cells"
        )


def save(figure: Figure | None, out: Path, name: str) -> None:
    """In all formats; nothing for None."""
    for kind in FORMATS if figure is not None else ():
        assert figure is not None
        # No date and fixed ids, so that the same data give the same file.
        extra = {"Date": None} if kind == "svg" else None
        figure.savefig(out / f"{name}.{kind}", dpi=120, metadata=extra)


def draw(files: Sequence[Path], out: Path | None) -> None:
    """All figures of some results, beside them or in ``out``; their tables to standard output."""
    import matplotlib as mpl

    mpl.rcParams["svg.hashsalt"] = "astra-mesh"
    loaded = [(path, load(path)) for path in files]  # all are read before one is drawn
    every = [results for _, found in loaded for results in found]
    for path, found in loaded:
        target = out or path.parent
        target.mkdir(parents=True, exist_ok=True)
        for results in found:
            print(f"\n### {path.stem}: {results.model}\n")
            print("\n".join(table(results)))
            print("\n".join(remarks(results)))
            for figure in (bandwidth, scaling, lengths, parts, wire):
                name = f"{path.stem}-{results.model}-{figure.__name__}"
                save(figure(results), target, name)
        save(prediction(found), target, f"{path.stem}-prediction")
    if len(files) > 1:
        save(prediction(every), out or OUT, "speed-prediction")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; 1 where a file is missing or damaged."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="results; default: all in docs/data")
    parser.add_argument("--out", type=folder, help="default: beside the results")
    args = parser.parse_args(argv)
    try:
        draw(args.files or sorted(OUT.glob("speed-*.json")), args.out)
    except ResultsError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
