"""What ``fit`` does and what it tells of that: a codebook, or a model trained with one."""

from __future__ import annotations

import os
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.table import Table

from astra_mesh.cli.console import clean, hint, out, print_json
from astra_mesh.cli.options import ClassTokenName, check_class_token, check_output
from astra_mesh.cli.progress import counting
from astra_mesh.errors import InputError

if TYPE_CHECKING:
    from astra_mesh.bundle import Bundle as ModelBundle
    from astra_mesh.peer.code_times import CodeTimes
    from astra_mesh.quality import FitOptions, Fitted
    from astra_mesh.tune.options import TuneOptions
    from astra_mesh.tune.trainer import Tuned


FEW = 100  # calibration tokens for each codeword: with fewer a hint says so
DEAR = 0.25  # of a block's own time: coding that takes more is worth a word


@dataclass(frozen=True)
class Asked:
    """What both ways of fitting are told."""

    model: str
    data: Path
    class_token: ClassTokenName | None  # None: where there is one
    window: int | None
    split: Literal["fit", "eval"] | None
    task: str
    output: Path | None
    as_json: bool


def fit_codebook(asked: Asked, options: FitOptions) -> None:
    """Least squares and k-means, into the model's folder or where it was asked for."""
    from astra_mesh import quality
    from astra_mesh.bundle import find_bundle

    bundle = find_bundle(asked.model)
    check_class_token(bundle, asked.class_token)
    if asked.output is not None:
        check_output(asked.output)
    with counting(quiet=asked.as_json) as progress:
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
    if found.outdated:
        hint(
            f"what was measured before ({', '.join(found.outdated)}) is of the codebook that this "
            "one replaced, and no longer counts; measure anew: astra-mesh eval "
            f"{shlex.quote(clean(asked.model))} --data ... --save"
        )
    if found.passed_over:
        hint(
            "another codebook of this model was measured and this one was not, so that requests go "
            f"on with that: astra-mesh eval {shlex.quote(clean(asked.model))} --data ... --save "
            "measures both"
        )
    if found.report.tokens < FEW * options.codewords:
        hint(
            f"{found.report.tokens} tokens are few for {options.codewords} codewords, which hold "
            "better on them than on others; eval tells how well. More --data helps most"
        )
    _advise(asked, found, times)


def tune_model(
    asked: Asked,
    options: FitOptions,
    tuning: TuneOptions,
    work: Path | None,
    held_out_data: Path | None,
) -> None:
    """Training of model and codebook, into a new folder."""
    from astra_mesh.bundle import find_bundle
    from astra_mesh.quality import finetuning

    if asked.output is None:
        raise InputError("--finetune makes a new model: name its folder with --output")
    bundle = find_bundle(asked.model)
    check_class_token(bundle, asked.class_token)
    one_of_several = os.environ.get("RANK", "0") != "0"  # under torchrun: the first one tells
    with counting(quiet=asked.as_json or one_of_several) as progress:
        found = finetuning.finetune(
            bundle,
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
        "held_out_start": found.tuned.start,
        "held_out_loss": found.tuned.best,
        "held_out_one_device": found.tuned.alone,
        "best_step": found.tuned.best_step,
        "stopped_early": found.tuned.stopped_early,
    }
    if asked.as_json:
        print_json(told)
        return
    out.print(
        f"model and codebook in {clean(str(found.bundle))}; {_gain(found.tuned)}; curve in "
        "training.csv",
        markup=False,
        soft_wrap=True,
    )


def _gain(tuned: Tuned) -> str:
    """From the start to what was kept."""
    early = ", stopped early without gain" if tuned.stopped_early else ""
    alone = f"one device {tuned.alone:.4f}"
    text = f"held-out loss with four peers {tuned.start:.4f}"
    if not tuned.best_step:
        return (
            f"{text} ({alone}): no step of {tuned.steps} was better than the start, which is what "
            f"was kept{early}"
        )
    kept = f"kept: step {tuned.best_step} of {tuned.steps}"
    return f"{text} at the start, {tuned.best:.4f} now ({kept}{early}; {alone})"


@dataclass(frozen=True)
class Times:
    """Seconds of a token on this device, as a peer measures them for the planner."""

    codes: CodeTimes
    block: float  # of a block itself, in the middle of a longer input

    def coding(self, stages: int) -> float:
        """Encoding and decoding."""
        return self.codes.encode_s[stages] + self.codes.decode_s[stages]


