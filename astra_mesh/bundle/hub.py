"""Models from a hub that speaks Hugging Face's API: a revision is pinned, files compared."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from astra_mesh.bundle.configs import load_json, save_json
from astra_mesh.bundle.hashing import file_sha256
from astra_mesh.bundle.install import (
    check_room,
    explained,
    is_wanted,
    place_of,
    publish,
    staging_folder,
)
from astra_mesh.bundle.manifest import NAME as MANIFEST
from astra_mesh.bundle.specs import spec_called
from astra_mesh.bundle.store import Bundle, damaged_files, open_bundle
from astra_mesh.errors import BadBundleError, InputError, ModelError, UnknownModelError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_PART: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"  # as the hub checks names
_REPOSITORY: Final = re.compile(rf"(?!.*(?:--|\.\.)){_PART}/{_PART}")
_NOTE: Final = "source.json"
_OWN_FOLDER: Final = ".cache"  # of the library, inside the folder that it fills


@dataclass(frozen=True)
class Remote:
    """One revision of a repository.

    Attributes:
        revision: The commit, whatever branch or tag was asked for.
        files: The wanted ones: name -> bytes.
        hashes: SHA-256 of those whose hash the hub tells: the large ones.
    """

    repository: str
    revision: str
    files: dict[str, int]
    hashes: dict[str, str]

    @property
    def size_bytes(self) -> int:
        """All wanted files."""
        return sum(self.files.values())

    @property
    def source(self) -> dict[str, str]:
        """What ``source.json`` says of the folder that it is downloaded to."""
        return {"repository": self.repository, "revision": self.revision}


def look_up(repository: str, revision: str | None = None) -> Remote:
    """What a repository holds. Asks the hub.

    Raises:
        UnknownModelError: No such repository or revision.
        ModelError: The hub does not answer, or the repository has no safetensors.
    """
    if _REPOSITORY.fullmatch(repository) is None:
        raise InputError(f"{repository[:100]!a} is no repository: it has the form ORG/NAME")
    with _explained(repository):
        info = _api().model_info(repository, revision=revision, files_metadata=True)
    siblings = [one for one in info.siblings or [] if is_wanted(one.rfilename)]
    files = {one.rfilename: one.size or 0 for one in siblings}
    hashes = {one.rfilename: one.lfs.sha256 for one in siblings if one.lfs is not None}
    if "config.json" not in files:
        raise ModelError(f"{repository} has no config.json: it is no model of transformers")
    if not any(name.startswith("model") and name.endswith(".safetensors") for name in files):
        raise ModelError(
            f"{repository} has no model.safetensors: other formats can run programs when they are "
            "read; ask its makers for one"
        )
    return Remote(repository, str(info.sha), files, hashes)


def here(remote: Remote, name: str) -> Bundle | None:
    """The user's model of that name, if it is this revision with all its files, undamaged."""
    folder = place_of(name)
    if not _is_of(remote, folder):
        return None
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    is_whole = remote.files.keys() <= sizes.keys() and all(
        sizes[file] == remote.files[file] for file in remote.hashes
    )
    return open_bundle(folder) if is_whole and not _damaged(folder) else None


def _damaged(folder: Path) -> list[str]:
    """Files that are not as they came; what the note says was compared already."""
    return [file for file in damaged_files(folder) if file != _NOTE]


def _is_of(remote: Remote, folder: Path) -> bool:
    """Whether a folder came from this revision."""
    note = folder / _NOTE
    return note.is_file() and load_json(note) == remote.source


def _take_back(remote: Remote, name: str) -> None:
    """A model of this revision that is not whole gathers again, without its damaged files.

    Raises:
        BadBundleError: One of these is not of the hub.
    """
    folder = place_of(name)
    if not _is_of(remote, folder):
        return
    damaged = _damaged(folder)
    kept = [folder / file for file in remote.hashes.keys() - damaged]
    if any(path.exists() and path.stat().st_size != remote.files[path.name] for path in kept):
        return  # a person put another file there: it is not ours to take away
    if own := [file for file in damaged if file not in remote.files]:
        raise BadBundleError(
            f"{', '.join(own)} of {folder} is damaged, and {remote.repository} does not have it: "
            "put it there again, or delete it if it is a codebook"
        )
    partial = folder.with_name(f".{name}.partial")
    with explained(folder):
        for file in (*damaged, MANIFEST):
            (folder / file).unlink(missing_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        folder.rename(partial)


def staged(remote: Remote, name: str) -> Path:
    """The staging folder for a revision; what gathered of another one is removed."""
    _take_back(remote, name)
    folder = staging_folder(name)
    if not _is_of(remote, folder):
        with explained(folder):
            shutil.rmtree(folder)
            folder.mkdir()
        save_json(folder / _NOTE, remote.source)
    return folder


def download(remote: Remote, name: str) -> Bundle:
    """Get all files into the user's models; what is there already of an earlier try is kept.

    The config comes first, so that a model of a family that cannot run here costs no more.

    Raises:
        AstraMeshError: It did not come, is damaged, or cannot be used here.
    """
    folder = staged(remote, name)
    check_room(folder, remote.size_bytes - _gathered(folder))
    with _explained(remote.repository), explained(folder):
        _get(remote, "config.json", folder)
        spec_called(f"{remote.repository}/config.json", load_json(folder / "config.json"))
        for file in sorted(remote.files, key=lambda one: remote.files[one]):
            _get(remote, file, folder)
    hashes = remote.hashes.items()
    damaged = [file for file, expected in hashes if file_sha256(folder / file) != expected]
    for file in damaged:
        (folder / file).unlink()
    if damaged:
        names = ", ".join(damaged)
        raise BadBundleError(f"{names} of {remote.repository} came damaged; try again")
    shutil.rmtree(folder / _OWN_FOLDER, ignore_errors=True)
    return publish(folder, name)


def gathered_bytes(folder: Path) -> int:
    """Bytes that came so far, the file that is coming included."""
    try:
        return _gathered(folder)
    except OSError:  # a file was renamed while it was looked at
        return 0


def _gathered(folder: Path) -> int:
    if not folder.is_dir():
        return 0
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _api() -> HfApi:
    # The plain way by HTTP goes on where it was cut; the hub's own transport does not tell how far
    # it is.
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import HfApi

    if "HF_HUB_VERBOSITY" not in os.environ:  # it warns of each break; one that stays is our error
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    return HfApi()


def _get(remote: Remote, file: str, folder: Path) -> None:
    from huggingface_hub import hf_hub_download

    hf_hub_download(remote.repository, file, revision=remote.revision, local_dir=folder)


@contextmanager
def _explained(repository: str) -> Iterator[None]:
    """The library's errors as ours."""
    from huggingface_hub import errors

    # Of whichever HTTP library this version of the hub's library is built on.
    network: type[Exception] = getattr(errors, "HTTPError", OSError)

    try:
        yield
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{repository} wants to know who asks: agree on its page, then `hf auth login` or the "
            "variable HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UnknownModelError(
            f"the hub has no repository {repository}, or shows it to members only (HF_TOKEN)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UnknownModelError(f"{repository} has no such revision") from error
    except errors.OfflineModeIsEnabled as error:
        raise ModelError("HF_HUB_OFFLINE is set: unset it to ask the hub") from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, network) as error:
        why = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        raise ModelError(
            f"the hub does not give {repository}: {why}. Try again; what came stays"
        ) from error
