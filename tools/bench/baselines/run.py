"""What all baselines have in common: one run on one worker."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor

from astra_mesh.engine.compute import ComputeThread
from astra_mesh.engine.pipeline import Spent
from astra_mesh.families import Model, ModelInput
from tools.bench.baselines.group import Group

P = ParamSpec("P")
R = TypeVar("R")

TAGS_PER_RUN = 1 << 20


def even(tokens: int, members: int) -> list[tuple[int, int]]:
    """Contiguous shards (start, stop) whose sizes differ by one token at most."""
    edges = [tokens * i // members for i in range(members + 1)]
    return list(itertools.pairwise(edges))


@dataclass
class Run:
    """One inference on one of ``members`` equal devices; the last one has the answer.

    Tags are taken in the same order on all members.
    """

    model: Model
    inputs: ModelInput
    group: Group
    members: int
    compute: ComputeThread
    number: int = 0  # of the run, the same on all members
    spent: Spent = field(default_factory=Spent)
    _tags: int = 0

    @property
    def rank(self) -> int:
        """The own one."""
        return self.group.rank

    @property
    def answers(self) -> bool:
        """Whether this worker has the answer."""
        return self.rank == self.members - 1

    def tag(self, count: int = 1) -> int:
        """The first of ``count`` fresh tags."""
        at = self.number * TAGS_PER_RUN + self._tags
        self._tags += count
        return at

    def timed(self, kind: str, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function in the compute thread; its time counts as ``kind`` of :class:`Spent`."""
        began = time.perf_counter()
        found = function(*args, **kwargs)
        took = time.perf_counter() - began
        setattr(self.spent, kind, getattr(self.spent, kind) + took)
        return found

    @property
    def wanted(self) -> int:
        """Position whose final row the head reads: the class token, or the last token."""
        return self.model.count_tokens(self.inputs) - 1 if self.model.spec.causal else 0


class Baseline(Protocol):
    """A way to run an inference."""

    async def __call__(self, run: Run) -> Tensor | None:
        """The final hidden row (D,) that the head reads, on the last member; else None or any."""


@torch.inference_mode()
def answer(model: Model, row: Tensor) -> Tensor:
    """Logits of the head for the final row (D,)."""
    if "generate" in model.spec.tasks:
        return model.logits(row[None])[0]
    return model.classify(row)


async def hand_over(run: Run, row: Tensor | None) -> Tensor | None:
    """Bring the row (D,) from the member that has it to the last one."""
    tag = run.tag()
    holder = run.members - 1 if run.model.spec.causal else 0
    if holder == run.members - 1:
        return row
    if run.rank == holder:
        assert row is not None
        run.group.send(run.members - 1, tag, row.float().numpy().tobytes())
        return None
    if not run.answers:
        return None
    data = bytearray(await run.group.receive(holder, tag))
    return torch.frombuffer(data, dtype=torch.float32)
