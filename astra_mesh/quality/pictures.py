"""Picture data: a folder or a .zip of image files, with their classes where they are known."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import re
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Final

from PIL import Image

from astra_mesh.bundle import Bundle
from astra_mesh.bundle.image import ImageProcessor, decode_image
from astra_mesh.errors import BadImageError, CalibrationError
from astra_mesh.families import ModelInput
from astra_mesh.limits import IMAGE_BYTES, NAME_CHARS
from astra_mesh.quality.sample import Sample

FILES: Final = 500_000  # names in one folder or archive: some 100 MB
LABELS_BYTES: Final = 64 << 20
SUFFIXES: Final = (".jpg", ".jpeg", ".png")
LABELS: Final = "labels.csv"
# Columns of labels.csv that may name the class, best first: an index or a name of the model's.
COLUMNS: Final = ("imagenet1k_index", "class_index", "label", "class", "name")

NO_LABEL: Final = "-1"
_DIGITS: Final = 18  # of a class's number
_NUMBER: Final = re.compile(r"[+-]?\d+")

_log = logging.getLogger(__name__)
Read = Callable[[str], bytes]


def pictures(
    bundle: Bundle, path: Path, view: int = 0, classes: Mapping[int, str] | None = None
) -> Iterator[Sample]:
    """Pictures in an order that takes from all subfolders alike; unreadable ones are left out.

    Labels are the ``classes``, by number and name; without these what the config says of them.
    View 0 shows them as they are; every other one shows another piece of each, perhaps mirrored.

    Raises:
        CalibrationError: there are none; or a number in labels.csv is none of the ``classes``, and
            nothing else says that picture's class.
    """
    processor = ImageProcessor.from_bundle(bundle)
    with _opened(path) as (names, read):
        images = [name for name in names if _is_image(name)]
        if not images:
            raise CalibrationError(f"there is no JPEG or PNG picture in {path}")
        known = bundle.config.get("id2label") if classes is None else dict(classes)
        labels = _Classes(known, names, read, strict=classes is not None)
        broken = 0
        for name in interleaved(images):
            try:
                image = decode_image(read(name))
                pixels = processor.process(seen(image, name, view) if view else image)
            except BadImageError as error:
                broken += 1
                _log.warning("%s is left out: %s", name, error.message)
                continue
            yield Sample(ModelInput(pixels=pixels), labels.of(name))
        if broken == len(images):
            raise CalibrationError(f"none of the {broken} pictures in {path} can be read")


def check_labels(path: Path, classes: Mapping[int, str]) -> None:
    """CalibrationError where a picture's number in labels.csv is none of a model's classes."""
    with _opened(path) as (names, read):
        _Classes(dict(classes), names, read, strict=True)


def seen(image: Image.Image, name: str, view: int) -> Image.Image:
    """A piece of 70 to 100 % of an image's width and height, mirrored or not; fixed by name and
    view."""
    digest = hashlib.sha256(f"{view} {name}".encode("utf-8", "replace")).digest()
    share, x, y, flip = (int.from_bytes(digest[i : i + 4], "big") / 2**32 for i in (0, 4, 8, 12))
    width = max(1, round(image.width * (0.7 + 0.3 * share)))
    height = max(1, round(image.height * (0.7 + 0.3 * share)))
    left, top = round(x * (image.width - width)), round(y * (image.height - height))
    piece = image.crop((left, top, left + width, top + height))
    return piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip < 0.5 else piece


def interleaved(names: Iterable[str]) -> list[str]:
    """Names one from each folder in turn; within a folder by a hash, so that any prefix is mixed.

    (Files are often named by class.)
    """
    folders: dict[str, list[str]] = defaultdict(list)
    for name in sorted(
        names, key=lambda one: hashlib.sha256(one.encode("utf-8", "replace")).digest()
    ):
        folders[str(PurePosixPath(name).parent)].append(name)
    queues = [folders[key] for key in sorted(folders)]
    longest = max((len(queue) for queue in queues), default=0)
    return [queue[i] for i in range(longest) for queue in queues if i < len(queue)]


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return not hidden and path.suffix.lower() in SUFFIXES


@contextmanager
def _opened(path: Path) -> Iterator[tuple[list[str], Read]]:
    """The names in a folder or archive, and how to read one (BadImageError if that fails)."""
    if path.is_dir():
        yield _limited([p.relative_to(path).as_posix() for p in _walk(path)], path), _folder(path)
        return
    if path.suffix.lower() != ".zip":
        raise CalibrationError(f"this model reads pictures: give a folder or .zip, not {path.name}")
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise CalibrationError(f"{path.name} is no zip archive ({error})") from error
    with archive:
        yield (
            _limited([i.filename for i in archive.infolist() if not i.is_dir()], path),
            _zip(archive),
        )


def _walk(path: Path) -> Iterator[Path]:
    for count, one in enumerate(path.rglob("*")):
        if count > 2 * FILES:
            raise CalibrationError(f"{path} holds too many files; give a folder of pictures only")
        if one.is_file():
            yield one


def _limited(names: list[str], path: Path) -> list[str]:
    if len(names) > FILES:
        raise CalibrationError(f"{path} holds {len(names)} files; at most {FILES} are read")
    return names


def _folder(path: Path) -> Read:
    def read(name: str) -> bytes:
        try:
            with (path / name).open("rb") as stream:
                return stream.read(_limit(name) + 1)
        except OSError as error:
            raise BadImageError(f"it cannot be read: {error.strerror}") from error

    return read


def _zip(archive: zipfile.ZipFile) -> Read:
    def read(name: str) -> bytes:
        try:
            with archive.open(name) as stream:
                return stream.read(_limit(name) + 1)
        except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
            raise BadImageError(f"it cannot be unpacked: {error}") from error

    return read


def _limit(name: str) -> int:
    return LABELS_BYTES if name == LABELS else IMAGE_BYTES


class _Classes:
    """Class index of a picture: from labels.csv if there is one, else its folder's name.

    ``strict``: a number there that is none of the classes is an error, unless something else
    says the picture's class.
    """

    def __init__(self, id2label: Any, names: list[str], read: Read, *, strict: bool) -> None:
        self._by_name: dict[str, int] = {}
        self._known: set[int] = set()
        for key, name in (id2label if isinstance(id2label, dict) else {}).items():
            if str(key).isdecimal():
                self._known.add(int(key))
                self._by_name.setdefault(_plain(str(name)), int(key))
        self._strict, self._files = strict, set(names)
        self._by_file = self._table(read(LABELS)) if LABELS in names else {}

    def of(self, name: str) -> int | None:
        """None where nothing says it."""
        if name in self._by_file:
            return self._by_file[name]
        return self._of_folder(name)

    def _of_folder(self, name: str) -> int | None:
        return self._by_name.get(_plain(PurePosixPath(name).parent.name))

    def _table(self, data: bytes) -> dict[str, int]:
        found: dict[str, int] = {}
        if len(data) > LABELS_BYTES:
            raise CalibrationError(f"{LABELS} has more than {LABELS_BYTES} bytes")
        try:
            reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig")))
            for row in reader:
                file, index = row.get("file"), self._index(row)
                if file and index is not None:
                    found[file] = index
                elif self._strict and file in self._files and self._of_folder(file) is None:
                    self._check(row, reader.line_num)
        except (UnicodeDecodeError, csv.Error) as error:
            raise CalibrationError(f"{LABELS} is no table: {error}") from error
        return found

    def _index(self, row: Mapping[str, Any]) -> int | None:
        for value in _values(row):
            if value.isdecimal() and _int(value) in self._known:
                return _int(value)
            if _plain(value) in self._by_name:
                return self._by_name[_plain(value)]
        return None

    def _check(self, row: Mapping[str, Any], line: int) -> None:
        """CalibrationError where a row of no known class has a number."""
        for value in _values(row):
            if _NUMBER.fullmatch(value) and value != NO_LABEL:
                count = len(self._known)
                raise CalibrationError(
                    f"{LABELS}, line {line}: there is no class {value[:NAME_CHARS]!a}; the model "
                    f"has {count} classes, 0 to {count - 1}"
                )


def _values(row: Mapping[str, Any]) -> list[str]:
    """What may name the class, best first."""
    return [str(row.get(column) or "").strip() for column in COLUMNS]


def _int(digits: str) -> int:
    """Python refuses to read very long ones; no class has such a number."""
    return int(digits.lstrip("0")[:_DIGITS] or "0")


def _plain(name: str) -> str:
    """A class name without what spellings differ in."""
    return re.sub(r"[^a-z0-9]", "", name.split(",", maxsplit=1)[0].lower())
