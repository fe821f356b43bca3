"""The command that measures what codes cost in quality: ``eval``."""

from __future__ import annotations

import csv
import enum
import io
import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.table import Table
from rich.text import Text

from astra_mesh.cli.console import (
    FAILED_STATUS,
    clean,
    err,
    hint,
    out,
    print_json,
    reporting,
    show_error,
)
from astra_mesh.cli.options import (
    Bundle,
    ClassTokenName,
    Data,
    Json,
    Split,
    SplitName,
    Task,
    Window,
    check_class_token,
    check_output,
    parse_numbers,
    part_of,
)
from astra_mesh.cli.progress import counting
from astra_mesh.errors import AstraMeshError, InputError

if TYPE_CHECKING:
    from astra_mesh.bundle.quality import TaskQuality
    from astra_mesh.quality import EvalRow, Evaluation

EXAMPLE: Final = "Example:  astra-mesh eval my-model --data texts/ --peers 2,4 --save"
_IN_LOSS: Final = ("nats_per_token", "nats_increase", "accuracy_change", "loss_error")


class ShardsName(enum.Enum):
    """How the tokens are cut."""

    EVEN = "even"
    RANDOM = "random"


def evaluate(
    model: Bundle,
    data: Data,
    peers: Annotated[str, typer.Option(help="Numbers of peers, as 2,4,8.")] = "4",
    codec: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CODEC", help="vq, astra, fp32, ... May be repeated. Default: all there are."
        ),
    ] = None,
    rates: Annotated[
        str, typer.Option(help="Bits per token and block, as 32,64. Default: all there are.")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, help="Texts or pictures.")] = 64,
    task: Task = "",
    class_token: Annotated[
        ClassTokenName | None,
        typer.Option(help="On one peer, or a copy on each. Default: as the codebook was made for."),
    ] = None,
    shards: Annotated[
        ShardsName, typer.Option(help="even, or random cuts, other ones for each input.")
    ] = ShardsName.EVEN,
    seed: Annotated[int, typer.Option(min=0, help="Of random shards.")] = 0,
    loss: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="What the recommended rate may lose. Default: 0.02 (2 %) more perplexity, and a "
            "KL of at most ln(1 + LOSS); 0.005 (half a point) of accuracy or 0.03 other answers "
            "without labels; 0.015 of the cosine.",
        ),
    ] = None,
    bound: Annotated[
        int, typer.Option(min=0, help="Bound the attention's error on so many inputs, too.")
    ] = 0,
    window: Window = None,
    split: Split = SplitName.ALL,
    save: Annotated[
        bool, typer.Option("--save", help="Store it in the model's folder; peers plan with it.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw rate against quality into this .svg or .png.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write this .json or .csv file too.")
    ] = None,
    as_json: Json = False,
) -> None:
    """What the codes cost in quality, beside the single device on the same data."""
    with reporting(as_json):
        numbers = parse_numbers("--peers", peers)
        wanted = parse_numbers("--rates", rates)
        with err.status("starting", spinner="dots"):
            from astra_mesh import quality
            from astra_mesh.bundle import find_bundle
            from astra_mesh.bundle.quality import save_quality, stored_tasks
            from astra_mesh.quality.metrics import INPUTS
            from astra_mesh.quality.plot import check_plot, save_plot
        if plot is not None:
            check_plot(plot)
        if output is not None and output.suffix not in (".json", ".csv"):
            raise InputError(f"--output takes a .json or .csv file, not {output.name}")
        for path in filter(None, (plot, output)):
            check_output(path)
        if save and limit < INPUTS:
            raise InputError(f"--save takes {INPUTS} inputs or more, and --limit is {limit}")
        settings = quality.EvalSettings(
            peers=numbers,
            codecs=tuple(codec or ()),
            rates=wanted,
            limit=limit,
            task=task,
            class_token="" if class_token is None else class_token.value,
            shards=shards.value,
            seed=seed,
            loss=loss,
            bounds=bound,
            window=window,
            split=part_of(split),
        )
        bundle = find_bundle(model)
        check_class_token(bundle, class_token)
        with counting(quiet=as_json) as progress:
            found = quality.evaluate(bundle, data, settings, progress)
        document = to_document(found)

        def keep() -> None:
            if output is not None:
                _write(output, to_csv(found) if output.suffix == ".csv" else _json_text(document))
            if plot is not None:
                save_plot(found, plot)
            if save:
                found.check_known()
                before = stored_tasks(find_bundle(model)).get(found.task)
                save_quality(bundle, found.task, found.stored())
                if not as_json:
                    out.print(_stored(found.stored(), before), markup=False, soft_wrap=True)

        # What was measured is shown whatever becomes of the files.
        if as_json:
            try:
                keep()
            except AstraMeshError as error:
                print_json(document | {"error": {"code": error.code, "message": error.message}})
                show_error(error, as_json=False)
                raise typer.Exit(FAILED_STATUS) from None
            print_json(document)
            return
        show(found)
        keep()
        for line in _doubts(found):
            hint(line)
        if bound and not found.bounds:
            hint("no bound is told: it is of a codebook's codes, and none was measured")


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    from astra_mesh.bundle.configs import replacing

    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def to_document(found: Evaluation) -> dict[str, Any]:
    """For --json and .json: with what wrote it, and when."""
    from astra_mesh import __version__

    date = datetime.now(UTC).isoformat(timespec="seconds")
    return found.to_dict() | {"astra_mesh": __version__, "date": date}


