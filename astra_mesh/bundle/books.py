"""What a codebook's file says of itself in its header, read without its tensors and without torch.

:mod:`astra_mesh.quant.codebook` reads and checks the whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from astra_mesh.bundle.header import Header, read_header
from astra_mesh.errors import BadBundleError, CodebookError
from astra_mesh.limits import BLOCKS, STAGES
from astra_mesh.wire.messages import ModelId

FORMAT: Final = "astra-mesh-codebook"
VERSION: Final = "2"


@dataclass(frozen=True)
class BookHeader:
    """Of one codebook."""

    codec: str  # "vq" or "astra"
    rates: dict[int, int]  # bits per token and block by number of stages, ascending


def read_book_header(path: Path, model: ModelId | None = None) -> BookHeader:
    """Read and check the header of a codebook file.

    Raises:
        CodebookError: not a codebook, inconsistent, or of another model than ``model``.
    """
    try:
        header = read_header(path)
    except BadBundleError as error:
        raise no_book(error) from error
    check_metadata(path, header.metadata, model)
    try:
        return _of(header)
    except (KeyError, ValueError, IndexError) as error:
        raise inconsistent(path, error) from error


def no_book(error: BadBundleError) -> CodebookError:
    """Of a file that cannot be read."""
    return CodebookError(f"{error.message}; delete it, or fit it again: astra-mesh fit MODEL")


def inconsistent(path: Path, error: Exception) -> CodebookError:
    """Of a file whose parts do not fit."""
    return CodebookError(f"{path.name} is inconsistent ({error}); delete it, or fit it again")


def check_metadata(path: Path, meta: Mapping[str, str], model: ModelId | None) -> None:
    """CodebookError unless it is a codebook of this version and for this model (None: any)."""
    if meta.get("format") != FORMAT or meta.get("version") != VERSION:
        raise CodebookError(
            f"{path.name} is no codebook of version {VERSION}; fit one: astra-mesh fit MODEL"
        )
    if model is not None and meta.get("model") != model:
        raise CodebookError(
            f"{path.name} was fitted for other weights (model {meta.get('model', '?')[:12]!a}, "
            f"this one is {model[:12]!a}); fit one for these (astra-mesh fit MODEL), or delete it"
        )


def numbers(text: str, longest: int) -> tuple[int, ...]:
    """Whole numbers from 1 on, separated by commas; ValueError for anything else."""
    found = tuple(int(part) for part in text.split(","))
    if len(found) > longest or min(found) < 1:
        raise ValueError("numbers out of range")
    return found


def _of(header: Header) -> BookHeader:
    meta = header.metadata
    codec, size, history = meta["codec"], int(meta["size"]), int(meta["history"])
    groups, levels = numbers(meta["groups"], STAGES), numbers(meta["stages"], STAGES)
    first, blocks = int(meta["first_block"]), int(meta["blocks"])
    if codec not in ("vq", "astra") or not 2 <= size <= 65536:
        raise ValueError("unknown kind")
    if first not in (0, 1) or not 1 <= blocks <= BLOCKS or max(levels) != len(groups):
        raise ValueError("blocks or stages out of range")
    for level in levels:
        for block in range(first, first + blocks):
            for stage in range(level):
                shape = header.tensors[f"{level}.{block}.codewords.{stage}"].shape
                if len(shape) != 3 or shape[:2] != (groups[stage], size):
                    raise ValueError("codewords of a wrong shape")
    able = sorted(levels) if history else range(1, max(levels) + 1)
    bits = (size - 1).bit_length()
    return BookHeader(codec, {stages: sum(groups[:stages]) * bits for stages in able})
