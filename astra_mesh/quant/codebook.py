"""A codebook: what turns each block's K,V input into a few bytes per token, for one model.

For block input ``n`` (T, D) (see :mod:`astra_mesh.families.block`):

    y = analysis @ (n - center)                      R coordinates, cut into G groups of W
    code[s, g] = nearest codeword of stage s to what the stages before left of y[g]
    n^ = center + synthesis @ (sum over stages of the codewords)

``analysis`` maps into coordinates in which the Euclidean distance is the error of the keys and
values (each scaled to unit energy), rotated so that groups carry equal log-variance (the balance of
optimized product quantization, Ge et al., CVPR 2013). Stages are residual, so a prefix of the code
is a coarser code. The codec ``astra`` (arXiv 2505.19342, section 3.2) has neither: it quantizes the
embedding itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from astra_mesh.bundle.tensors import open_tensors, read_metadata, save_tensors
from astra_mesh.errors import BadBundleError, CodebookError
from astra_mesh.limits import STAGES
from astra_mesh.wire.messages import CodebookId, ModelId

FORMAT = "astra-mesh-codebook"
VERSION = "1"


@dataclass(frozen=True)
class BlockBook:
    """The quantizer of one block."""

    codewords: Tensor  # (S, G, K, W) float32
    center: Tensor | None = None  # (D,) float32
    analysis: Tensor | None = None  # (R, D) float32, R = G * W
    synthesis: Tensor | None = None  # (D, R) float32


@dataclass(frozen=True)
class Codebook:
    """The quantizer of one model."""

    codec: str  # "vq" or "astra"
    model: ModelId
    hidden_size: int
    first_block: int  # 1 where the first block's input is known to every peer anyway
    default_stages: int
    blocks: tuple[BlockBook, ...]  # of blocks first_block, first_block + 1, ...

    @property
    def stages(self) -> int:
        """Residual stages in the book."""
        return int(self.blocks[0].codewords.shape[0])

    @property
    def groups(self) -> int:
        """Groups per stage."""
        return int(self.blocks[0].codewords.shape[1])

    @property
    def size(self) -> int:
        """Codewords per group."""
        return int(self.blocks[0].codewords.shape[2])

    @property
    def code_bits(self) -> int:
        """Bits of one code."""
        return (self.size - 1).bit_length()

    def rate(self, stages: int) -> int:
        """Bits per token and block with so many stages."""
        return stages * self.groups * self.code_bits

    def book(self, block: int) -> BlockBook:
        """The quantizer of ``block``."""
        return self.blocks[block - self.first_block]

    def tensors(self) -> dict[str, Tensor]:
        """All tensors under their canonical names, as stored."""
        found: dict[str, Tensor] = {}
        for index, book in enumerate(self.blocks, self.first_block):
            found[f"{index}.codewords"] = book.codewords.half()
            if book.center is not None and book.analysis is not None and book.synthesis is not None:
                found[f"{index}.center"] = book.center.float()
                found[f"{index}.analysis"] = book.analysis.half()
                found[f"{index}.synthesis"] = book.synthesis.float()
        return found

    def metadata(self) -> dict[str, str]:
        """What the file says beside the tensors."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "codec": self.codec,
            "model": self.model,
            "hidden_size": str(self.hidden_size),
            "first_block": str(self.first_block),
            "blocks": str(len(self.blocks)),
            "default_stages": str(self.default_stages),
        }

    @property
    def id(self) -> CodebookId:
        """SHA-256 of the canonical form: version and kind, then each tensor by name."""
        digest = hashlib.sha256(f"{FORMAT}/{VERSION}\0".encode())
        for key in ("codec", "model", "hidden_size", "first_block", "blocks"):
            digest.update(f"{key}={self.metadata()[key]}\0".encode())
        for name, tensor in sorted(self.tensors().items()):
            kind = {torch.float16: "<f2", torch.float32: "<f4"}[tensor.dtype]
            digest.update(f"{name}\0{kind}\0{tuple(tensor.shape)}\0".encode())
            array = tensor.contiguous().numpy()
            digest.update(array.astype(kind, copy=False).tobytes())
        return CodebookId(digest.hexdigest())

    def save(self, path: Path) -> None:
        """Write the file whole or not at all."""
        save_tensors(path, self.tensors(), self.metadata())