def _times(bundle: ModelBundle, found: Fitted) -> Times:
    from astra_mesh.bundle.tensors import load_weights
    from astra_mesh.families import build_model
    from astra_mesh.peer.code_times import measure_codebook
    from astra_mesh.peer.measure import measure, token_s

    model = build_model(bundle.config, load_weights(bundle))
    return Times(measure_codebook(model, found.codebook), token_s(measure(model, None, 0), model))


def _fitted(found: Fitted, times: Times) -> dict[str, object]:
    return {
        "codebook": str(found.path),
        "id": found.codebook.id,
        "bytes": found.path.stat().st_size,
        "rates": list(found.codebook.rates.values()),
        "rates_besides": list(found.besides),
        "tokens": found.report.tokens,
        "sequences": found.report.sequences,
        "fits": sum(map(len, found.codebook.levels.values())),
        "resumed_fits": found.resumed,
        "outdated_tasks": list(found.outdated),
        "passed_over": found.passed_over,
        "blocks": [asdict(one) for one in found.report.blocks],
        "costs": [
            asdict(one)
            | {
                "encode_token_s": times.codes.encode_s[one.stages],
                "decode_token_s": times.codes.decode_s[one.stages],
                "decoder": times.codes.decoder[one.stages],
            }
            for one in found.costs
        ],
        "block_token_s": times.block,
    }


def _show_report(found: Fitted, times: Times) -> None:
    """What is left of each block's variance: after the prediction, and after the codes."""
    report = found.report
    out.print(
        f"{report.sequences} sequences, {report.tokens} tokens; share of their K,V input's "
        "variance that is left",
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
    if found.besides:
        besides = ", ".join(map(str, found.besides))
        out.print(
            f"{besides} bits were not asked for: codes without history begin with those of fewer "
            "bits, so that these are there too, at no cost",
            markup=False,
            soft_wrap=True,
        )
    if found.resumed:
        out.print(f"{_resumed(found)} came from an interrupted run", markup=False)


def _resumed(found: Fitted) -> str:
    """Each block is fitted once for each rate; once for all of them where codes have no history."""
    levels = found.codebook.levels
    blocks = len(next(iter(levels.values())))
    if len(levels) == 1:
        return f"{found.resumed} of {blocks} blocks"
    fits = len(levels) * blocks
    return f"{found.resumed} of {fits} fits ({blocks} blocks at {len(levels)} rates)"


def _show_costs(found: Fitted, times: Times) -> None:
    """What coding one token costs in a block: sizes, and microseconds on this device."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("bits", justify="right")
    for column in (
        "codes",
        "rows to add",
        "tables, MiB",
        "or 1,000\nproducts",
        "encode, us",
        "decode, us",
        "by",
        "of a block",
    ):
        table.add_column(column, justify="right")
    for one in found.costs:
        mib = f"{one.table_bytes / 2**20:.1f}" if one.table_rows else "-"
        rows = f"{one.table_rows}" if one.table_rows else "-"
        products = f"{one.project_products / 1e3:,.0f}"
        encode = f"{1e6 * times.codes.encode_s[one.stages]:.1f}"
        decode = f"{1e6 * times.codes.decode_s[one.stages]:.1f}"
        how = times.codes.decoder[one.stages]
        share = f"{times.coding(one.stages) / times.block:.0%}"
        table.add_row(
            str(one.bits), str(one.codes), rows, mib, products, encode, decode, how, share
        )
    out.print(
        "coding a token, per block (rows: of the last block; times: on this device, where the "
        f"block itself takes {1e6 * times.block:.1f} us a token)",
        markup=False,
        soft_wrap=True,
    )
    out.print(table)


def _advise(asked: Asked, found: Fitted, times: Times) -> None:
    """Codes with a history where codes without one would be worth their bits."""
    book = found.codebook
    stages = book.default_stages
    share = times.coding(stages) / times.block
    if not book.history or share <= DEAR:
        return
    hint(
        f"coding {book.rate(stages)} bits takes {share:.0%} of a block's own time on this device: "
        "where links are good, codes without history answer sooner, with more bits for the same "
        f"quality. To have both: astra-mesh fit {shlex.quote(clean(asked.model))} --data ... "
        "--history 0, then astra-mesh eval ... --save; each request takes what is faster"
    )
