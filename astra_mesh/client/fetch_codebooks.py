"""Getting the codebooks of a model that is here already from the peers that have them.

A codebook's id is a hash of what it holds, and peers offer their ids; what comes must be one that
was offered, of this very model.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from astra_mesh.bundle import Bundle, list_bundles, open_bundle
from astra_mesh.bundle.install import explained
from astra_mesh.bundle.manifest import write_manifest
from astra_mesh.client.fetch import Fetch
from astra_mesh.client.holders import Holder, Holders, place_of
from astra_mesh.errors import AstraMeshError, BadBundleError, CodebookError
from astra_mesh.mesh.connect import Address, Secure
from astra_mesh.peer.share import Listing, SharedFile
from astra_mesh.quant.codebook import load_codebook
from astra_mesh.wire.messages import CodebookId, ModelId, PeerInfo

_QUALITY: Final = "quality.json"


def bundle_here(model: ModelId) -> Bundle | None:
    """The model on this device, whatever it is called; reads the weights of all that are new."""
    for bundle in list_bundles():
        try:
            if bundle.model_id == model:
                return bundle
        except AstraMeshError:  # a damaged one is no match
            continue
    return None


def codebooks_here(bundle: Bundle) -> dict[CodebookId, Path]:
    """The usable codebooks of a model of this device."""
    found = {}
    for path in bundle.codebook_paths.values():
        try:
            found[load_codebook(path, bundle.model_id).id] = path
        except CodebookError:  # as good as none
            continue
    return found


def lacking(
    bundle: Bundle, peers: Sequence[PeerInfo], asked: Address, secure: Secure | None = None
) -> tuple[frozenset[CodebookId], Holders]:
    """The codebooks that other peers have and this device has not, and who has them.

    Args:
        bundle: Of this device.
        peers: The mesh as the peer at ``asked`` sees it.
        asked: Where that one was asked.
        secure: How members are dialled.
    """
    known, wanted = codebooks_here(bundle).keys(), set[CodebookId]()
    holders: list[tuple[int, Holder]] = []
    for peer in peers:
        address = place_of(peer, asked)
        for offer in peer.models:
            new = {book.id for book in offer.codebooks} - known
            if offer.id == bundle.model_id and new and address is not None:
                wanted |= new
                holders.append((len(new), Holder(peer.name, address, secure)))
    holders.sort(key=lambda one: -one[0])  # whoever has the most says what there is
    found = Holders(bundle.model_id, bundle.name, tuple(holder for _, holder in holders))
    return frozenset(wanted), found


class CodebookFetch(Fetch):
    """The codebooks of one model on their way: :meth:`look`, then :meth:`run`.

    Args:
        bundle: The model on this device.
        ids: The codebooks that it lacks.
        holders: Who has them.
    """

    def __init__(self, bundle: Bundle, ids: frozenset[CodebookId], holders: Holders) -> None:
        super().__init__(holders, bundle.name)
        self._bundle, self._ids = bundle, ids

    def wanted(self, listing: Listing) -> list[SharedFile]:
        """Codebooks; and their measured quality, unless something was measured here."""
        return [
            file
            for file in listing.files
            if file.name.startswith("codebook")
            or (file.name == _QUALITY and not self._bundle.has(_QUALITY))
        ]

    def staging(self) -> Path:
        """Beside the person's models."""
        return self.beside_models("codebooks")

    def publish(self) -> Bundle:
        """Put those that were offered into the model's folder; it lists them from now on.

        Raises:
            BadBundleError: None of what came was.
            ModelError: The folder cannot be written.
        """
        folder, target = self._folder, self._bundle.path
        new = {}
        for path in sorted(folder.glob("codebook*.safetensors")):
            try:
                book = load_codebook(path, self._bundle.model_id)
            except CodebookError:
                continue
            if book.id in self._ids:
                new[book.id] = path
        if not new:
            shutil.rmtree(folder, ignore_errors=True)
            names = ", ".join(holder.name for holder in self.holders.peers)
            raise BadBundleError(f"what {names} gave are not the codebooks that were offered")
        with explained(target):
            for key, path in new.items():
                free = not (target / path.name).exists()
                put(path, target / (path.name if free else f"codebook-{key[:8]}.safetensors"))
            if (folder / _QUALITY).exists():
                put(folder / _QUALITY, target / _QUALITY)
            if self._bundle.entries is not None:
                write_manifest(target)
            shutil.rmtree(folder, ignore_errors=True)
        return open_bundle(target)


def put(source: Path, target: Path) -> None:
    """Whole or not at all, also from another disk."""
    beside = target.with_name(f".{target.name}.partial")
    shutil.copyfile(source, beside)
    beside.replace(target)
