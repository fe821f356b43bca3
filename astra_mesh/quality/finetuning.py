"""Fine-tuning a bundle's model and codebook to each other, into a bundle of its own."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from astra_mesh.bundle import Bundle, open_bundle, write_manifest
from astra_mesh.bundle.configs import no_room, save_json
from astra_mesh.bundle.tensors import load_weights, read_metadata, save_tensors
from astra_mesh.bundle.writable import check_folder, check_room, folder_for, only_run
from astra_mesh.errors import InputError, ModelError
from astra_mesh.families import Model, build_model, export_config, export_weights
from astra_mesh.quality.data import Split, check_labels, load_samples, stream_samples
from astra_mesh.quality.fitting import Fitted, codebook_name, fit
from astra_mesh.quality.identity import data_fingerprint
from astra_mesh.quality.sample import Sample
from astra_mesh.quant.codebook import Codebook, load_codebook
from astra_mesh.quant.fit import Progress
from astra_mesh.quant.options import FitOptions
from astra_mesh.tune.lora import twin
from astra_mesh.tune.objective import Batch
from astra_mesh.tune.options import TuneOptions
from astra_mesh.tune.processes import distributed, of_first, pick_device, rank, world
from astra_mesh.tune.trainer import CHECKPOINT, CURVE, Trainer, Tuned

WEIGHTS = "model.safetensors"
START = "start.safetensors"  # the codebook that training began with
_LOCK = ".lock"  # in the work folder while a run uses it
BUFFER = 2048  # samples among which the next batch is drawn
_MADE_FROM = "made_from"  # in its metadata: options and data that it was fitted with
_WAITING = "waiting for the first process, which fits the codebook that all begin with"
_COPIED = (".json", ".txt", ".model")  # of the bundle, beside weights and codebooks

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finetuned:
    """The new bundle, and how training went."""

    bundle: Path
    codebook: Codebook
    tuned: Tuned
    fitted: Fitted | None  # None where a run was resumed or the codebook was given


def finetune(
    bundle: Bundle,
    data: Path,
    fit_options: FitOptions,
    options: TuneOptions,
    output: Path,
    progress: Progress = lambda done, total, what: None,
    *,
    held_out_data: Path | None = None,
    work: Path | None = None,
    window: int | None = None,
    split: Split | None = None,
    task: str = "",
) -> Finetuned | None:
    """Fit a codebook, train it together with the weights, and write a new bundle to ``output``.

    Every tenth item of the data is held out to measure progress; with ``split`` "eval" it is the
    nine others that are, and the tenth ones train. Where the model was trained on these data
    before, other ``held_out_data`` should measure it; then all of the split trains.
    ``work`` (default: ``output`` with ``.work`` appended) keeps the codebook of the start, the
    checkpoint and the curve; the same command goes on from there, and one with other data, options,
    window, split or task is refused by the name of the file that does not fit. Under ``torchrun``
    each process reads its own share of the data; only the first writes, the others return None and
    need none of its folders.

    Raises:
        CalibrationError, InputError: data, options or folders that cannot be used. Nothing was
            done then, and no folder is left.
        ModelError: the bundle cannot be used, a file cannot be written, a disk is full, or another
            run uses the work folder.
    """
    options.check_values()
    if output.resolve() == bundle.path.resolve() or os.path.isfile(output):  # noqa: PTH113 - no errors
        raise InputError("the fine-tuned model needs a folder of its own: name another --output")
    own_work = work is None
    work = work or output.with_name(f"{output.name}.work")
    with ExitStack() as places:
        with distributed():
            of_first(lambda: _prepare(output, work, places))
            model = build_model(bundle.config, load_weights(bundle))
            of_first(lambda: check_room(_needed(bundle, model, options, output, work)))
            task = task or model.spec.tasks[0]
            model.require(task)
            fit_options = replace(
                fit_options, distributed=options.distributed and model.spec.has_class_token
            )
            options = replace(options, distributed=fit_options.distributed)
            fit_split = split if held_out_data else split or "fit"
            classes = model.labels if task == "classify" else None
            if classes is not None:
                check_labels(bundle, data, classes)
            held_out = load_samples(
                bundle,
                held_out_data or data,
                limit=options.held_out,
                window=window,
                split=None if held_out_data else "eval" if fit_split == "fit" else "fit",
                classes=classes,
            )
            distils = options.distill > 0 or task == "embed"
            if (
                not distils
                and task == "classify"
                and all(sample.label is None for sample in held_out)
            ):
                raise InputError(
                    "the data have no labels: there is nothing to learn with --distill 0"
                )
            source = of_first(lambda: _source(data, fit_options, window, fit_split, task))
            measured = of_first(lambda: data_fingerprint(held_out_data) if held_out_data else "")
            start, fitted = _start(
                bundle, data, fit_options, work, progress, window, fit_split, task, source
            )

            def batches(skip: int) -> Iterator[Batch]:
                stream = stream_samples(
                    bundle, data, window=window, split=fit_split, classes=classes
                )
                return _batches(stream, options, skip)

            trainer = Trainer(
                model,
                _teacher(bundle, model, options) if distils else None,
                start,
                task,
                batches,
                [_batch(group) for group in _by_length(held_out, options.batch)],
                options,
                work,
                source + measured,
            )
            tuned = trainer.run(progress)
            if rank():
                return None
        with _writing(output):
            weights = None
            if options.trained != "codebook":
                weights = export_weights(bundle.config, model.cpu())
            codebook = _write(bundle, weights, tuned, output)
            shutil.copyfile(work / CURVE, output / CURVE)
            (work / CHECKPOINT).unlink(missing_ok=True)
            if own_work:
                shutil.rmtree(work)
    return Finetuned(output, codebook, tuned, fitted)


def _teacher(bundle: Bundle, model: Model, options: TuneOptions) -> Model:
    """The model as it was: on weights of its own only where training changes these."""
    if options.trained == "all":
        return build_model(bundle.config, load_weights(bundle))
    return twin(model.to(pick_device()))


def _prepare(output: Path, work: Path, places: ExitStack) -> None:
    """Both can be written; ``work`` is this run's until ``places`` end."""
    check_folder(output)
    if output.is_dir() and any(output.iterdir()) and not (work / CHECKPOINT).exists():
        raise InputError(f"{output} holds files already: delete it, or name another --output")
    check_folder(work)
    places.enter_context(folder_for(work))
    places.enter_context(only_run(work / _LOCK, work))


