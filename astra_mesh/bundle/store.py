"""Finding model bundles on this device, and what a bundle is. Nothing here loads weights."""

from __future__ import annotations

import difflib
import hashlib
import logging
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import platformdirs

from astra_mesh import limits
from astra_mesh.bundle import manifest
from astra_mesh.bundle.configs import load_json, member
from astra_mesh.bundle.hashing import file_sha256
from astra_mesh.bundle.specs import spec_in
from astra_mesh.bundle.weights import weight_paths
from astra_mesh.errors import AstraMeshError, BadBundleError, UnknownModelError
from astra_mesh.wire.messages import ModelId

ENVIRONMENT: Final = "ASTRA_MESH_MODELS"
_DOMAIN: Final = b"astra-mesh-model/1\0"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_CODEBOOK: Final = re.compile(r"codebook(?:-(?P<suffix>[A-Za-z0-9._+-]+))?\.safetensors")
_CONFIG_BYTES: Final = 4 * limits.MIB  # 21,000 class names are about 1 MB
_LISTED: Final = 20  # names in an error message

_log = logging.getLogger(__name__)
_reported: set[str] = set()


@dataclass(frozen=True, eq=False)
class Bundle:
    """A model bundle: a folder whose config.json was read and whose weight files are there."""

    name: str
    path: Path
    config: dict[str, Any]
    weight_paths: tuple[Path, ...]  # in name order
    entries: dict[str, manifest.Entry] | None  # of the manifest; None: the bundle has none

    def has(self, name: str) -> bool:
        """Whether the bundle has a file of that name."""
        return member(self.path, name).exists()

    def file(self, name: str) -> Path:
        """The path of a file, after it was compared with the manifest (if there is one).

        Raises:
            BadBundleError: it leads out of the folder, or differs from the manifest.
        """
        path = member(self.path, name)
        if self.entries is not None and name in self.entries:
            manifest.check_file(path, self.entries[name])
        return path

    def optional_json(self, name: str) -> dict[str, Any]:
        """The object in one of the bundle's JSON files; empty where the file is absent."""
        return load_json(self.file(name)) if self.has(name) else {}

    @cached_property
    def model_id(self) -> ModelId:
        """SHA-256 over config and weights. Reads all weights once, then remembers their hashes.

        Raises:
            BadBundleError: a file differs from the manifest.
        """
        names = ("config.json", *(path.name for path in self.weight_paths))
        return id_of_hashes([file_sha256(self.file(name)) for name in names])

    @cached_property
    def codebook_paths(self) -> dict[str, Path]:
        """Codebook files by suffix: "" for codebook.safetensors, "x" for codebook-x.safetensors.

        Raises:
            BadBundleError: one differs from the manifest.
        """
        matches = (_CODEBOOK.fullmatch(p.name) for p in sorted(self.path.iterdir()))
        return {m["suffix"] or "": self.file(m.string) for m in matches if m}


def id_of_hashes(hashes: Sequence[str]) -> ModelId:
    """A model's id from the SHA-256 of its config and of its weight files, in name order."""
    total = hashlib.sha256(_DOMAIN)
    for one in hashes:
        total.update(bytes.fromhex(one))
    return ModelId(total.hexdigest())


def id_of_listed(hashes: Mapping[str, str]) -> ModelId:
    """The id of the model that a list of files is of, by the SHA-256 of each.

    Raises:
        ValueError: That is no list of hashes.
    """
    weights = sorted(n for n in hashes if n.startswith("model") and n.endswith(".safetensors"))
    return id_of_hashes([hashes.get("config.json", "0" * 64), *(hashes[name] for name in weights)])


def open_bundle(path: Path | str) -> Bundle:
    """Opens the bundle in a folder: reads config.json and manifest.json, checks names and sizes.

    Raises:
        UnknownModelError: there is no such folder, or it has no config.json.
        BadBundleError: a file is missing, cut short, or leads elsewhere.
        UnsupportedModelError: the weights are missing, and would be of no use.
    """
    folder = _existing_folder(path)
    if not os.path.lexists(folder / "config.json"):
        raise UnknownModelError(f"{str(folder)!a} holds no model: it has no config.json")
    config = load_json(member(folder, "config.json"), _CONFIG_BYTES)
    entries = manifest.read_manifest(folder)
    paths = _weight_paths(folder, config)
    for name, entry in (entries or {}).items():
        path = member(folder, name)
        if path.exists() or not _is_optional(name):
            manifest.check_size(path, entry)
    name = "".join(c if c.isprintable() else "?" for c in folder.name)[: limits.NAME_CHARS]
    return Bundle(name, folder, config, paths, entries)


def _weight_paths(folder: Path, config: dict[str, Any]) -> tuple[Path, ...]:
    """As :func:`weight_paths`; but nobody should fetch the weights of a model that cannot run."""
    try:
        return weight_paths(folder)
    except BadBundleError:
        with suppress(BadBundleError):
            spec_in(folder, config)
        raise


def _is_optional(name: str) -> bool:
    """Whether a model is whole without this file, so that a person may delete it."""
    return name == "quality.json" or _CODEBOOK.fullmatch(name) is not None


def codebook_name(codec: str, suffix: str) -> str:
    """What a person calls a codebook: its codec, with the file's suffix where that tells more."""
    if not suffix or suffix == codec:
        return codec
    return suffix if suffix.startswith(f"{codec}-") else f"{codec}-{suffix}"


