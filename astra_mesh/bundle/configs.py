"""Files of a bundle: plain names only, read with a cap, written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from astra_mesh import limits
from astra_mesh.errors import BadBundleError, ModelError

_COPY_AGAIN = "copy the bundle again from where it came"
_PULL_AGAIN = (
    f"{_COPY_AGAIN}, or get what is damaged from another peer: `astra-mesh models pull {{name}}`"
)
_NAME_BYTES = 255  # the longest file name that common file systems hold


def shown(path: Path) -> str:
    """A file as messages name it: its folder and name, without the rest of the path."""
    return f"{path.parent.name}/{path.name}"


def no_room(error: Exception) -> bool:
    """Whether a disk, or what one may use of it, is full; libraries say so in words only."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return f"os error {errno.ENOSPC}" in str(error)


def full_disk(path: Path) -> ModelError:
    """The error where a file cannot be written for want of room: its whole path, to find the disk.

    What was there before is still there.
    """
    return ModelError(f"no space left to write {path.absolute()}: make room, then try again")


def bad_file(path: Path, problem: str, remedy: str = "") -> BadBundleError:
    """The error for a file that cannot be used: which, why, and what to do.

    Args:
        path: of the file.
        problem: what is said of the file ("is empty"), or of a part of it ("its header ...").
        remedy: what to do; "" to copy it again.
    """
    return BadBundleError(f"{about_file(path, problem)}; {remedy or again(path)}")


def again(path: Path) -> str:
    """What to do about a file that is not as it came."""
    name = path.parent.name
    return _COPY_AGAIN if name.startswith(".") else _PULL_AGAIN.format(name=name)


def about_file(path: Path, problem: str) -> str:
    """The first half of such a sentence."""
    return f"{shown(path)}{':' if problem.startswith('its ') else ''} {problem}"


def read_file(path: Path, limit_bytes: int) -> bytes:
    """The content of a regular file of at most ``limit_bytes``.

    Raises:
        BadBundleError: it is missing, unreadable, no regular file (a pipe would block), or larger.
    """
    size = file_size(path)
    if size > limit_bytes:
        raise bad_file(path, f"has {size} bytes, more than the {limit_bytes} allowed")
    try:
        with path.open("rb") as stream:
            data = stream.read(limit_bytes + 1)
    except OSError as error:
        raise bad_file(
            path, f"cannot be read ({error.strerror})", "check its permissions"
        ) from error
    if len(data) > limit_bytes:
        raise bad_file(path, f"grew past the {limit_bytes} bytes allowed while it was read")
    return data


def file_size(path: Path) -> int:
    """Bytes of a regular file; BadBundleError where there is none."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise bad_file(path, "is missing or cannot be reached") from error
    if not stat.S_ISREG(status.st_mode):
        raise bad_file(path, "is not a regular file")
    return status.st_size


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object without duplicate keys: two readers could disagree on which one counts."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("has a key twice in one object")
    return found


def parse_object(data: bytes) -> dict[str, Any]:
    """The JSON object in ``data`` (UTF-8); ValueError says what is wrong with it."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"is not valid JSON (line {error.lineno}: {error.msg})") from error
    except RecursionError as error:
        raise ValueError("nests too deep") from error
    if not isinstance(value, dict):
        raise ValueError(f"holds a JSON {type(value).__name__} where an object is needed")
    return value


def load_json(path: Path, limit_bytes: int = limits.JSON_BYTES) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        BadBundleError: missing, too large, not UTF-8, no JSON, or no object.
    """
    try:
        return parse_object(read_file(path, limit_bytes))
    except ValueError as error:
        raise bad_file(path, str(error)) from error


def save_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON object atomically, keys in the order given."""
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a path to write; on success it becomes ``path``, otherwise the old file stays.

    The new file is on the disk (fsync) before the old one goes, and has the permissions that the
    old one had (or a new file gets by default).

    Raises:
        ModelError: the operating system refused (disk full, no permission).
    """
    folder: Path | None = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=".saving-", dir=path.parent))
        part = folder / path.name
        part.touch()
        mode = stat.S_IMODE((path if path.exists() else part).stat().st_mode)
        yield part
        part.chmod(mode)
        _sync(part)
        part.replace(path)
        _sync(path.parent)
    except OSError as error:
        if no_room(error):
            raise full_disk(path) from error
        reason = error.strerror or str(error)
        raise ModelError(f"cannot write {shown(path)} ({reason}); nothing was changed") from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _sync(path: Path) -> None:
    """Waits until a file or folder is on the disk; Windows cannot do that for folders."""
    if os.name == "nt" and path.is_dir():
        return
    flags = os.O_RDWR if path.is_file() else os.O_RDONLY
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def member(folder: Path, name: str) -> Path:
    """The path of the file called ``name`` in a bundle's folder; the file need not exist.

    Raises:
        BadBundleError: the name leads elsewhere (a path, a drive, ``..``), or is a link that does.
    """
    plain = name.isprintable() and not set(name) & set('/\\:*?"<>|')
    if not plain or name.strip(". ") == "" or len(name.encode()) > _NAME_BYTES:
        text = ascii(name[: limits.NAME_CHARS])
        raise BadBundleError(f"{folder.name}: {text} is not a plain file name; {_COPY_AGAIN}")
    path = folder / name
    if path.is_symlink() and not _stays_in(folder, path):
        remedy = "put a copy of the file itself into the folder"
        raise bad_file(path, "is a link that leads out of the bundle", remedy)
    return path


def _stays_in(folder: Path, link: Path) -> bool:
    try:
        return link.resolve().parent == folder.resolve()
    except (OSError, RuntimeError):  # a loop of links
        return False
