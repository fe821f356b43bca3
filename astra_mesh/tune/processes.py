"""The processes that ``torchrun`` starts: who they are, and what the first one gives to the others.

They need no folder in common: what only the first one has on its disk goes through the group.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from astra_mesh.errors import AstraMeshError, ModelError
from astra_mesh.limits import FIRST_PROCESS_S

T = TypeVar("T")
_CHUNK_BYTES: Final = 64 << 20  # of a file that goes to the others at a time: so much GPU memory


def rank() -> int:
    """Of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def pick_device() -> torch.device:
    """This process's GPU where there are some, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


@contextmanager
def distributed() -> Iterator[None]:
    """Joins the processes that ``torchrun`` started, if it did."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(pick_device())
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def of_first(make: Callable[[], T]) -> T:
    """What the first process makes, on all of them; the others wait up to ``FIRST_PROCESS_S``.

    Raises:
        AstraMeshError, OSError: as ``make`` on the first process; ModelError on the others then.
    """
    if not dist.is_initialized():
        return make()
    # A group of its own, whose timeout is that of the wait and not that of a step in training.
    group = dist.new_group(timeout=timedelta(seconds=FIRST_PROCESS_S))
    box: list[Any] = [None, ""]
    dist.broadcast_object_list(box, src=0, group=group)  # all are linked before somebody waits
    failed: AstraMeshError | OSError | None = None
    if rank() == 0:
        try:
            box = [make(), ""]
        except (AstraMeshError, OSError) as error:
            failed, box = error, [None, str(error)]
    dist.broadcast_object_list(box, src=0, group=group)
    dist.destroy_process_group(group)
    if failed is not None:
        raise failed
    if box[1]:
        raise ModelError(f"the first process stopped: {box[1]}")
    return box[0]  # type: ignore[no-any-return]


def file_of_first(path: Path) -> Path | io.BytesIO:
    """A file that the first process has: its path there, its contents on the others."""
    if not dist.is_initialized():
        return path
    size = of_first(lambda: path.stat().st_size)
    found = io.BytesIO()
    with path.open("rb") if rank() == 0 else io.BytesIO() as stream:
        for _ in range(0, size, _CHUNK_BYTES):
            box: list[Any] = [stream.read(_CHUNK_BYTES)]
            dist.broadcast_object_list(box, src=0)
            if rank():
                found.write(box[0])
    found.seek(0)
    return found if rank() else path


class _Steps(nn.Module):
    """A module and one parameter that no step uses.

    A step uses the quantizers of the rate that was drawn, so that most leave some parameters
    unused, which ``find_unused_parameters`` is for. Those of the largest rate may use all, and
    then it warns that the flag were needless; beside a parameter that is idle always it does not.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        device = next(module.parameters()).device
        self.idle = nn.Parameter(torch.zeros((), device=device))

    def forward(self, *given: Any) -> Any:
        """What the module gives."""
        return self.module(*given)


def averaging(module: nn.Module) -> nn.Module:
    """The module; with several processes its steps give gradients that are means over all."""
    if not dist.is_initialized():
        return module
    return DistributedDataParallel(_Steps(module), find_unused_parameters=True)
