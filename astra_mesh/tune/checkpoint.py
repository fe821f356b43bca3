"""What a run goes on from: what it trains, and whose that is. All the rest is there without it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from astra_mesh.bundle.configs import no_room
from astra_mesh.errors import ModelError
from astra_mesh.tune.objective import Objective
from astra_mesh.tune.processes import file_of_first

FORMAT: Final = 3  # 1 had frozen weights too; 2 only the loss of what was kept
_FULL_BYTES: Final = 1 << 20  # torch does not say that a disk is full: then less than this is free
_STATISTICS: Final = (".spread", ".seen")  # of the codebook's blocks; their other buffers stay


def learned(objective: Objective) -> dict[str, Tensor]:
    """What training changes, by name: trained parameters (tied ones once) and the codebook's
    running statistics; the tensors themselves."""
    parameters = objective.named_parameters()
    found: dict[str, Tensor] = {name: one for name, one in parameters if one.requires_grad}
    buffers = objective.book.named_buffers(prefix="book")
    return found | {name: one for name, one in buffers if name.endswith(_STATISTICS)}


def copy_of(objective: Objective) -> dict[str, Tensor]:
    """A copy of :func:`learned` as it is now."""
    return {name: one.detach().clone() for name, one in learned(objective).items()}


@torch.no_grad()
def put(objective: Objective, state: Mapping[str, Tensor]) -> None:
    """The way back from :func:`copy_of`."""
    for name, one in learned(objective).items():
        one.copy_(state[name])


def write(path: Path, state: Mapping[str, Any]) -> None:
    """Whole or not at all; ModelError where the disk is full, the old file intact."""
    part = path.with_suffix(".part")
    try:
        torch.save(dict(state), part)
        part.replace(path)
    except (OSError, RuntimeError) as error:
        full = no_room(error) or shutil.disk_usage(path.parent).free < _FULL_BYTES
        part.unlink(missing_ok=True)
        raise ModelError(
            f"the checkpoint {path.absolute()} cannot be written "
            f"({'no space left on its disk' if full else error}); the one before is intact: "
            "make room and start again to go on from there"
        ) from error


def read(path: Path, identity: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The first process's checkpoint, on all of them; ModelError where it is of another run."""
    try:
        state = torch.load(file_of_first(path), map_location=device, weights_only=True)
        told = {key: state.get(key) for key in identity}
    except Exception as error:
        raise ModelError(f"the checkpoint {path} cannot be read ({error}); delete it") from error
    if told != identity:
        raise ModelError(
            f"{path} is of a run with another codebook, other data, other options or another "
            "version of this program; delete it, or name another folder with --work"
        )
    return dict(state)
