"""Calibration and evaluation data: files of text, sentences or pictures as model inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Literal, TypeVar

from astra_mesh.bundle import Bundle
from astra_mesh.bundle.specs import spec_of
from astra_mesh.errors import CalibrationError
from astra_mesh.families import ModelInput, ModelSpec
from astra_mesh.quality import pictures, texts
from astra_mesh.quality.sample import Sample

Split = Literal["fit", "eval"]
T = TypeVar("T")

EVAL_EVERY = 10  # with a split, every tenth item is for evaluation, the others for fitting
WINDOW_TOKENS = 1024  # default cap of a window where the model's context is longer


def load_inputs(
    bundle: Bundle,
    path: Path,
    *,
    limit_tokens: int,
    window: int | None = None,
    split: Split | None = None,
    views: int = 1,
) -> list[ModelInput]:
    """Inputs of at most ``limit_tokens`` tokens together, but at least one; see load_samples.

    Where the data are used up, further views of them follow (see :func:`stream_samples`), up to
    ``views`` in all.
    """
    spec = spec_of(bundle)
    found: list[ModelInput] = []
    left = limit_tokens
    for view in range(views):
        for sample in _samples(bundle, spec, path, window, split, view):
            tokens = sample.input.tokens
            left -= spec.max_tokens if tokens is None else len(tokens)
            if found and left < 0:
                return found
            found.append(sample.input)
    return _some(found, path, spec, split)


def stream_samples(
    bundle: Bundle,
    path: Path,
    *,
    window: int | None = None,
    split: Split | None = None,
    classes: Mapping[int, str] | None = None,
) -> Iterator[Sample]:
    """Samples without end: view after view of the data.

    Another view of a picture shows another piece of it, perhaps mirrored; of running text, other
    windows; of sentences, the same.

    Raises:
        CalibrationError: as :func:`load_samples`.
    """
    spec = spec_of(bundle)
    for view in count(1):
        any_left = False
        for sample in _samples(bundle, spec, path, window, split, view, classes):
            any_left = True
            yield sample
        if not any_left:
            _some([], path, spec, split)


def load_samples(
    bundle: Bundle,
    path: Path,
    *,
    limit: int,
    window: int | None = None,
    split: Split | None = None,
    classes: Mapping[int, str] | None = None,
) -> list[Sample]:
    """The first ``limit`` items of a data file or folder, in an order that is always the same.

    Models that generate read a .txt file or a folder of them, in windows of ``window`` tokens
    (default: the model's context, at most 1,024); a line ``<|endoftext|>`` ends a document, and no
    window crosses from one to the next. Text encoders read a .tsv with a column
    ``sentence`` (and perhaps ``label``, which is read where the model's ``classes`` are given), or
    a .txt with one sentence a line. Both read token ids, too: a .npy file of integers, (N,) one
    text or (sequences, N) one sequence per row, of which no window crosses from one to the next;
    an encoder's is cut after ``window`` ids. Image models read a folder or .zip of JPEG and PNG
    files; classes come from ``labels.csv`` (see ``pictures.COLUMNS``) or the parent folder's name.
    ``split`` "eval" takes every tenth item only, "fit" the nine others, None all.

    Raises:
        CalibrationError: nothing there that the model can read; says what is wrong.
        ModelError, WrongTaskError: the bundle itself cannot be used for this.
    """
    spec = spec_of(bundle)
    samples = _samples(bundle, spec, path, window, split, classes=classes)
    return _some(list(islice(samples, max(1, limit))), path, spec, split)


def check_labels(bundle: Bundle, path: Path, classes: Mapping[int, str]) -> None:
    """CalibrationError where a label anywhere in the data is none of a model's classes."""
    _check_there(path)
    check = texts.check_labels if spec_of(bundle).vocab_size else pictures.check_labels
    check(path, classes)


def _check_there(path: Path) -> None:
    if not path.exists():
        raise CalibrationError(f"there is no file or folder {path}")


def _some(found: list[T], path: Path, spec: ModelSpec, split: Split | None) -> list[T]:
    if not found:
        one, several = "sentence", "sentences"
        if spec.vocab_size == 0:
            one, several = "picture", "pictures"
        elif spec.causal:
            one, several = "text of 2 tokens", "windows of text"
        need = f"at least a {one} is needed"
        if split == "eval":
            need = f"every tenth input is taken, so at least {EVAL_EVERY} {several} are needed"
        raise CalibrationError(f"{path.name} holds too little: {need}")
    return found


def window_of(spec: ModelSpec, asked: int | None) -> int:
    """Tokens of a window of text, or the most of a sentence."""
    return min(spec.max_tokens, WINDOW_TOKENS if asked is None else asked)


def _samples(
    bundle: Bundle,
    spec: ModelSpec,
    path: Path,
    window: int | None,
    split: Split | None,
    view: int = 0,
    classes: Mapping[int, str] | None = None,
) -> Iterator[Sample]:
    """The items of the split, each made only when it is asked for.

    What is in a split is the same in every view, down to the token.
    """
    _check_there(path)
    size = window_of(spec, window)
    if size < 2:
        raise CalibrationError(f"a window must have at least 2 tokens, not {size}")
    if spec.vocab_size == 0:
        yield from _of_split(pictures.pictures(bundle, path, view, classes), split)
    elif spec.causal:
        yield from texts.windows(bundle, path, size, _skip(size, view), partial(_in_split, split))
    else:
        yield from _of_split(texts.sentences(bundle, path, size, classes), split)


def _skip(size: int, view: int) -> int:
    """Tokens that a view's windows begin later: 1 to size - 1, spread; 0 for view 0."""
    return 1 + int((size - 1) * ((view * 0.618034) % 1)) if view else 0


def _of_split(items: Iterator[T], split: Split | None) -> Iterator[T]:
    return (item for index, item in enumerate(items) if _in_split(split, index))


def _in_split(split: Split | None, index: int) -> bool:
    return split is None or (split == "eval") == (index % EVAL_EVERY == EVAL_EVERY - 1)