def _needed(
    bundle: Bundle, model: Model, options: TuneOptions, output: Path, work: Path
) -> dict[Path, int]:
    """Bytes by folder; small files are left out."""
    weights = sum(path.stat().st_size for path in bundle.weight_paths)
    trained = sum(one.numel() for one in model.parameters()) if options.trained == "all" else 0
    checkpoint = 16 * trained  # fp32: the weights now, the best ones, and two means of AdamW
    copies = 1 if (work / CHECKPOINT).exists() else 2  # the new one lies beside the old
    return {output: weights, work: copies * checkpoint}


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = "no space left" if no_room(error) else error.strerror
        raise ModelError(
            f"{folder.absolute()} cannot be written ({reason}); nothing trained is lost: mend that "
            "and give the same command again"
        ) from error


def _source(
    data: Path, options: FitOptions, window: int | None, split: Split | None, task: str
) -> str:
    """SHA-256 of all that a codebook depends on beside the model."""
    told = f"{sorted(asdict(options).items())} {window} {split} {task} {data_fingerprint(data)}"
    return hashlib.sha256(told.encode()).hexdigest()


def _start(
    bundle: Bundle,
    data: Path,
    options: FitOptions,
    work: Path,
    progress: Progress,
    window: int | None,
    split: Split | None,
    task: str,
    source: str,
) -> tuple[Codebook, Fitted | None]:
    """The codebook that training begins with: the first process has it or fits it, for all."""
    path = work / START
    fitted: list[Fitted] = []

    def made() -> Codebook:
        if not path.exists():
            fitted.append(
                fit(
                    bundle,
                    data,
                    options,
                    progress,
                    path,
                    window=window,
                    split=split,
                    task=task,
                    notes={_MADE_FROM: source},
                )
            )
        found = load_codebook(path, bundle.model_id)
        if read_metadata(path).get(_MADE_FROM) != source:
            raise ModelError(
                f"{path} is of a run with other options or other data; delete it, or name another "
                "folder with --work"
            )
        return found

    if not of_first(path.exists) and rank():
        progress(0, 1, _WAITING)
        _log.warning("process %d: %s", rank(), _WAITING)
    found = of_first(made)
    return found, fitted[0] if fitted else None


