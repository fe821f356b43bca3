"""One device on its own, with the engine's steps and nothing between them."""

from __future__ import annotations

import torch
from torch import Tensor

from astra_mesh.engine.reference import pooled, run_solo
from astra_mesh.families.spec import Pooling
from tools.bench.baselines.run import Run


async def single(run: Run) -> Tensor | None:
    """See :class:`tools.bench.baselines.run.Baseline`; other members do nothing."""
    if not run.answers:
        return None
    return await run.compute(run.timed, "compute_s", _row, run)


def _row(run: Run) -> Tensor:
    pooling: Pooling = "last" if run.model.spec.causal else "class"
    with torch.inference_mode():
        return pooled([run_solo(run.model, run.inputs, pooling)])
