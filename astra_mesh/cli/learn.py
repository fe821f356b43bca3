"""Commands that learn codebooks and measure what they cost: ``fit``, ``eval``."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from astra_mesh.cli.console import clean, err, out, print_json, reporting
from astra_mesh.cli.options import Bundle, Json
from astra_mesh.errors import InputError

if TYPE_CHECKING:
    from astra_mesh.quality import Evaluation

FIT_EXAMPLE: Final = "Example:  astra-mesh fit my-model --data texts/ --groups 4 --stages 4"
EVAL_EXAMPLE: Final = "Example:  astra-mesh eval my-model --data texts/ --peers 4 --limit 32"

_DATA_HELP = (
    "Text files or a folder of them, a .tsv or .txt of sentences, or a folder or .zip of pictures, "
    "as the model reads."
)
Data = Annotated[Path, typer.Option("--data", help=_DATA_HELP)]
Window = Annotated[
    int | None, typer.Option(min=2, help="Tokens of one text window. Default: the context.")
]


class BookCodec(enum.Enum):
    """Codecs that have a codebook."""

    VQ = "vq"
    ASTRA = "astra"


class SplitName(enum.Enum):
    """Which part of the data is used."""

    ALL = "all"
    FIT = "fit"
    EVAL = "eval"


Split = Annotated[
    SplitName,
    typer.Option(help="all of the data; eval: every tenth item; fit: the nine others."),
]


def fit(
    model: Bundle,
    data: Data,
    codec: Annotated[BookCodec, typer.Option(help="vq, or astra as published.")] = BookCodec.VQ,
    groups: Annotated[int, typer.Option(min=1, help="Codes of one token and stage.")] = 4,
    stages: Annotated[
        int | None, typer.Option(min=1, help="Residual stages. Default: 4; astra: 1.")
    ] = None,
    codewords: Annotated[
        int | None, typer.Option(min=2, help="Of one group. Default: 256; astra: 1024.")
    ] = None,
    default_stages: Annotated[
        int, typer.Option(min=0, help="Stages used unless a rate is asked for; 0: all.")
    ] = 0,
    tokens: Annotated[int, typer.Option(min=1, help="Calibration tokens.")] = 32_768,
    window: Window = None,
    split: Split = SplitName.ALL,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File. Default: in the model's folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Learn a codebook from data (k-means; the model itself stays as it is)."""
    with reporting(as_json):
        with err.status("starting", spinner="dots"):
            from astra_mesh import quality
            from astra_mesh.bundle import find_bundle
        astra = codec is BookCodec.ASTRA
        options = quality.FitOptions(
            codec=codec.value,
            groups=groups,
            stages=stages or (1 if astra else 4),
            codewords=codewords or (1024 if astra else 256),
            default_stages=default_stages,
            max_tokens=tokens,
            seed=seed,
        )
        with progress_bar() as progress:
            path = quality.fit(
                find_bundle(model),
                data,
                options,
                progress,
                output,
                window=window,
                split=None if split is SplitName.ALL else split.value,
            )
        if as_json:
            print_json({"codebook": str(path), "bytes": path.stat().st_size})
        else:
            out.print(f"codebook in {clean(str(path))}", markup=False, soft_wrap=True)


def evaluate(
    model: Bundle,
    data: Data,
    peers: Annotated[int, typer.Option(min=1, max=64, help="Even shards.")] = 4,
    codec: Annotated[
        list[str] | None,
        typer.Option(help="vq, astra, fp32, ... May be repeated. Default: all there are."),
    ] = None,
    rates: Annotated[
        str, typer.Option(help="Bits per token and block, as 32,64. Default: all there are.")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, help="Texts or pictures.")] = 64,
    task: Annotated[str, typer.Option(help="generate, classify or embed.")] = "",
    window: Window = None,
    split: Split = SplitName.ALL,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the JSON document here too.")
    ] = None,
    as_json: Json = False,
) -> None:
    """What the codes cost in quality, beside the single device on the same data."""
    with reporting(as_json):
        wanted = _parse_rates(rates)
        with err.status("starting", spinner="dots"):
            from astra_mesh import quality
            from astra_mesh.bundle import find_bundle
        settings = quality.EvalSettings(
            peers=peers,
            codecs=tuple(codec or ()),
            rates=wanted,
            limit=limit,
            task=task,
            window=window,
            split=None if split is SplitName.ALL else split.value,
        )
        with progress_bar() as progress:
            found = quality.evaluate(find_bundle(model), data, settings, progress)
        if output is not None:
            _save(output, found.to_json())
        if as_json:
            print_json(found.to_dict())
        else:
            _show(found)


def _parse_rates(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise InputError("--rates is a list of numbers of bits, as 32,64") from None


def _save(path: Path, text: str) -> None:
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as exc:
        raise InputError(f"{path} cannot be written: {exc.strerror or exc}") from None


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int, str], None]]:
    """A bar on standard error; called with (done, total, what)."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f}%"))
    with Progress(*columns, TimeElapsedColumn(), console=err, transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def advance(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=clean(what))

        yield advance


def _show(found: Evaluation) -> None:
    """One row for each codec and rate; the first is the single device."""
    keys = list(dict.fromkeys(key for row in found.rows for key in row.metrics))
    out.print(
        f"{clean(found.model)}, {found.task}: {found.sequences} inputs, {found.tokens} tokens, "
        f"{found.peers} peers with even shards",
        markup=False,
    )
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("codec")
    for column in ("bits", *(key.replace("_", " ") for key in keys)):
        table.add_column(column, justify="right")
    table.add_row("one device", "", *(_number(found.baseline.get(key)) for key in keys))
    for row in found.rows:
        numbers = (_number(row.metrics.get(key)) for key in keys)
        table.add_row(row.codec, str(row.bits_per_token), *numbers)
    out.print(table)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
