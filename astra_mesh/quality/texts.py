"""Text data: windows of running text for causal models, single sentences for encoders.

Either may be given as token ids, too.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, TextIO

import torch

from astra_mesh.bundle import Bundle
from astra_mesh.bundle.specs import spec_of
from astra_mesh.bundle.text import NAME as TOKENIZER
from astra_mesh.bundle.text import TextTokenizer
from astra_mesh.errors import CalibrationError, WrongTaskError
from astra_mesh.families import ModelInput
from astra_mesh.limits import NAME_CHARS
from astra_mesh.quality import token_ids
from astra_mesh.quality.sample import Sample

CHUNK_CHARS = 1 << 16  # of text tokenized at a time, cut at a line's end
LINE_CHARS = 1 << 20  # a longer line is cut
END = "<|endoftext|>"  # a line of its own between documents, as in many corpora
FILES = 10_000  # text files read from one folder
_NONE: Final = ("", "-1")  # labels of what has none
_NAMED: Final = 10  # classes that an error names


def windows(
    bundle: Bundle,
    path: Path,
    size: int,
    skip: int = 0,
    wanted: Callable[[int], bool] = lambda number: True,
) -> Iterator[Sample]:
    """Running text in windows of ``size`` tokens; a document's last one may be shorter.

    A file is one document, or several, each ended by a line ``<|endoftext|>``. What is left over is
    used if it has at least two tokens.

    Args:
        bundle: whose tokenizer is used, unless token ids are given.
        path: a file or a folder of files, or a .npy file of token ids.
        size: tokens of a window.
        skip: tokens by which windows begin later, below ``size``: the same text, cut elsewhere.
        wanted: tells by its number if a window is used. Other windows' tokens are never seen,
            shifted or not.
    """
    for tokens in _shifted(_chosen(_pieces(bundle, path, size), wanted), size, skip):
        yield _sample(tokens)


def _tokenizer(bundle: Bundle) -> TextTokenizer:
    """WrongTaskError where there is none."""
    if not bundle.has(TOKENIZER):
        raise WrongTaskError(
            f"{bundle.name} has no {TOKENIZER}, so it reads no text: add the one that the model "
            f"was trained with, or give token ids ({token_ids.SUFFIX}, see the README)"
        )
    return TextTokenizer.from_bundle(bundle)


def _pieces(bundle: Bundle, path: Path, size: int) -> Iterator[tuple[list[int], bool]]:
    """Windows, and if each goes on where the one before ended."""
    if token_ids.holds_ids(path):
        yield from token_ids.pieces(path, spec_of(bundle).vocab_size, size)
        return
    tokenizer = _tokenizer(bundle)
    for file in _text_files(path, (".txt",)):
        held: list[int] = []
        goes_on = False
        for chunk, ends in _chunks(file):
            held += tokenizer.encode(chunk)
            while len(held) >= size:
                yield held[:size], goes_on
                goes_on = True
                del held[:size]
            if ends:
                if len(held) >= 2:
                    yield held, goes_on
                held, goes_on = [], False


def _chosen(
    pieces: Iterable[tuple[list[int], bool]], wanted: Callable[[int], bool]
) -> Iterator[tuple[list[int], bool]]:
    """Those that are wanted by their number."""
    before = False
    for number, (piece, goes_on) in enumerate(pieces):
        taken = wanted(number)
        if taken:
            yield piece, goes_on and before
        before = taken


def _shifted(pieces: Iterable[tuple[list[int], bool]], size: int, skip: int) -> Iterator[list[int]]:
    """The same text in windows that begin ``skip`` tokens later, where that leaves a whole one.

    What a shift leaves over behind whole windows is passed over.
    """
    held: list[int] = []
    left, whole = skip, False
    for piece, goes_on in pieces:
        if not goes_on:
            yield from _last(held, size, whole_only=whole and skip > 0)
            held, left, whole = [], skip, False
        held += piece
        gone = max(0, min(left, len(held) - size))
        del held[:gone]
        left -= gone
        while len(held) > size:
            yield held[:size]
            del held[:size]
            whole = True
    yield from _last(held, size, whole_only=whole and skip > 0)


def _last(held: list[int], size: int, *, whole_only: bool) -> Iterator[list[int]]:
    if held and (len(held) == size or not whole_only):
        yield held


def sentences(
    bundle: Bundle, path: Path, size: int, classes: Mapping[int, str] | None = None
) -> Iterator[Sample]:
    """Sentences of a .tsv (columns ``sentence`` and perhaps ``label``) or lines of a .txt.

    Each is cut after ``size`` tokens. A label is the number or the name of one of the ``classes``,
    upper or lower case; an empty one and -1 are none. Without ``classes`` labels are not read.
    Rows of token ids in a .npy file are sentences without labels.

    Raises:
        CalibrationError: a label is none of the classes; names its file and line.
    """
    if token_ids.holds_ids(path):
        yield from map(_sample, token_ids.sequences(path, spec_of(bundle).vocab_size, size))
        return
    tokenizer = _tokenizer(bundle)
    for file in _text_files(path, _SENTENCES):
        rows = _table(file, classes) if _is_table(file) else _lines(file)
        for text, label in rows:
            ids, types = tokenizer.encode_full(text)
            if ids:
                yield _sample(ids[:size], types[:size], label)


def check_labels(path: Path, classes: Mapping[int, str]) -> None:
    """CalibrationError where a label of any sentence there is none of a model's classes."""
    if token_ids.holds_ids(path):
        return
    for file in _text_files(path, _SENTENCES):
        for _ in _table(file, classes) if _is_table(file) else ():
            pass


