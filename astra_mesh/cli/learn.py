"""The command that learns codebooks and adapts models to them: ``fit``."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from astra_mesh.cli.console import clean, err, hint, out, print_json, reporting
from astra_mesh.cli.options import Bundle, Json, check_output
from astra_mesh.errors import InputError

if TYPE_CHECKING:
    from astra_mesh.bundle import Bundle as ModelBundle
    from astra_mesh.peer.code_times import CodeTimes
    from astra_mesh.quality import FitOptions, Fitted
    from astra_mesh.tune.options import TuneOptions

FIT_EXAMPLE: Final = "Example:  astra-mesh fit my-model --data texts/ --rates 16,64 --history all"

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


class ClassTokenName(enum.Enum):
    """Where the class token lives."""

    SINGLE = "single"
    DISTRIBUTED = "distributed"


class TrainedName(enum.Enum):
    """What is trained beside the codebook."""

    ALL = "all"
    LORA = "lora"
    CODEBOOK = "codebook"


class CovarianceName(enum.Enum):
    """Of the noise."""

    DIAGONAL = "diagonal"
    FULL = "full"


class PrecisionName(enum.Enum):
    """Of training."""

    FP32 = "fp32"
    BF16 = "bf16"


class SplitName(enum.Enum):
    """Which part of the data is used."""

    ALL = "all"
    FIT = "fit"
    EVAL = "eval"


Split = Annotated[
    SplitName,
    typer.Option(help="all of the data; eval: every tenth item; fit: the nine others."),
]


@dataclass(frozen=True)
class _Asked:
    """What both ways of fitting are told."""

    model: str
    data: Path
    window: int | None
    split: Literal["fit", "eval"] | None
    task: str
    output: Path | None
    as_json: bool


_TUNE = "Fine-tuning"


def fit(
    model: Bundle,
    data: Data,
    codec: Annotated[BookCodec, typer.Option(help="vq, or astra as published.")] = BookCodec.VQ,
    history: Annotated[
        str,
        typer.Option(
            help="Blocks that a code is predicted from: all, or a number; 0: none. Default: all; "
            "not for astra."
        ),
    ] = "",
    rates: Annotated[
        str, typer.Option(help="Bits per token and block. Default: 16,32,64,128; not for astra.")
    ] = "",
    default_rate: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Used unless another is asked for or was measured better. Default: the nearest "
            "to 64.",
        ),
    ] = None,
    groups: Annotated[
        int, typer.Option(min=1, help="Codes of the first stage; of the only one for astra.")
    ] = 1,
    codewords: Annotated[
        int | None, typer.Option(min=2, help="Of one group. Default: 256; astra: 1024.")
    ] = None,
    class_token: Annotated[
        ClassTokenName, typer.Option(help="Where the class token lives, for models that have one.")
    ] = ClassTokenName.SINGLE,
    tokens: Annotated[
        int, typer.Option(min=1, help="Calibration tokens; they bound the memory.")
    ] = 65_536,
    sensitivity: Annotated[
        float, typer.Option(min=0, help="Weight of the answers' gradients in the metric; 0: none.")
    ] = 0.5,
    window: Window = None,
    split: Split = SplitName.ALL,
    task: Annotated[str, typer.Option(help="generate, classify or embed.")] = "",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="File; with --finetune a new folder. Default: in the model's."
        ),
    ] = None,
    finetune: Annotated[
        bool,
        typer.Option(
            "--finetune", rich_help_panel=_TUNE, help="Adapt the weights too, into --output."
        ),
    ] = False,
    steps: Annotated[int, typer.Option(min=1, rich_help_panel=_TUNE, help="Steps.")] = 400,
    batch: Annotated[
        int, typer.Option(min=1, rich_help_panel=_TUNE, help="Sequences in a step and process.")
    ] = 32,
    rate: Annotated[
        float, typer.Option("--learning-rate", rich_help_panel=_TUNE, help="Of the weights.")
    ] = 3e-5,
    train: Annotated[
        TrainedName,
        typer.Option(rich_help_panel=_TUNE, help="What is trained beside the codebook."),
    ] = TrainedName.ALL,
    noise: Annotated[
        float, typer.Option(min=0, rich_help_panel=_TUNE, help="Strength of the added noise.")
    ] = 0.3,
    covariance: Annotated[
        CovarianceName, typer.Option(rich_help_panel=_TUNE, help="Of the noise.")
    ] = CovarianceName.DIAGONAL,
    distill: Annotated[
        float,
        typer.Option(
            min=0, max=1, rich_help_panel=_TUNE, help="Share of the unchanged model's answers."
        ),
    ] = 0.9,
    even: Annotated[
        bool, typer.Option("--even", rich_help_panel=_TUNE, help="Only even shards.")
    ] = False,
    peers: Annotated[
        str, typer.Option(rich_help_panel=_TUNE, help="Numbers of peers, drawn for each step.")
    ] = "1,2,3,4,5,6,7,8",
    precision: Annotated[
        PrecisionName, typer.Option(rich_help_panel=_TUNE, help="Of the arithmetic.")
    ] = PrecisionName.FP32,
    lora_rank: Annotated[
        int, typer.Option(min=1, rich_help_panel=_TUNE, help="Of the adapters of --train lora.")
    ] = 8,
    commitment: Annotated[
        float, typer.Option(min=0, rich_help_panel=_TUNE, help="Weight of the commitment loss.")
    ] = 5e-4,
    codebook_rate: Annotated[
        float, typer.Option(rich_help_panel=_TUNE, help="Learning rate of the codebook.")
    ] = 1e-4,
    patience: Annotated[
        int,
        typer.Option(
            min=0, rich_help_panel=_TUNE, help="Checks without gain before it stops; 0: never."
        ),
    ] = 5,
    check: Annotated[
        int, typer.Option(min=1, rich_help_panel=_TUNE, help="Steps between checks.")
    ] = 50,
    held_out: Annotated[
        int, typer.Option(min=1, rich_help_panel=_TUNE, help="Sequences that a check measures on.")
    ] = 64,
    held_out_data: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=_TUNE,
            help="They come from here. Default: every tenth item of --data, which does not train.",
        ),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(rich_help_panel=_TUNE, help="For checkpoints. Default: OUTPUT.work"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Learn a codebook from data (no training), or with --finetune train model and codebook.

    An interrupted run goes on where it stopped if the same command is given again.
    """
    with reporting(as_json):
        with err.status("starting", spinner="dots"):
            from astra_mesh import quality
            from astra_mesh.tune.options import TuneOptions
        astra = codec is BookCodec.ASTRA
        if astra and (history or rates or default_rate):
            raise InputError(
                "astra has one rate (--groups, --codewords) and no history: leave out --history, "
                "--rates and --default-rate"
            )
        options = quality.FitOptions(
            codec=codec.value,
            history=0 if astra else _parse_history(history or "all"),
            rates=() if astra else parse_numbers("--rates", rates or "16,32,64,128"),
            default_rate=default_rate or 64,
            groups=groups,
            codewords=codewords or (1024 if astra else 256),
            max_tokens=tokens,
            sensitivity=sensitivity,
            distributed=class_token is ClassTokenName.DISTRIBUTED,
            seed=seed,
        )
        if default_rate and default_rate not in options.rates:
            have = ", ".join(map(str, options.rates))
            raise InputError(f"--default-rate {default_rate} is none of the --rates {have}")
        part = None if split is SplitName.ALL else split.value
        asked = _Asked(model, data, window, part, task, output, as_json)
        if not finetune:
            with _going_on():
                _fit(asked, options)
            return
        tuning = TuneOptions(
            steps=steps,
            batch=batch,
            learning_rate=rate,
            trained=train.value,
            codebook_rate=codebook_rate,
            lora_rank=lora_rank,
            commitment=commitment,
            noise=noise,
            covariance=covariance.value,
            distill=distill,
            peers=parse_numbers("--peers", peers),
            uneven=not even,
            distributed=options.distributed,
            precision=precision.value,
            patience=patience,
            check=check,
            held_out=held_out,
            seed=seed,
        )
        with _going_on():
            _finetune(asked, options, tuning, work, held_out_data)


