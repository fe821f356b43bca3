"""The command that learns codebooks and adapts models to them: ``fit``."""

from __future__ import annotations

import enum
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from astra_mesh.cli.console import clean, err, hint, reporting
from astra_mesh.cli.fitting import Asked, fit_codebook, tune_model
from astra_mesh.cli.options import (
    Bundle,
    ClassTokenName,
    Data,
    Json,
    Split,
    SplitName,
    Task,
    Window,
    parse_numbers,
    part_of,
)
from astra_mesh.errors import InputError

if TYPE_CHECKING:
    from astra_mesh.quant.options import FitOptions

FIT_EXAMPLE: Final = "Example:  astra-mesh fit my-model --data texts/ --rates 16,64 --history all"


class BookCodec(enum.Enum):
    """Codecs that have a codebook."""

    VQ = "vq"
    ASTRA = "astra"


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


_TUNE = "Fine-tuning"


def fit(
    ctx: typer.Context,
    model: Bundle,
    data: Data,
    codec: Annotated[BookCodec, typer.Option(help="vq, or astra as published.")] = BookCodec.VQ,
    history: Annotated[
        str,
        typer.Option(
            help="Blocks that a code is predicted from: all, or a number; 0: none, for more bits "
            "and less time. Default: all; 0 for astra, and where the hidden size is 512 or more "
            "and no rate below 128 bits."
        ),
    ] = "",
    code_first: Annotated[
        bool | None,
        typer.Option(
            "--code-first/--exact-first",
            help="Code the first block, too, which all devices otherwise compute of all tokens: "
            "quicker for pictures, slower for texts; a little less exact. With --history 0 only. "
            "Default: for pictures where the hidden size is 512 or more.",
        ),
    ] = None,
    rates: Annotated[
        str,
        typer.Option(
            help="Bits per token and block. Default: 16,32,64,128; without history 128,256,512; "
            "none for astra."
        ),
    ] = "",
    default_rate: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Used unless another is asked for or was measured better. Default: the nearest "
            "to 64; without history to 256.",
        ),
    ] = None,
    groups: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Codes of the first stage; of the only one for astra. Default: 1; without history "
            "those of the smallest rate, 16 at most.",
        ),
    ] = None,
    codewords: Annotated[
        int | None, typer.Option(min=2, help="Of one group. Default: 256; astra: 1024.")
    ] = None,
    class_token: Annotated[
        ClassTokenName | None,
        typer.Option(help="On one peer, or a copy on each. Default: a copy on each."),
    ] = None,
    tokens: Annotated[
        int, typer.Option(min=1, help="Calibration tokens; they bound the memory.")
    ] = 65_536,
    sample: Annotated[
        int, typer.Option(min=1, help="Of them, tokens that codewords are learned from.")
    ] = 50_000,
    iterations: Annotated[int, typer.Option(min=1, help="Of k-means.")] = 12,
    sensitivity: Annotated[
        float, typer.Option(min=0, help="Weight of the answers' gradients in the metric; 0: none.")
    ] = 0.5,
    window: Window = None,
    split: Split = SplitName.ALL,
    task: Task = "",
    seed: Annotated[int, typer.Option(min=0, help="For the same again.")] = 0,
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
        float,
        typer.Option(
            "--learning-rate", min=0, max=1, rich_help_panel=_TUNE, help="Of the weights."
        ),
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
        float,
        typer.Option(min=0, max=1, rich_help_panel=_TUNE, help="Learning rate of the codebook."),
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
            from astra_mesh.tune.options import TuneOptions
        if not finetune:
            _refuse_training(ctx)
        astra = codec is BookCodec.ASTRA
        if astra and (history or rates or default_rate):
            raise InputError(
                "astra has one rate (--groups, --codewords) and no history: leave out --history, "
                "--rates and --default-rate"
            )
        if astra and code_first is False:
            raise InputError("astra codes the first block anyway: leave out --exact-first")
        wanted = parse_numbers("--rates", rates) if rates else None
        distributed = class_token is not ClassTokenName.SINGLE
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
            distributed=distributed,
            precision=precision.value,
            patience=patience,
            check=check,
            held_out=held_out,
            seed=seed,
        )
        if finetune:
            tuning.check_values()
        usual = _suited(model, history, wanted, codewords or 256, astra=astra)
        options = replace(
            usual,
            codec=codec.value,
            default_rate=default_rate or usual.default_rate,
            groups=groups or usual.groups,
            codewords=codewords or (1024 if astra else 256),
            max_tokens=tokens,
            sample=sample,
            iterations=iterations,
            sensitivity=sensitivity,
            code_first=usual.code_first if code_first is None else code_first,
            distributed=distributed,
            seed=seed,
        )
        if default_rate and default_rate not in options.rates:
            have = ", ".join(map(str, options.rates))
            raise InputError(f"--default-rate {default_rate} is none of the rates {have} (--rates)")
        asked = Asked(model, data, class_token, window, part_of(split), task, output, as_json)
        if not finetune:
            with _going_on():
                fit_codebook(asked, options)
            return
        with _going_on():
            tune_model(asked, options, tuning, work, held_out_data)


def _refuse_training(ctx: typer.Context) -> None:
    """InputError where an option of training was given, which a plain fit would pass over."""
    for one in ctx.command.params:
        if getattr(one, "rich_help_panel", None) != _TUNE or one.name is None:
            continue
        source = ctx.get_parameter_source(one.name)
        if source is not None and source.name == "COMMANDLINE":
            raise InputError(
                f"{one.opts[0]} is an option of training: give --finetune too, or leave it out"
            )


@contextmanager
def _going_on() -> Iterator[None]:
    """Tells who interrupts that nothing is lost."""
    try:
        yield
    except KeyboardInterrupt:
        hint("interrupted; the same command goes on from the last block or checkpoint")
        raise


def _suited(
    model: str, history: str, rates: tuple[int, ...] | None, codewords: int, *, astra: bool
) -> FitOptions:
    """What a model gets where nothing else is asked for; says so if that is not what most get.

    Raises:
        InputError: no history.
        ModelError: no model.
    """
    from astra_mesh.bundle import find_bundle
    from astra_mesh.families import read_spec
    from astra_mesh.quant.options import FitOptions

    asked = _parse_history(history) if history else None
    spec = read_spec(find_bundle(model).config)
    if astra:
        return FitOptions(history=0, rates=())
    found = FitOptions.suited(
        spec.hidden_size,
        pictures=spec.vocab_size == 0,
        history=asked,
        rates=rates,
        codewords=codewords,
    )
    if asked is None and not found.history and os.environ.get("RANK", "0") == "0":
        hint(
            f"hidden size {spec.hidden_size}: codes without history, which take more bits and less "
            "time; for networks of 1 Mbit/s or so --history all"
        )
    return found


def _parse_history(text: str) -> int:
    from astra_mesh.quant.codebook import UNLIMITED

    if text.strip().lower() in ("all", "unlimited"):
        return UNLIMITED
    if text.strip().isdecimal():
        return int(text)
    raise InputError(f"--history is all or a number of blocks, not {clean(text)!r}")
