"""Prints the tables of docs/fidelity.md from docs/data, and draws its pictures.

python -m tools.bench.tables
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from astra_mesh.quality import EvalRow, Evaluation
from astra_mesh.quality.plot import save_plot
from tools.bench.fidelity import OUT

COLUMNS = {
    "accuracy": ("accuracy", "{:.1%}"),
    "perplexity": ("perplexity", "{:.3f}"),
    "cosine": ("cosine", "{:.4f}"),
    "kl": ("KL", "{:.4f}"),
    "agreement": ("agreement", "{:.1%}"),
}


def table(found: Evaluation) -> Iterator[str]:
    """A Markdown table, one row for each codebook and rate."""
    keys = [key for key in COLUMNS if any(key in row.metrics for row in found.rows)]
    names = [COLUMNS[key][0] for key in keys]
    yield f"| codes | bits | peers | loss | {' | '.join(names)} |"
    yield f"|---|---:|---:|---:|{'---:|' * len(keys)}"
    baseline = [_cell(key, found.baseline.get(key)) for key in keys]
    yield f"| one device | | 1 | | {' | '.join(baseline)} |"
    for row in sorted(found.rows, key=lambda one: (one.codec, one.codebook, one.peers, one.stages)):
        cells = [_cell(key, row.metrics.get(key)) for key in keys]
        error = row.metrics.get("loss_error")
        spread = "" if error is None else f" ± {100 * error:.2f}"
        loss = f"{100 * row.loss:.2f}{spread} %"
        first = f"| {_name(row)} | {row.bits_per_token} | {row.peers} | {loss}"
        yield f"{first} | {' | '.join(cells)} |"


def _cell(key: str, value: float | None) -> str:
    return "" if value is None else COLUMNS[key][1].format(value)


def _name(row: EvalRow) -> str:
    return row.codebook.removeprefix("codebook-").removesuffix(".safetensors") or row.codec


def evaluations(name: str, document: dict[str, Any]) -> Iterable[tuple[str, Evaluation]]:
    """The evaluations of a study: one, or one for each of its models."""
    if "rows" in document:
        yield name, msgspec.convert(document, Evaluation)
        return
    for part, inner in document.items():
        yield f"{name}: {part}", msgspec.convert(inner, Evaluation)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=OUT)
    args = parser.parse_args()
    for path in sorted(args.results.glob("fidelity-*.json")):
        name = path.stem.removeprefix("fidelity-")
        for title, found in evaluations(name, json.loads(path.read_text(encoding="utf-8"))):
            print(f"\n### {title}: {found.sequences} inputs of {found.data}\n")
            print("\n".join(table(found)))
            if name in ("vit", "llama", "bert"):
                part = title.partition(": ")[2]
                save_plot(found, path.with_name(f"{path.stem}{'-' + part if part else ''}.png"))


if __name__ == "__main__":
    main()