def _json_text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n"


def to_csv(found: Evaluation) -> str:
    """One line for each row; the single device comes first."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    keys = _metrics(found.rows)
    fixed = ("codec", "codebook", "history", "stages", "bits_per_token", "peers", "loss")
    writer.writerow([*fixed, *keys])
    baseline = [found.baseline.get(key, "") for key in keys]
    writer.writerow(["one device", "", "", "", "", 1, 0, *baseline])
    for row in found.rows:
        cells: list[Any] = [getattr(row, name) for name in fixed]
        writer.writerow([*cells, *(row.metrics.get(key, "") for key in keys)])
    return stream.getvalue()


def _metrics(rows: Iterable[EvalRow]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row.metrics))


def _stored(found: TaskQuality, before: TaskQuality | None) -> str:
    """What --save did."""
    line = "stored in the model's quality.json"
    if before is None:
        return line
    if before.inputs == found.inputs:
        return f"{line}, beside what was measured on the same inputs before"
    inputs = f"{before.sequences} inputs of {clean(before.data)}"
    return f"{line}, in place of what was measured on {inputs}"


def show(found: Evaluation) -> None:
    """The table and what follows from it."""
    out.print(
        f"{clean(found.model)}, {found.task}: {found.sequences} inputs of {clean(found.data)}, "
        f"{found.tokens} tokens, {', '.join(map(str, found.peers))} peers with {found.shards} "
        "shards",
        markup=False,
    )
    out.print(_table(found))
    if found.bounds:
        out.print(_bounds(found))
    out.print(_conclusion(found), markup=False, soft_wrap=True)


def _doubts(found: Evaluation) -> list[str]:
    """Where the data are too few to tell."""
    if found.lacking:
        return [
            f"to know how uncertain the losses are takes {found.lacking} (--limit, more --data)"
        ]
    row = found.recommended_row
    if row is None or row.loss + 2 * row.metrics["loss_error"] <= found.limit:
        return []
    error = _in_unit(found.measure, row.metrics["loss_error"])
    text = (
        f"the loss of the recommended rate is uncertain by {error} (one standard error), too much "
        "for the limit: measure more inputs (--limit, more --data)"
    )
    return [text]


def _in_unit(measure: str, error: float) -> str:
    if measure == "cosine":
        return f"{error:.2g} of the cosine"
    return f"{100 * error:.2g} {'points of accuracy' if measure == 'accuracy' else '%'}"


def _conclusion(found: Evaluation) -> str:
    from astra_mesh.bundle.quality import limit_in_words, loss_in_words

    limit = limit_in_words(found.measure, found.limit)
    row = found.recommended_row
    if not any(one.codebook_id for one in found.rows):
        return "no codebook was measured, so no rate is recommended"
    if found.lacking:
        return f"recommended: none yet, that takes {found.lacking}"
    if row is None:
        return f"recommended: none, no rate stays within {limit} on {max(found.peers)} peers"
    cost = loss_in_words(found.measure, row.loss)
    return (
        f"recommended: {row.bits_per_token} bits, {found.name_of(row)} ({cost} on "
        f"{row.peers} peers; the limit is {limit})"
    )


def _table(found: Evaluation) -> Table:
    """One row for each codec, rate and number of peers; the first is the single device."""
    keys = [key for key in _metrics(found.rows) if key not in _IN_LOSS]
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("codec", no_wrap=True)
    columns = ["bits", "peers", "loss, %", *(key.replace("_", " ") for key in keys)]
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    table.add_row("one device", "", "1", "", *(_number(found.baseline.get(key)) for key in keys))
    for row in found.rows:
        numbers = [str(row.bits_per_token), str(row.peers), _loss(row)]
        numbers += [_number(row.metrics.get(key)) for key in keys]
        chosen = row is found.recommended_row
        cells: Sequence[Text] = [Text(clean(cell)) for cell in (found.name_of(row), *numbers)]
        table.add_row(*cells, style="bold green" if chosen else None)
    return table


def _bounds(found: Evaluation) -> Table:
    """Over the coded blocks: the bound on the attention's error, and the error that occurred."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.title = f"error of a block's attention, relative to its output, {max(found.peers)} peers"
    table.title_justify = "left"
    table.add_column("codebook", overflow="fold")
    for column in ("bits", "error, mean", "error, worst block", "bound, mean", "bound, worst"):
        table.add_column(column, justify="right")
    for key in dict.fromkeys((found.name_of(x), x.bits_per_token) for x in found.bounds):
        rows = [x for x in found.bounds if (found.name_of(x), x.bits_per_token) == key]
        errors, bounds = [row.error for row in rows], [row.bound for row in rows]
        figures = (sum(errors) / len(rows), max(errors), sum(bounds) / len(rows), max(bounds))
        table.add_row(clean(key[0]), str(key[1]), *map(_number, figures))
    return table


def _loss(row: EvalRow) -> str:
    """With its standard error, in percent or points."""
    loss = round(100 * row.loss, 2) + 0.0  # no "-0.00"
    error = row.metrics.get("loss_error")
    return f"{loss:.2f} ± {'?' if error is None else f'{100 * error:.2f}'}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