def _batches(samples: Iterable[Sample], options: TuneOptions, skip: int) -> Iterator[Batch]:
    """This process's batches of sequences of one length, drawn from a buffer."""
    drawn = random.Random(f"{options.seed} batches")
    waiting: dict[int, list[Sample]] = defaultdict(list)
    made = 0
    for sample in _shuffled(samples, drawn):
        group = waiting[_length(sample)]
        group.append(sample)
        if len(group) == options.batch:
            waiting[_length(sample)] = []
            if made % world() == rank() and made // world() >= skip:
                yield _batch(group)
            made += 1


def _shuffled(samples: Iterable[Sample], drawn: random.Random) -> Iterator[Sample]:
    held: list[Sample] = []
    for sample in samples:
        if len(held) < BUFFER:
            held.append(sample)
            continue
        at = drawn.randrange(BUFFER)
        yield held[at]
        held[at] = sample


def _length(sample: Sample) -> int:
    tokens = sample.input.tokens
    return 0 if tokens is None else len(tokens)


def _by_length(samples: list[Sample], size: int) -> Iterator[list[Sample]]:
    groups: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[_length(sample)].append(sample)
    for group in groups.values():
        for at in range(0, len(group), size):
            yield group[at : at + size]


def _batch(group: list[Sample]) -> Batch:
    inputs = [sample.input for sample in group]
    kinds = None
    if any(one.token_types is not None for one in inputs):
        kinds = torch.stack(
            [
                torch.zeros_like(one.tokens) if one.token_types is None else one.token_types
                for one in inputs
                if one.tokens is not None
            ]
        )
    labels = torch.tensor([-1 if s.label is None else s.label for s in group])
    return Batch(
        tokens=None
        if inputs[0].tokens is None
        else torch.stack([one.tokens for one in inputs if one.tokens is not None]),
        token_types=kinds,
        pixels=None
        if inputs[0].pixels is None
        else torch.stack([one.pixels for one in inputs if one.pixels is not None]),
        labels=labels,
    )


def _write(
    bundle: Bundle, weights: dict[str, torch.Tensor] | None, tuned: Tuned, output: Path
) -> Codebook:
    """A bundle with the new weights, in the precision of the old, and their codebook.

    Without new weights the old files are copied, so that the model keeps its id.
    """
    output.mkdir(parents=True, exist_ok=True)
    (output / "manifest.json").unlink(missing_ok=True)
    for path in bundle.path.iterdir():
        if path.suffix in _COPIED and path.name not in _OF_OLD_WEIGHTS and path.is_file():
            shutil.copyfile(path, output / path.name)
    if weights is None:
        for path in (*bundle.weight_paths, *bundle.path.glob("model.safetensors.index.json")):
            shutil.copyfile(path, output / path.name)
    else:
        old = load_weights(bundle).values()
        dtype = next(tensor.dtype for tensor in old if tensor.is_floating_point())
        stored = {name: tensor.to(dtype) for name, tensor in weights.items()}
        save_tensors(output / WEIGHTS, stored, {"format": "pt"})
        save_json(output / "config.json", export_config(bundle.config))
    for path in output.glob("codebook*.safetensors"):
        path.unlink()
    codebook = replace(tuned.codebook, model=open_bundle(output).model_id)
    codebook.save(output / book_file(codebook))
    write_manifest(output)
    return codebook


_OF_OLD_WEIGHTS = ("manifest.json", "quality.json", "model.safetensors.index.json")


def book_file(codebook: Codebook) -> str:
    """The file that a codebook has in a bundle."""
    options = FitOptions(codec=codebook.codec, groups=codebook.groups[0], history=codebook.history)
    return codebook_name(options)
