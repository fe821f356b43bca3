"""A model as a tab fetches it: a manifest, and files by their SHA-256.

The manifest names every graph and every string of tensors; nothing in them depends on the peer that
serves them, so a tab may go on with another one's.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from astra_mesh.browser.blocks import block_graphs, norm_graph
from astra_mesh.browser.codes import book_tensors
from astra_mesh.browser.sizes import check_size
from astra_mesh.browser.tensors import Packed
from astra_mesh.browser.weights import block_tensors, fits_half, with_half, with_rest
from astra_mesh.errors import UnsupportedModelError
from astra_mesh.families import Model
from astra_mesh.quant.codebook import Codebook
from astra_mesh.wire.messages import CodebookId

FORMAT: Final = 2


@dataclass(frozen=True)
class ModelFiles:
    """A model's manifest, and where each file lies that it names."""

    manifest: dict[str, Any]
    paths: Mapping[str, Path]  # by SHA-256

    @property
    def total(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.paths.values())


def make_files(
    name: str,
    model_id: str,
    model: Model,
    codebooks: Mapping[CodebookId, Codebook],
    folder: Path,
    first_rates: Mapping[CodebookId, int] | None = None,
) -> ModelFiles:
    """Write a model's files into ``folder``; slow, and one block's tensors in memory at a time.

    Args:
        name: of the model, for people.
        model_id: the hash of its weights.
        model: as it was read, in float32.
        codebooks: that fit it.
        folder: exists; files that are there already stay.
        first_rates: bits that a tab makes ready before the first request; None: the defaults.

    Raises:
        UnsupportedModelError: a tab cannot hold it, or has no such activation.
    """
    check_size(name, model.spec)
    making = _Making(model, folder)
    spec = model.spec
    manifest = {
        "format": FORMAT,
        "id": model_id,
        "name": name,
        "family": spec.family,
        "tasks": list(spec.tasks),
        "spec": dataclasses.asdict(spec) | {"pooling": {t: spec.pooling(t) for t in spec.tasks}},
        "blocks": spec.num_hidden_layers,
        "weights": making.blocks(),
        "graphs": making.graphs,
        "codebooks": [
            making.codebook(key, book, (first_rates or {}).get(key))
            for key, book in codebooks.items()
        ],
    }
    return ModelFiles(manifest, making.paths)


@dataclass
class _Making:
    model: Model
    folder: Path
    paths: dict[str, Path] = field(default_factory=dict)
    graphs: dict[str, Any] = field(default_factory=dict)

    def blocks(self) -> list[dict[str, Any]]:
        """Write the weights of all blocks, and the graphs that they share."""
        spec = self.model.spec
        half = all(
            fits_half(block_tensors(self.model.block(index)))
            for index in range(spec.num_hidden_layers)
        )
        return [self._block(index, half) for index in range(spec.num_hidden_layers)]

    def _block(self, index: int, half: bool) -> dict[str, Any]:
        block = self.model.block(index)
        tensors = block_tensors(block)
        packed = Packed(with_half(tensors) if half else with_rest(tensors))
        graphs = block_graphs(block, packed.entries)
        if self.model.final_norm is not None:
            graphs["final"] = norm_graph(self.model.final_norm, self.model.spec.hidden_size)
        written = {name: self._put(graph) for name, graph in graphs.items()}
        if index and written != self.graphs:
            raise UnsupportedModelError("this model's blocks differ in kind; tabs cannot run it")
        self.graphs = written
        self._put(packed.data)
        return packed.described()

    def codebook(self, key: CodebookId, book: Codebook, first: int | None) -> dict[str, Any]:
        """Write a codebook's tensors."""
        default = book.rate(book.default_stages)
        return {
            "id": key,
            "codec": book.codec,
            "history": book.history,
            "first_block": book.first_block,
            "size": book.size,
            "code_bits": book.code_bits,
            "groups": list(book.groups),
            "able": list(book.able),
            "rates": list(book.rates.values()),
            "default_rate": default,
            "first_rate": first or default,
            "class_token": book.class_token,
            "levels": {str(stages): self._level(book, stages) for stages in book.able},
        }

    def _level(self, book: Codebook, stages: int) -> list[dict[str, Any]]:
        """Each coded block at a number of stages."""
        stored = stages if book.history else book.stages
        found = []
        for block in range(book.first_block, book.first_block + book.blocks):
            packed = Packed(book_tensors(book.book(block, stored)))
            self._put(packed.data)
            found.append(packed.described())
        return found

    def _put(self, data: bytes) -> dict[str, Any]:
        """Write a file, named by its hash."""
        sha256 = hashlib.sha256(data).hexdigest()
        if sha256 not in self.paths:
            path = self.folder / sha256
            path.write_bytes(data)
            self.paths[sha256] = path
        return {"sha256": sha256, "bytes": len(data)}