@contextmanager
def _going_on() -> Iterator[None]:
    """Tells who interrupts that nothing is lost."""
    try:
        yield
    except KeyboardInterrupt:
        hint("interrupted; the same command goes on from the last block or checkpoint")
        raise


def _fit(asked: _Asked, options: FitOptions) -> None:
    from astra_mesh import quality
    from astra_mesh.bundle import find_bundle

    bundle = find_bundle(asked.model)
    if asked.output is not None:
        check_output(asked.output)
    with progress_bar() as progress:
        found = quality.fit(
            bundle,
            asked.data,
            options,
            progress,
            asked.output,
            window=asked.window,
            split=asked.split,
            task=asked.task,
        )
        progress(0, 1, "timing encoding and decoding")
        times = _times(bundle, found)
    if asked.as_json:
        print_json(_fitted(found, times))
        return
    _show_report(found, times)
    out.print(f"codebook in {clean(str(found.path))}", markup=False, soft_wrap=True)


def _finetune(
    asked: _Asked,
    options: FitOptions,
    tuning: TuneOptions,
    work: Path | None,
    held_out_data: Path | None,
) -> None:
    from astra_mesh.bundle import find_bundle
    from astra_mesh.quality.finetuning import finetune

    if asked.output is None:
        raise InputError("--finetune makes a new model: name its folder with --output")
    with progress_bar() as progress:
        found = finetune(
            find_bundle(asked.model),
            asked.data,
            options,
            tuning,
            asked.output,
            progress,
            held_out_data=held_out_data,
            work=work,
            window=asked.window,
            split=asked.split,
            task=asked.task,
        )
    if found is None:  # not the first process
        return
    told = {
        "bundle": str(found.bundle),
        "codebook": found.codebook.id,
        "steps": found.tuned.steps,
        "held_out_loss": found.tuned.best,
        "best_step": found.tuned.best_step,
        "stopped_early": found.tuned.stopped_early,
    }
    if asked.as_json:
        print_json(told)
        return
    early = " (stopped early: no gain any more)" if found.tuned.stopped_early else ""
    if not found.tuned.best_step:
        early += "; no step was better than the start, which is what was kept"
    out.print(
        f"model and codebook in {clean(str(found.bundle))} after {found.tuned.steps} steps{early}; "
        f"loss on held-out data with four peers {found.tuned.best:.4f}; curve in training.csv",
        markup=False,
        soft_wrap=True,
    )


