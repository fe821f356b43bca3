"""A codebook: what turns each block's K,V input into a few bytes per token, for one model.

For block input ``n`` (T, D) (see :mod:`astra_mesh.families.block`) and what is already known of the
token, its prediction ``p`` (T, D):

    y = analysis @ (n - p)                           R coordinates
    code[s, g] = nearest codeword of stage s to what the stages before left of y[order[s][g]]
    q = synthesis @ (sum over stages of the codewords)
    n^ = p + q

``analysis`` maps into coordinates in which the Euclidean distance is the error that matters (the
metric is chosen by :mod:`astra_mesh.quant.fit`). Each stage cuts the coordinates into its own
number of groups of about equal log-variance (the balance of optimized product quantization, Ge et
al., CVPR 2013); the more stages, the more bits. Usually stages double the bits: 8, 16, 32, 64, 128.

The prediction is what makes a codebook *remember* (predictive vector quantization in a closed loop;
Gersho and Gray 1992, chapter 13). With ``history`` h:

    0            p = center
    1, 2, ...    p = center + sum over m of q of block l - m @ predict[m - 1],  m = 1..min(h, l)
                 + q of block 0 @ predict[h], where l > h
    UNLIMITED    p = center + n^ of block l - 1 @ predict[0]

Block 0 is known exactly, without a code; in the formulas its q and n^ are its n. So every block is
predicted from it too, however short the history (:func:`sources`).
A memoryless codebook's stages are prefixes of one another. With history every rate predicts from
what *it* sent before, so that each number of stages has a quantizer of its own.

The codec ``astra`` (arXiv 2505.19342, section 3.2) has no coordinates and no prediction: it
quantizes the embedding itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from astra_mesh.bundle.books import (
    FORMAT,
    VERSION,
    check_metadata,
    inconsistent,
    no_book,
    numbers,
)
from astra_mesh.bundle.configs import bad_file
from astra_mesh.bundle.tensors import open_tensors, read_metadata, save_tensors
from astra_mesh.errors import BadBundleError
from astra_mesh.limits import BLOCKS, STAGES
from astra_mesh.wire.messages import CodebookId, ModelId

UNLIMITED: Final = -1  # history
_STORED: Final = {"center": torch.float32, "order": torch.int32}  # the others: float16
_KINDS: Final = {torch.float16: "<f2", torch.float32: "<f4", torch.int32: "<i4"}


@dataclass(frozen=True)
class BlockBook:
    """The quantizer of one block at one number of stages: float32, or as it is stored."""

    codewords: tuple[Tensor, ...]  # per stage (G, K, W)
    orders: tuple[Tensor, ...] = ()  # per stage (G * W,) int64: coordinates; R: none (padding)
    center: Tensor | None = None  # (D,)
    analysis: Tensor | None = None  # (R, D)
    synthesis: Tensor | None = None  # (D, R)
    predict: Tensor | None = None  # (H, D, D), row vectors times matrix

    def first(self, stages: int) -> BlockBook:
        """The same with the first stages only."""
        return BlockBook(
            self.codewords[:stages],
            self.orders[:stages],
            self.center,
            self.analysis,
            self.synthesis,
            self.predict,
        )

    def floats(self) -> BlockBook:
        """The same in float32, ready to compute with."""

        def float32(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.float()

        return BlockBook(
            tuple(one.float() for one in self.codewords),
            self.orders,
            float32(self.center),
            float32(self.analysis),
            float32(self.synthesis),
            float32(self.predict),
        )

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, with the precision that they are stored in."""
        found: dict[str, Tensor] = {}
        for stage, codewords in enumerate(self.codewords):
            found[f"codewords.{stage}"] = codewords.half()
        for stage, order in enumerate(self.orders):
            found[f"order.{stage}"] = order.to(torch.int32)
        for name in ("center", "analysis", "synthesis", "predict"):
            tensor = getattr(self, name)
            if tensor is not None:
                found[name] = tensor.to(_STORED.get(name, torch.float16))
        return found