def as_stored(book: BlockBook) -> BlockBook:
    """The book with the precision that its file has, so that fitting sees what running will."""
    return BlockBook(
        book.codewords.half().float(),
        book.center,
        None if book.analysis is None else book.analysis.half().float(),
        book.synthesis,
    )


def load_codebook(path: Path, model: ModelId | None = None) -> Codebook:
    """Read and check a codebook file.

    Raises:
        CodebookError: not a codebook, inconsistent, or of another model than ``model``.
    """
    try:
        meta = read_metadata(path)
        tensors = dict(open_tensors(path))
    except BadBundleError as error:
        raise CodebookError(f"{error.message}; fit it again: astra-mesh fit MODEL") from error
    if meta.get("format") != FORMAT or meta.get("version") != VERSION:
        raise CodebookError(
            f"{path.name} is no codebook of version {VERSION}; fit one: astra-mesh fit MODEL"
        )
    if model is not None and meta.get("model") != model:
        raise CodebookError(
            f"{path.name} was fitted for other weights (model {meta.get('model', '?')[:12]!a}, "
            f"this one is {model[:12]!a}); fit one for these: astra-mesh fit MODEL"
        )
    return _from_tensors(path.name, meta, tensors)


def _from_tensors(name: str, meta: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Codebook:
    try:
        numbers = {
            key: int(meta[key])
            for key in ("hidden_size", "first_block", "blocks", "default_stages")
        }
        first, count = numbers["first_block"], numbers["blocks"]
        books = tuple(_book(tensors, i) for i in range(first, first + count))
        book = Codebook(
            codec=meta["codec"],
            model=ModelId(meta["model"]),
            hidden_size=numbers["hidden_size"],
            first_block=first,
            default_stages=numbers["default_stages"],
            blocks=books,
        )
        _check(book)
    except (KeyError, ValueError, IndexError) as error:
        raise CodebookError(f"{name} is inconsistent ({error}); fit it again") from error
    return book


def _book(tensors: Mapping[str, Tensor], block: int) -> BlockBook:
    def optional(name: str) -> Tensor | None:
        tensor = tensors.get(f"{block}.{name}")
        return None if tensor is None else tensor.float()

    codewords = tensors[f"{block}.codewords"].float()
    return BlockBook(codewords, optional("center"), optional("analysis"), optional("synthesis"))


def _check(book: Codebook) -> None:
    """ValueError where shapes do not fit each other or numbers are not finite."""
    if book.codec not in ("vq", "astra") or not book.blocks or book.first_block not in (0, 1):
        raise ValueError("unknown kind")
    if not 1 <= book.default_stages <= book.stages:
        raise ValueError("default_stages out of range")
    shape = book.blocks[0].codewords.shape
    if len(shape) != 4 or min(shape) < 1 or not 2 <= shape[2] <= 65536 or shape[0] > STAGES:
        raise ValueError("codewords of a wrong shape")
    coordinates, hidden = int(shape[1] * shape[3]), book.hidden_size
    wanted = {
        "center": (hidden,),
        "analysis": (coordinates, hidden),
        "synthesis": (hidden, coordinates),
    }
    for block in book.blocks:
        if block.codewords.shape != shape:
            raise ValueError("blocks of different shapes")
        for name, dims in wanted.items():
            tensor = getattr(block, name)
            if (tensor is None) != (book.codec == "astra"):
                raise ValueError(f"{name} missing or out of place")
            if tensor is not None and tuple(tensor.shape) != dims:
                raise ValueError(f"{name} of a wrong shape")
        if book.codec == "astra" and coordinates != hidden:
            raise ValueError("groups do not tile the embedding")
        if not all(bool(t.isfinite().all()) for t in vars(block).values() if t is not None):
            raise ValueError("numbers that are not finite")
