"""Getting the damaged files of a model that is here from the peers that hold it.

The folder's manifest says which model it should be, and which files are not as they were.
"""

from __future__ import annotations

import shutil
from collections.abc import Set
from pathlib import Path

from astra_mesh.bundle import Bundle, open_bundle
from astra_mesh.bundle.install import explained
from astra_mesh.bundle.manifest import read_manifest, write_manifest
from astra_mesh.bundle.store import damaged_files, folders_by_name, id_of_listed, user_models_path
from astra_mesh.client.fetch import Fetch
from astra_mesh.client.fetch_codebooks import put
from astra_mesh.client.holders import Holders
from astra_mesh.errors import AstraMeshError, BadBundleError
from astra_mesh.peer.share import Listing, SharedFile
from astra_mesh.wire.messages import ModelId


def damage_of(name: str, model: ModelId) -> tuple[Path, frozenset[str]] | None:
    """The folder of that name and its files that are missing or altered, if by its manifest it is
    that model and there are any. Reads all files."""
    folder = folders_by_name().get(name, user_models_path() / name)
    try:
        entries = read_manifest(folder)
        hashes = {file: entry.sha256 for file, entry in (entries or {}).items()}
        if not entries or id_of_listed(hashes) != model:
            return None
        damaged = damaged_files(folder)
    except (AstraMeshError, OSError, ValueError):  # it says nothing of itself that can be relied on
        return None
    return (folder, frozenset(damaged)) if damaged else None


class Repair(Fetch):
    """The damaged files of one model on their way: :meth:`look`, then :meth:`run`.

    Args:
        folder: Of the model.
        damaged: The names of those files.
        holders: Who has the model.
    """

    def __init__(self, folder: Path, damaged: Set[str], holders: Holders) -> None:
        super().__init__(holders, folder.name)
        self._target, self.damaged = folder, damaged

    def wanted(self, listing: Listing) -> list[SharedFile]:
        """Those of the damaged files that the others have."""
        return [file for file in listing.files if file.name in self.damaged]

    def staging(self) -> Path:
        """Beside the person's models."""
        return self.beside_models("repair")

    def publish(self) -> Bundle:
        """Put what came into the model's folder.

        Raises:
            BadBundleError: Another file is damaged, which the others do not have.
            ModelError: The folder cannot be written.
        """
        came = [path for path in sorted(self._folder.iterdir()) if path.name in self.damaged]
        with explained(self._target):
            for path in came:
                put(path, self._target / path.name)
            shutil.rmtree(self._folder, ignore_errors=True)
        if rest := sorted(self.damaged - {path.name for path in came}):
            raise BadBundleError(
                f"{', '.join(rest)} of {self._target} stays damaged, and "
                f"{', '.join(one.name for one in self.holders.peers)} does not have it: put it "
                "there again, or delete it if it is a codebook"
            )
        with explained(self._target):
            write_manifest(self._target)
        return open_bundle(self._target)
