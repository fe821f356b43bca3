"""Putting a model into the user's folder: gathered beside it, checked, then renamed into place.

What was gathered stays if it ends early (``.NAME.partial``), so that the next try goes on with it.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Final

from astra_mesh.bundle.configs import save_json
from astra_mesh.bundle.header import read_header
from astra_mesh.bundle.manifest import check_all, check_file, read_manifest, write_manifest
from astra_mesh.bundle.specs import spec_of
from astra_mesh.bundle.store import Bundle, folders_by_name, open_bundle, user_models_path
from astra_mesh.errors import BadBundleError, InputError, ModelError

if TYPE_CHECKING:
    from astra_mesh.bundle.gguf import GgufFile

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_SPARE_BYTES: Final = 64 * 1024 * 1024  # left free for everything else on the device
# All that is read of a bundle; weights in other formats, pictures and code stay where they are.
_WANTED: Final = re.compile(
    r"config\.json|generation_config\.json|quality\.json|source\.json"
    r"|model(?:-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
    r"|codebook(?:-[A-Za-z0-9._+-]+)?\.safetensors"
    r"|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|chat_template\.jinja"
    r"|preprocessor_config\.json|README\.md"
)


def is_wanted(name: str) -> bool:
    """Whether a file of that name belongs into a bundle."""
    return _WANTED.fullmatch(name) is not None


def place_of(name: str) -> Path:
    """The folder of the user's model of that name, if there is one; InputError for no name."""
    if _NAME.fullmatch(name) is None:
        raise InputError(
            f"{name[:100]!a} is no name for a model: letters, digits and . _ + - up to 64, the "
            "first a letter or digit; choose one with --name"
        )
    return user_models_path() / name


def staging_folder(name: str) -> Path:
    """Where the files of a new model gather; made if it is not there.

    Raises:
        InputError: No model can have this name, or there is one of this name, in whatever folder.
        ModelError: The folder cannot be made.
    """
    target = place_of(name)
    if target.exists():
        raise InputError(
            f"there is a model {name} in {target.parent}: delete that folder first, or choose "
            "another --name"
        )
    if (other := folders_by_name().get(name)) is not None:
        raise InputError(
            f"there is a model {name} in {other.parent}, and only one of the two could be used by "
            "this name: choose another --name"
        )
    folder = target.with_name(f".{name}.partial")
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def check_room(folder: Path, size: int) -> None:
    """ModelError if so many bytes do not fit beside ``folder``."""
    free = shutil.disk_usage(folder).free
    if size + _SPARE_BYTES > free:
        raise ModelError(
            f"the model needs {size / 1e6:.0f} MB, and {_SPARE_BYTES / 1e6:.0f} MB are to stay "
            f"free for all else, but the disk of {folder.parent} has only {free / 1e6:.0f} MB "
            "free: free some, or put models elsewhere with XDG_DATA_HOME"
        )


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Errors of the file system as sentences."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            text = f"the disk of {folder} is full: free some space and try again, it goes on there"
        else:
            text = f"{folder} cannot be written: {error.strerror or error}"
        raise ModelError(text) from error


def check_usable(folder: Path) -> Bundle:
    """The bundle in a folder, if this program can run it; weights are not read, only their headers.

    Raises:
        AstraMeshError: It cannot be used, and why.
    """
    bundle = open_bundle(folder)
    spec_of(bundle)
    for path in bundle.weight_paths:
        read_header(path)
    return bundle


def publish(folder: Path, name: str) -> Bundle:
    """Check what gathered in a staging folder, its weights for NaN and Inf too, write its manifest,
    and give it its name. 500 MB take 0.1 s where they have just been written, else as long as the
    disk takes; nothing is copied into memory.

    Raises:
        AstraMeshError: It cannot be used; the folder stays.
    """
    from astra_mesh.bundle.tensors import load_weights

    load_weights(replace(check_usable(folder), name=name))
    with explained(folder):
        write_manifest(folder)
        target = folder.with_name(name)
        os.rename(folder, target)  # noqa: PTH104 - Path.replace would take an empty folder's place
    return open_bundle(target)


def add_gguf(source: GgufFile, name: str) -> Bundle:
    """Write the model of a GGUF file into the user's models. A ``tokenizer.json`` beside the file
    takes the place of the one that the file describes.

    Raises:
        AstraMeshError: It cannot be used, or there is one of this name; nothing is left of it.
    """
    from astra_mesh.bundle.gguf_text import make_tokenizer, settings_of

    folder = staging_folder(name)
    try:
        check_room(folder, source.size_bytes)
        with explained(folder):
            beside = source.path.with_name("tokenizer.json")
            if beside.exists():
                shutil.copyfile(beside, folder / beside.name)
            else:
                tokenizer = make_tokenizer(source.fields, source.path)
                (folder / "tokenizer.json").write_text(tokenizer.to_str(), "utf-8")
            save_json(folder / "tokenizer_config.json", settings_of(source.fields))
            source.write(folder)
        return publish(folder, name)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def mend(source: Path, folder: Path, damaged: Collection[str]) -> list[str]:
    """Put damaged files of a model anew from another folder with the same model, those that are
    there as the damaged folder's manifest lists them; their names.

    Raises:
        BadBundleError: Not all of them are: those that are have been put.
        ModelError: The folder cannot be written.
    """
    entries, put = read_manifest(folder) or {}, []
    for name in sorted(damaged):
        with suppress(BadBundleError):
            check_file(source / name, entries[name])
            beside = folder / f".{name}.partial"
            with explained(folder):
                shutil.copyfile(source / name, beside)
                beside.replace(folder / name)
            put.append(name)
    if rest := sorted({*damaged} - {*put}):
        raise BadBundleError(
            f"{', '.join(rest)} of {folder} stays damaged: {source} has no such file as its "
            f"manifest lists it; `astra-mesh models pull {quote(folder.name)}` gets it from peers "
            "that have the model"
        )
    return put


def add(source: Path, name: str) -> Bundle:
    """Copy a bundle's folder to the user's models. Where it has a manifest, every file must be as
    that says: the copy gets a manifest of its own, which would sign off an altered one.

    Raises:
        AstraMeshError: It cannot be used, or there is one of this name; the copy is removed.
    """
    bundle = check_usable(source)
    if read_manifest(bundle.path) is not None:
        check_all(bundle.path)
    files = [path for path in sorted(bundle.path.iterdir()) if is_wanted(path.name)]
    folder = staging_folder(name)
    try:
        check_room(folder, sum(path.stat().st_size for path in files))
        with explained(folder):
            for path in files:
                shutil.copyfile(path, folder / path.name)
        return publish(folder, name)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
