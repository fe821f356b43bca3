"""k-means over several independent groups at once."""

from __future__ import annotations

import torch
from torch import Tensor

from astra_mesh.quant.coders import nearest

NONE = 1e-12  # below any weight of a row
CHUNK_TOKENS = 8192  # rows scored at a time: (G, 8192, K) float32 scores


def assign(y: Tensor, codewords: Tensor) -> Tensor:
    """Index (G, N) int64 of the nearest of ``codewords`` (G, K, W) to ``y`` (G, N, W)."""
    parts = [nearest(part, codewords) for part in y.split(CHUNK_TOKENS, dim=1)]
    return torch.cat([torch.from_numpy(part) for part in parts], dim=1)


def kmeans(
    y: Tensor,
    codewords: int,
    iterations: int,
    generator: torch.Generator,
    weight: Tensor | None = None,
) -> Tensor:
    """Codewords (G, K, W) for ``y`` (G, N, W): Lloyd's algorithm from random members.

    Rows count by ``weight`` (N,), which is above zero; None: all alike. A codeword that nothing is
    nearest to moves to a random member of its group's data.
    """
    groups, count, width = y.shape
    start = torch.randperm(count, generator=generator)[:codewords]
    centers = y[:, start].clone()
    if centers.shape[1] < codewords:
        centers = torch.nn.functional.pad(centers, (0, 0, 0, codewords - centers.shape[1]))
    weight = torch.ones(count) if weight is None else weight
    heavy = y * weight[:, None]
    for _ in range(iterations):
        index = assign(y, centers)
        sums = torch.zeros_like(centers)
        sums.scatter_add_(1, index.unsqueeze(-1).expand(-1, -1, width), heavy)
        sizes = torch.zeros(groups, codewords)
        sizes.scatter_add_(1, index, weight.expand(groups, -1))
        spare = y[:, torch.randint(count, (codewords,), generator=generator)]
        centers = torch.where(
            sizes.unsqueeze(-1) > 0, sums / sizes.clamp_min(NONE).unsqueeze(-1), spare
        )
    return centers
