"""Fitting a codebook to a bundle's model from files of data."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import torch

from astra_mesh.bundle import Bundle, write_manifest
from astra_mesh.bundle.quality import stored_tasks
from astra_mesh.bundle.tensors import load_weights, open_tensors, read_metadata, save_tensors
from astra_mesh.bundle.writable import check_file, only_run
from astra_mesh.errors import AstraMeshError, CalibrationError, CodebookError, ModelError
from astra_mesh.families import ModelInput, build_model
from astra_mesh.quality.data import Split, load_inputs
from astra_mesh.quant.codebook import UNLIMITED, Codebook, block_book, load_codebook
from astra_mesh.quant.cost import DecodeCost, decode_costs
from astra_mesh.quant.fit import (
    FitReport,
    FittedBlock,
    Progress,
    Stored,
    fingerprint,
    fit_codebook,
)
from astra_mesh.quant.options import FitOptions
from astra_mesh.wire.messages import ModelId

_log = logging.getLogger(__name__)

PICTURE_VIEWS: Final = 4  # of calibration pictures, where there are too few
_SHARES: Final = "shares"  # in a partial file: what is left of a block's variance


@dataclass(frozen=True)
class Fitted:
    """A codebook on the disk, and how it came about."""

    path: Path
    codebook: Codebook
    report: FitReport
    resumed: int  # of the fits, one for each block and level, what an interrupted run had done
    costs: list[DecodeCost]  # of each rate
    outdated: tuple[str, ...]  # tasks with measured figures of the codebook that was replaced
    besides: tuple[int, ...]  # rates in bits that nobody asked for: parts of codes without history
    passed_over: bool  # requests go on with another codebook, which was measured


def codebook_name(options: FitOptions) -> str:
    """The file that a codebook of these options has in a bundle."""
    if options.codec == "astra":
        return f"codebook-astra-g{options.groups}.safetensors"
    if options.history == UNLIMITED:
        return "codebook.safetensors"
    return f"codebook-h{options.history}.safetensors"


def fit(
    bundle: Bundle,
    data: Path,
    options: FitOptions,
    progress: Progress = lambda done, total, what: None,
    output: Path | None = None,
    *,
    window: int | None = None,
    split: Split | None = None,
    task: str = "",
    notes: Mapping[str, str] | None = None,
) -> Fitted:
    """Fit a codebook to ``data`` (see :func:`load_samples`) and save it.

    It goes to ``output``, or into the bundle's folder, whose manifest is then written anew. Either
    way the file appears whole or not at all. Until then the blocks fitted so far lie beside it in a
    hidden file, from which the same command goes on if it was interrupted. ``notes`` are kept among
    the file's metadata.

    Raises:
        CalibrationError: data or options that cannot be used.
        InputError: the file cannot be written, as far as can be known before.
        ModelError: the bundle cannot be used, the file cannot be written, or another run is about
            to write it.
    """
    path = output or bundle.path / codebook_name(options)
    check_file(path)
    with only_run(path.with_name(f".{path.stem}.lock"), path):
        progress(0, 1, "reading the model")
        model = build_model(bundle.config, load_weights(bundle))
        options.check(model.spec.hidden_size)
        _check_history(options.history, model.spec.num_hidden_layers)
        if task:
            model.require(task)
        progress(0, 1, "reading the data")
        views = PICTURE_VIEWS if model.spec.vocab_size == 0 else 1
        inputs = load_inputs(
            bundle, data, limit_tokens=options.max_tokens, window=window, split=split, views=views
        )
        partial = Partial(path, bundle.model_id, options, inputs)
        done = partial.load()
        resumed = len(done)
        codebook, report = fit_codebook(
            model,
            bundle.model_id,
            inputs,
            options,
            progress,
            task=task,
            done=done,
            keep=partial.save,
        )
        outdated = _outdated(bundle, path, codebook)
        codebook.save(path, notes)
        partial.remove()
        if output is None:
            write_manifest(bundle.path)
        costs = decode_costs(codebook, model.spec)
        asked = options.stages
        besides = tuple(bits for bits in codebook.rates.values() if bits not in asked)
        passed_over = output is None and not outdated and _passed_over(bundle, codebook)
        return Fitted(path, codebook, report, resumed, costs, outdated, besides, passed_over)


def _check_history(history: int, blocks: int) -> None:
    """CalibrationError where so many blocks are all that a block of the model has before it."""
    if history and history >= blocks - 1:
        raise CalibrationError(
            f"a history of {history} looks back no further than all does in a model of {blocks} "
            "blocks, and costs more: use --history all"
        )


def _passed_over(bundle: Bundle, new: Codebook) -> bool:
    """Whether another codebook of the bundle was measured and this one was not."""
    rows = [row for found in stored_tasks(bundle).values() for row in found.measured]
    known = {row.codebook for row in rows if row.codebook}
    return bool(known) and new.id not in known


def _outdated(bundle: Bundle, path: Path, new: Codebook) -> tuple[str, ...]:
    """Tasks whose figures are of another codebook that lies in the bundle at ``path`` so far."""
    if path.resolve().parent != bundle.path.resolve() or not path.exists():
        return ()
    try:
        old = load_codebook(path, bundle.model_id).id
    except CodebookError:  # figures of one that cannot be used count for nothing anyway
        return ()
    tasks = stored_tasks(bundle) if old != new.id else {}
    return tuple(
        task for task, found in tasks.items() if any(one.codebook == old for one in found.measured)
    )


class Partial:
    """The blocks that an unfinished run has fitted, in a hidden file beside the codebook to be.

    They count only for the same model, options and data.
    """

    def __init__(
        self, path: Path, model: ModelId, options: FitOptions, inputs: list[ModelInput]
    ) -> None:
        self._path = path.with_name(f".{path.stem}.partial.safetensors")
        told = f"{model} {sorted(asdict(options).items())} {fingerprint(inputs)}"
        self._key = hashlib.sha256(told.encode()).hexdigest()

    def load(self) -> Stored:
        """Empty where there is none, or of another run."""
        if not self._path.exists():
            return {}
        try:
            if read_metadata(self._path).get("key") != self._key:
                _log.warning(
                    "%s: an interrupted run of another model, other options or data, or of another "
                    "version of this program left blocks there, which this one does not go on with",
                    self._path,
                )
                return {}
            tensors = open_tensors(self._path)
            places = {tuple(map(int, name.split(".")[:2])) for name in tensors}
            found: Stored = {}
            for stages, block in sorted(places):
                book = block_book(tensors, f"{stages}.{block}.", stages)
                predicted, *left = tensors[f"{stages}.{block}.{_SHARES}"].tolist()
                if len(left) != stages:
                    return {}
                found[stages, block] = FittedBlock(book, predicted, tuple(left))
        except (AstraMeshError, ValueError, KeyError):  # cut short: begin anew
            return {}
        return found

    def save(self, done: Stored) -> None:
        """Write all of them; ModelError where that fails: the file then has those of before."""
        tensors = {
            f"{stages}.{block}.{name}": tensor
            for (stages, block), one in done.items()
            for name, tensor in one.book.tensors().items()
        }
        for (stages, block), one in done.items():
            shares = one.predicted, *one.left
            tensors[f"{stages}.{block}.{_SHARES}"] = torch.tensor(shares, dtype=torch.float64)
        try:
            save_tensors(self._path, tensors, {"key": self._key})
        except ModelError as error:
            if not self._path.exists():
                raise
            raise ModelError(
                f"{error.message}; what was fitted before is kept there: once it can be written, "
                "the same command goes on from it"
            ) from error

    def remove(self) -> None:
        """The run is over."""
        self._path.unlink(missing_ok=True)