@dataclass(frozen=True)
class Codebook:
    """The quantizer of one model."""

    codec: str  # "vq" or "astra"
    model: ModelId
    hidden_size: int
    first_block: int  # 1 where the first block's input is known to every peer anyway
    history: int
    groups: tuple[int, ...]  # of each stage
    size: int  # codewords of each group
    default_stages: int
    # By number of stages, then of blocks first_block, first_block + 1, ...; without history the
    # largest number only, whose prefixes are the others. Of a file they are as stored, so that
    # what nobody uses takes no memory.
    levels: Mapping[int, tuple[BlockBook, ...]]
    class_token: str = "single"  # or "distributed": what it was made for

    @property
    def stages(self) -> int:
        """The largest number of stages."""
        return max(self.levels)

    @property
    def able(self) -> tuple[int, ...]:
        """The numbers of stages that can be used, ascending."""
        return tuple(sorted(self.levels)) if self.history else tuple(range(1, self.stages + 1))

    @property
    def blocks(self) -> int:
        """Coded blocks."""
        return len(self.levels[self.stages])

    @property
    def code_bits(self) -> int:
        """Bits of one code."""
        return (self.size - 1).bit_length()

    def rate(self, stages: int) -> int:
        """Bits per token and block with so many stages."""
        return sum(self.groups[:stages]) * self.code_bits

    @property
    def rates(self) -> dict[int, int]:
        """Bits per token and block by number of stages, ascending."""
        return {stages: self.rate(stages) for stages in self.able}

    def book(self, block: int, stages: int) -> BlockBook:
        """The quantizer of ``block`` with so many stages, in float32."""
        if stages in self.levels:
            return self.levels[stages][block - self.first_block].floats()
        if self.history:
            raise KeyError(stages)
        return self.levels[self.stages][block - self.first_block].first(stages).floats()

    def tensors(self) -> dict[str, Tensor]:
        """All tensors under their canonical names ``stages.block.name``, as stored."""
        return {
            f"{stages}.{block}.{name}": tensor
            for stages, books in self.levels.items()
            for block, book in enumerate(books, self.first_block)
            for name, tensor in book.tensors().items()
        }

    def metadata(self) -> dict[str, str]:
        """What the file says beside the tensors."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "codec": self.codec,
            "model": self.model,
            "hidden_size": str(self.hidden_size),
            "first_block": str(self.first_block),
            "history": str(self.history),
            "groups": ",".join(map(str, self.groups)),
            "size": str(self.size),
            "stages": ",".join(map(str, sorted(self.levels))),
            "blocks": str(self.blocks),
            "default_stages": str(self.default_stages),
            "class_token": self.class_token,
        }

    @cached_property
    def id(self) -> CodebookId:
        """SHA-256 of the canonical form: version and kind, then each tensor by name. Reads it all,
        once."""
        digest = hashlib.sha256(f"{FORMAT}/{VERSION}\0".encode())
        for key, value in sorted(self.metadata().items()):
            if key not in ("format", "version", "default_stages"):
                digest.update(f"{key}={value}\0".encode())
        for name, tensor in sorted(self.tensors().items()):
            kind = _KINDS[tensor.dtype]
            digest.update(f"{name}\0{kind}\0{tuple(tensor.shape)}\0".encode())
            digest.update(tensor.contiguous().numpy().astype(kind, copy=False).tobytes())
        return CodebookId(digest.hexdigest())

    def save(self, path: Path, notes: Mapping[str, str] | None = None) -> None:
        """Write the file whole or not at all; ``notes`` lie beside what it says of itself."""
        save_tensors(path, self.tensors(), {**(notes or {}), **self.metadata()})


def sources(history: int, block: int) -> tuple[int, ...]:
    """The blocks that ``block`` is predicted from, in the order of ``predict``."""
    if history == UNLIMITED:
        return (block - 1,)
    recent = tuple(range(block - 1, max(block - history, 0) - 1, -1))
    return recent if not history or 0 in recent else (*recent, 0)


def as_stored(book: BlockBook) -> BlockBook:
    """The book with the precision that its file has, so that fitting sees what running will."""
    return _stored(book.tensors(), len(book.codewords)).floats()


def load_codebook(path: Path, model: ModelId | None = None) -> Codebook:
    """Read and check a codebook file.

    Raises:
        CodebookError: not a codebook, inconsistent, or of another model than ``model``.
    """
    try:
        meta, before = read_metadata(path), _stamp(path)
        tensors = open_tensors(path)
        check_metadata(path, meta, model)
        checked = _from_tensors(meta, tensors)
        check(checked)
        # All of it was read for that. Of another mapping only what is used comes into memory.
        found = _from_tensors(meta, open_tensors(path))
        if _stamp(path) != before:
            raise bad_file(path, "changed while it was read", "try again")
    except BadBundleError as error:
        raise no_book(error) from error
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise inconsistent(path, error) from error
    vars(found)["id"] = checked.id
    return found


def _stamp(path: Path) -> tuple[int, ...]:
    """Another one where a file was written or replaced; BadBundleError where it is gone."""
    try:
        found = path.stat()
    except OSError as error:
        raise bad_file(path, f"cannot be read ({error.strerror})") from error
    return found.st_ino, found.st_size, found.st_mtime_ns


def _from_tensors(meta: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Codebook:
    groups = numbers(meta["groups"], STAGES)
    first, blocks = int(meta["first_block"]), int(meta["blocks"])
    if first not in (0, 1) or not 1 <= blocks <= BLOCKS:
        raise ValueError("blocks out of range")
    levels = {
        stages: tuple(
            _stored(_below(tensors, f"{stages}.{block}."), stages)
            for block in range(first, first + blocks)
        )
        for stages in numbers(meta["stages"], STAGES)
    }
    return Codebook(
        codec=meta["codec"],
        model=ModelId(meta["model"]),
        hidden_size=int(meta["hidden_size"]),
        first_block=first,
        history=int(meta["history"]),
        groups=groups,
        size=int(meta["size"]),
        default_stages=int(meta["default_stages"]),
        levels=levels,
        class_token=meta["class_token"],
    )


def block_book(tensors: Mapping[str, Tensor], prefix: str, stages: int) -> BlockBook:
    """The quantizer whose tensors have that prefix, in float32; KeyError where some lack."""
    return _stored(_below(tensors, prefix), stages).floats()


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _stored(tensors: Mapping[str, Tensor], stages: int) -> BlockBook:
    orders = [tensors[f"order.{s}"].long() for s in range(stages) if f"order.{s}" in tensors]
    return BlockBook(
        tuple(tensors[f"codewords.{stage}"] for stage in range(stages)),
        tuple(orders),
        tensors.get("center"),
        tensors.get("analysis"),
        tensors.get("synthesis"),
        tensors.get("predict"),
    )


def check(book: Codebook) -> None:
    """ValueError where shapes do not fit each other or numbers are not finite."""
    if book.codec not in ("vq", "astra") or book.history < UNLIMITED:
        raise ValueError("unknown kind")
    if book.class_token not in ("single", "distributed"):
        raise ValueError("unknown class_token")
    if book.codec == "astra" and (book.history or len(book.groups) != 1):
        raise ValueError("astra has one stage and no history")
    if book.history and not book.first_block:
        raise ValueError("a history begins with a first block that is known")
    if not 2 <= book.size <= 65536 or book.hidden_size < 1:
        raise ValueError("sizes out of range")
    if book.stages != len(book.groups) or (not book.history and len(book.levels) != 1):
        raise ValueError("stages out of range")
    if book.default_stages not in book.able:
        raise ValueError("default_stages out of range")
    for stages, books in book.levels.items():
        if len(books) != book.blocks:
            raise ValueError("levels of different lengths")
        for block, one in enumerate(books, book.first_block):
            _check_block(book, one, stages, block)


def _check_block(book: Codebook, one: BlockBook, stages: int, block: int) -> None:
    for stage, groups in enumerate(book.groups[:stages]):
        shape = one.codewords[stage].shape
        if len(shape) != 3 or shape[:2] != (groups, book.size) or shape[2] < 1:
            raise ValueError("codewords of a wrong shape")
    parts = (one.center, one.analysis, one.synthesis)
    if any((part is None) != (book.codec == "astra") for part in parts):
        raise ValueError("coordinates missing or out of place")
    if book.codec == "astra":
        if one.orders or book.groups[0] * one.codewords[0].shape[2] != book.hidden_size:
            raise ValueError("groups do not tile the embedding")
    else:
        _check_coordinates(book, one)
    past = len(sources(book.history, block)) if book.history else 0
    predict = None if past == 0 else (past, book.hidden_size, book.hidden_size)
    if (None if one.predict is None else tuple(one.predict.shape)) != predict:
        raise ValueError("predict of a wrong shape")
    numbers = [*one.codewords, *parts, one.predict]
    if not all(bool(t.isfinite().all()) for t in numbers if t is not None):
        raise ValueError("numbers that are not finite")


def _check_coordinates(book: Codebook, one: BlockBook) -> None:
    assert one.center is not None
    assert one.analysis is not None
    assert one.synthesis is not None
    hidden, coordinates = book.hidden_size, one.analysis.shape[0]
    if (tuple(one.center.shape), tuple(one.analysis.shape), tuple(one.synthesis.shape)) != (
        (hidden,),
        (coordinates, hidden),
        (hidden, coordinates),
    ):
        raise ValueError("coordinates of a wrong shape")
    for codewords, order in zip(one.codewords, one.orders, strict=True):
        used = order[order < coordinates]
        if (
            tuple(order.shape) != (codewords.shape[0] * codewords.shape[2],)
            or int(order.min()) < 0
            or int(order.max()) > coordinates
            or len(used.unique()) != len(used)
        ):
            raise ValueError("an order of a wrong shape or with wrong coordinates")


def stage_groups(wanted: Sequence[int], first: int = 1) -> tuple[int, ...]:
    """Groups of stages whose prefixes have each number of codes in ``wanted``.

    Each stage doubles what there is, or fills up to the next wanted number:
    ``stage_groups([4, 12])`` is (1, 1, 2, 4, 4).
    """
    found: list[int] = []
    for codes in sorted(set(wanted)):
        while sum(found) < codes:
            found.append(min(sum(found) or first, codes - sum(found)))
    return tuple(found)