def find_bundle(name_or_path: str) -> Bundle:
    """The bundle of a folder (an argument with a slash, or a folder with config.json) or of a name.

    For what the person at this device types. Names that come from another device go through
    :func:`find_named`, which opens no folder outside the model folders.

    Raises:
        UnknownModelError: neither; says what there is and the closest names.
        BadBundleError: it is there but cannot be used.
    """
    separators = {"/", os.sep}
    is_path = bool(separators & set(name_or_path))
    if not is_path and len(name_or_path) <= limits.NAME_CHARS and name_or_path.isprintable():
        is_path = (Path(name_or_path) / "config.json").is_file()
    return open_bundle(name_or_path) if is_path else find_named(name_or_path)


def find_named(name: str) -> Bundle:
    """The bundle of that name in the model folders (the first folder that has it counts).

    Raises:
        UnknownModelError, BadBundleError: as :func:`find_bundle`.
    """
    path = folders_by_name().get(name)
    if path is None:
        raise UnknownModelError(_unknown_text(name))
    return open_bundle(path)


def copies_of(bundle: Bundle) -> list[Bundle]:
    """Other folders with the same config and weights, by name. Reads those of the same sizes."""
    found = []
    for _, path in sorted(folders_by_name().items()):
        with suppress(AstraMeshError, OSError):
            other = open_bundle(path)
            alike = other.path != bundle.path and _sizes(other) == _sizes(bundle)
            if alike and other.model_id == bundle.model_id:
                found.append(other)
    return found


def _sizes(bundle: Bundle) -> list[int]:
    files = (bundle.path / "config.json", *bundle.weight_paths)
    return [path.stat().st_size for path in files]


def list_bundles() -> list[Bundle]:
    """All usable bundles of the model folders, by name; a broken one is logged once instead."""
    found = []
    for _, path in sorted(folders_by_name().items()):
        try:
            found.append(open_bundle(path))
        except AstraMeshError as error:
            if error.message not in _reported:
                _reported.add(error.message)
                _log.warning("a model bundle cannot be used: %s", error.message)
    return found


def model_folders() -> list[Path]:
    """Where names are looked up: $ASTRA_MESH_MODELS, the user's folder, the shipped models."""
    chosen = [Path(p).expanduser() for p in os.environ.get(ENVIRONMENT, "").split(os.pathsep) if p]
    return [*chosen, user_models_path(), *_shipped()]


def user_models_path() -> Path:
    """Where the person's own models lie."""
    return Path(platformdirs.user_data_path("astra-mesh")) / "models"


def verify(bundle: Bundle) -> list[str]:
    """Compares every file of the bundle with its manifest; the names of the files checked.

    Raises:
        BadBundleError: a file differs, is missing or is not listed, or there is no manifest.
    """
    return manifest.check_all(bundle.path)


def damaged_files(folder: Path) -> list[str]:
    """The files of a bundle that are altered, or missing though it needs them, in order. Reads all.

    Raises:
        BadBundleError: the manifest is malformed.
    """
    damaged = []
    for name, entry in sorted((manifest.read_manifest(folder) or {}).items()):
        path = member(folder, name)
        if not path.exists() and _is_optional(name):
            continue
        try:
            manifest.check_file(path, entry)
        except BadBundleError:
            damaged.append(name)
    return damaged


def take_new(bundle: Bundle) -> list[str]:
    """Takes files that came to a bundle into its manifest; their names.

    Raises:
        BadBundleError: a file that it lists differs or is missing.
        ModelError: it cannot be written.
    """
    return manifest.take_new(bundle.path)


def _existing_folder(path: Path | str) -> Path:
    typed = f"{str(path)[-200:]!a}"
    try:
        folder = Path(path).expanduser()
        if folder.is_dir():
            return folder.resolve()
        if folder.exists():
            raise UnknownModelError(
                f"{typed} is a file, and a model is a folder with config.json and safetensors "
                "files; `astra-mesh models add` makes one of a GGUF file"
            )
    except (OSError, RuntimeError, ValueError):  # too long, no such home, not encodable
        pass
    raise UnknownModelError(f"there is no folder {typed}")


def _shipped() -> list[Path]:
    """The models inside an installed package, or beside it in a source checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "_shipped"
    if inside.is_dir():
        return [inside]
    return [package.parent / "models"] if (package.parent / "pyproject.toml").is_file() else []


def folders_by_name() -> dict[str, Path]:
    """The folders of models by name, whether they can be used or not."""
    found: dict[str, Path] = {}
    for folder in model_folders():
        try:
            children = sorted(folder.iterdir()) if folder.is_dir() else []
        except OSError as error:
            _log.warning("cannot list the model folder %s: %s", folder, error.strerror)
            continue
        for path in children:
            usable = len(path.name) <= limits.NAME_CHARS and _NAME.fullmatch(path.name)
            if usable and (path / "config.json").is_file():
                found.setdefault(path.name, path)
    return found


def _unknown_text(name: str) -> str:
    names = sorted(folders_by_name())
    text = f"no model called {name[: limits.NAME_CHARS]!a} on this device"
    close = difflib.get_close_matches(name[: limits.NAME_CHARS], names, n=3, cutoff=0.5)
    if close:
        text += f"; did you mean {' or '.join(close)}?"
    if not names:
        return f"{text}; there are no models yet: set {ENVIRONMENT} to a folder that holds some"
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    begin = " Models" if close else "; models"
    return f"{text}{begin} here: {', '.join(names[:_LISTED])}{more}"