def _times(bundle: ModelBundle, found: Fitted) -> CodeTimes:
    """Of this device, as a peer measures them for the planner."""
    from astra_mesh.bundle.tensors import load_weights
    from astra_mesh.families import build_model
    from astra_mesh.peer.code_times import measure_codebook

    return measure_codebook(build_model(bundle.config, load_weights(bundle)), found.codebook)


def _fitted(found: Fitted, times: CodeTimes) -> dict[str, object]:
    return {
        "codebook": str(found.path),
        "id": found.codebook.id,
        "bytes": found.path.stat().st_size,
        "rates": list(found.codebook.rates.values()),
        "tokens": found.report.tokens,
        "sequences": found.report.sequences,
        "resumed_blocks": found.resumed,
        "blocks": [asdict(one) for one in found.report.blocks],
        "costs": [
            asdict(one)
            | {
                "encode_token_s": times.encode_s[one.stages],
                "decode_token_s": times.decode_s[one.stages],
                "decoder": times.decoder[one.stages],
            }
            for one in found.costs
        ],
    }


def _show_report(found: Fitted, times: CodeTimes) -> None:
    """What is left of each block's variance: after the prediction, and after the codes."""
    report = found.report
    out.print(
        f"{report.sequences} sequences, {report.tokens} tokens; share of the K,V input's variance "
        "that is left",
        markup=False,
    )
    rates = sorted({one.bits for one in report.blocks})
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("block", justify="right")
    for bits in rates:
        table.add_column(f"{bits} bits:\npredicted", justify="right")
        table.add_column("\ncoded", justify="right")
    for block in sorted({one.block for one in report.blocks}):
        cells = []
        for bits in rates:
            match = [x for x in report.blocks if (x.block, x.bits) == (block, bits)]
            cells += [f"{match[0].predicted:.3f}", f"{match[0].left:.3f}"] if match else ["", ""]
        table.add_row(str(block), *cells)
    if rates:
        out.print(table)
    _show_costs(found, times)
    if found.resumed:
        out.print(f"{found.resumed} blocks came from an interrupted run", markup=False)


def _show_costs(found: Fitted, times: CodeTimes) -> None:
    """What coding one token costs in a block: sizes, and microseconds on this device."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("bits", justify="right")
    for column in (
        "codes",
        "rows to add",
        "tables, MiB",
        "or products",
        "encode, us",
        "decode, us",
    ):
        table.add_column(column, justify="right")
    for one in found.costs:
        mib = f"{one.table_bytes / 2**20:.1f}" if one.table_rows else "-"
        rows = f"{one.table_rows}" if one.table_rows else "-"
        products = f"{one.project_products:,}"
        decode = f"{1e6 * times.decode_s[one.stages]:.1f} ({times.decoder[one.stages]})"
        encode = f"{1e6 * times.encode_s[one.stages]:.1f}"
        table.add_row(str(one.bits), str(one.codes), rows, mib, products, encode, decode)
    out.print(
        "coding a token, per block (rows: of the last block; times: on this device)", markup=False
    )
    out.print(table)


def _parse_history(text: str) -> int:
    from astra_mesh.quant.codebook import UNLIMITED

    if text.strip().lower() in ("all", "unlimited"):
        return UNLIMITED
    if text.strip().isdecimal():
        return int(text)
    raise InputError(f"--history is all or a number of blocks, not {clean(text)!r}")


def parse_numbers(option: str, text: str) -> tuple[int, ...]:
    """Whole numbers separated by commas; InputError for anything else."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise InputError(f"{option} is a list of whole numbers, as 16,64") from None


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int, str], None]]:
    """A bar on standard error; called with (done, total, what)."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f}%"))
    with Progress(*columns, TimeElapsedColumn(), console=err.moving, transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def advance(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=clean(what))

        yield advance
