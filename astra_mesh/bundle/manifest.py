"""manifest.json: SHA-256 and size of each file of a bundle that a program reads."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from astra_mesh.bundle.configs import bad_file, file_size, load_json, member, save_json
from astra_mesh.bundle.hashing import file_sha256
from astra_mesh.errors import BadBundleError

NAME: Final = "manifest.json"
FORMAT: Final = "astra-mesh-manifest/1"
_BYTES: Final = 1024 * 1024  # 150 bytes a file: some 7,000 shards
_SUFFIXES: Final = (".json", ".safetensors")  # all that is ever read; a card may change at will


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the manifest says of one file."""

    sha256: str
    size: int


def read_manifest(folder: Path) -> dict[str, Entry] | None:
    """The manifest by file name; None where the bundle has none.

    Raises:
        BadBundleError: it is malformed, or names a file outside the folder.
    """
    path = member(folder, NAME)
    if not path.exists():
        return None
    content = load_json(path, _BYTES)
    if content.get("format") != FORMAT:
        raise bad_file(path, f"its format is not {FORMAT!r}", "update astra-mesh")
    try:
        entries = msgspec.convert(content.get("files"), dict[str, Entry])
    except msgspec.ValidationError as error:
        raise bad_file(path, f"is malformed ({error})") from error
    for name in entries:
        member(folder, name)
    return entries


def write_manifest(path: Path | str) -> None:
    """Hashes the files of a bundle's folder and writes its manifest.json (atomically).

    Raises:
        BadBundleError: a file is a link that leads out of the folder.
        ModelError: the manifest cannot be written.
    """
    folder = Path(path)
    files: dict[str, Mapping[str, Any]] = {}
    for name in listed_names(folder):
        file = member(folder, name)
        files[name] = {"sha256": file_sha256(file), "size": file_size(file)}
    save_json(folder / NAME, {"format": FORMAT, "files": files})


def listed_names(folder: Path) -> list[str]:
    """Names of the files that a manifest of the folder lists, in order."""
    return sorted(
        p.name
        for p in folder.iterdir()
        if p.name.endswith(_SUFFIXES) and p.name != NAME and not p.name.startswith(".")
    )


def check_size(path: Path, entry: Entry) -> None:
    """Compares the size only, without reading the file; BadBundleError on a difference."""
    size = file_size(path)
    if size != entry.size:
        what = "an incomplete copy" if size < entry.size else "altered"
        raise bad_file(path, f"has {size} bytes, the manifest says {entry.size} ({what})")


def check_file(path: Path, entry: Entry) -> None:
    """Compares size and SHA-256; BadBundleError on a difference."""
    check_size(path, entry)
    if file_sha256(path) != entry.sha256.lower():
        raise bad_file(path, "is not the file that the manifest lists (its SHA-256 differs)")


def check_all(folder: Path) -> list[str]:
    """Compares every file with the manifest; the names that were checked.

    Raises:
        BadBundleError: there is no manifest, a file differs or is missing, or one is not listed.
    """
    entries, command = read_manifest(folder), _command(folder)
    if entries is None:
        raise BadBundleError(
            f"{folder.name}: no {NAME}, so nothing to compare with; {command} writes one of the "
            "files as they are"
        )
    for name, entry in sorted(entries.items()):
        check_file(member(folder, name), entry)
    for name in listed_names(folder):
        if name not in entries:
            remedy = f"{command} takes it into the manifest, or delete it"
            raise bad_file(folder / name, "is not in the manifest", remedy)
    return sorted(entries)


def _command(folder: Path) -> str:
    """What a person types to take over new files."""
    return f"`astra-mesh models verify {shlex.quote(str(folder))} --take-new`"


def take_new(folder: Path) -> list[str]:
    """Lists the files that the manifest does not, as they are now; their names.

    Raises:
        BadBundleError: a file that it lists differs or is missing.
        ModelError: it cannot be written.
    """
    entries = read_manifest(folder) or {}
    for name, entry in sorted(entries.items()):
        check_file(member(folder, name), entry)
    new = [name for name in listed_names(folder) if name not in entries]
    if new:
        write_manifest(folder)
    return new