_SENTENCES: Final = (".tsv", ".txt")


def _is_table(file: Path) -> bool:
    return file.suffix.lower() == ".tsv"


def _sample(ids: list[int], types: list[int] | None = None, label: int | None = None) -> Sample:
    kinds = torch.tensor(types) if types is not None and any(types) else None
    return Sample(ModelInput(tokens=torch.tensor(ids), token_types=kinds), label)


def _text_files(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    names = " or ".join(suffixes)
    if not path.is_dir():
        if path.suffix.lower() not in suffixes:
            raise CalibrationError(
                f"this model reads text: give a {names} file, or token ids ({token_ids.SUFFIX}), "
                f"not {path.name}"
            )
        return [path]
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
    if not found:
        more = ""
        if any(one.suffix.lower() == token_ids.SUFFIX for one in path.iterdir()):
            more = f"; token ids come as one {token_ids.SUFFIX} file: name it"
        raise CalibrationError(
            f"this model reads text, and there is no {names} file in {path}{more}"
        )
    if len(found) > FILES:
        raise CalibrationError(f"{path} holds {len(found)} text files; at most {FILES} are read")
    return found


def _chunks(file: Path) -> Iterator[tuple[str, bool]]:
    """The text in pieces of some ``CHUNK_CHARS`` that end with a line, and if a document ends."""
    with _open(file) as stream:
        held: list[str] = []
        size = 0
        for line in _checked_lines(file, stream):
            if line.strip() == END:
                yield "".join(held).strip(), True
                held, size = [], 0
                continue
            held.append(line)
            size += len(line)
            if size >= CHUNK_CHARS:
                yield "".join(held), False
                held, size = [], 0
        yield "".join(held), True


def _lines(file: Path) -> Iterator[tuple[str, int | None]]:
    with _open(file) as stream:
        for line in _checked_lines(file, stream):
            if text := line.strip():
                yield text, None


def _table(file: Path, classes: Mapping[int, str] | None) -> Iterator[tuple[str, int | None]]:
    known = _Labels(classes)
    with _open(file) as stream:
        lines = _checked_lines(file, stream)
        reader = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        if "sentence" not in (reader.fieldnames or ()):
            raise CalibrationError(
                f"{file.name} has no column called sentence; its first line must name the columns"
            )
        try:
            for row in reader:
                label = str(row.get("label") or "").strip()
                if text := (row["sentence"] or "").strip():
                    yield text, known.of(label, f"{file.name}, line {reader.line_num}")
        except csv.Error as error:
            raise CalibrationError(f"{file.name} is no table: {error}") from error


class _Labels:
    """Labels by the numbers and names of a model's classes; without these there are no labels."""

    def __init__(self, classes: Mapping[int, str] | None) -> None:
        self._classes = classes
        self._known: dict[str, int] = {}
        for number, name in (classes or {}).items():
            self._known.setdefault(name.strip().casefold(), number)
        self._known |= {str(number): number for number in classes or {}}

    def of(self, label: str, where: str) -> int | None:
        """None where there is no label; CalibrationError for one that is no class."""
        if self._classes is None or label in _NONE:
            return None
        plain = label.lstrip("0") or "0" if label.isdecimal() else label.casefold()
        if plain in self._known:
            return self._known[plain]
        count = len(self._classes)
        if label.isdecimal():
            known = f"the model has {count} classes, 0 to {count - 1}"
        else:
            names = [f"{name[:NAME_CHARS]!a}" for name in self._classes.values()]
            more = f" and {count - _NAMED} more" if count > _NAMED else ""
            known = (
                f"the model's classes are {', '.join(names[:_NAMED])}{more}, or 0 to {count - 1}"
            )
        raise CalibrationError(f"{where}: there is no class {label[:NAME_CHARS]!a}; {known}")


def _open(file: Path) -> TextIO:
    try:
        return file.open(encoding="utf-8", newline="\n")
    except OSError as error:
        raise CalibrationError(f"{file} cannot be read: {error.strerror}") from error


def _checked_lines(file: Path, stream: TextIO) -> Iterator[str]:
    try:
        while line := stream.readline(LINE_CHARS):
            yield line
    except (UnicodeDecodeError, OSError) as error:
        raise CalibrationError(f"{file.name} is no UTF-8 text ({error})") from error
