"""Low-rank adapters (Hu et al., arXiv 2106.09685) on the matrices of the blocks."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from astra_mesh.families.block import Linear
from astra_mesh.families.model import Model


class LowRank(nn.Module):
    """A weight (out, in) plus ``up @ down``, which starts at zero."""

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        out, inner = weight.shape
        start = torch.randn(rank, inner, generator=generator) / inner**0.5
        self.down = nn.Parameter(start.to(weight))
        self.up = nn.Parameter(weight.new_zeros(out, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """The adapted weight."""
        return weight + self.up @ self.down


def adapt(model: Model, rank: int, seed: int) -> list[nn.Parameter]:
    """Put adapters on all matrices of the blocks; what is to be trained."""
    generator = torch.Generator().manual_seed(seed)
    found: list[nn.Parameter] = []
    for module in model.block_list.modules():
        if isinstance(module, Linear):
            adapter = LowRank(module.weight, min(rank, *module.weight.shape), generator)
            parametrize.register_parametrization(module, "weight", adapter)
            found += [adapter.down, adapter.up]
    return found


def merge(model: Model) -> None:
    """Add the adapters to the weights for good."""
    for module in model.block_list.modules():
        if isinstance(module, Linear) and parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)


def twin(model: Model) -> Model:
    """The model as it is, on the same weights in memory, which nobody may change in place.

    Adapters that the one gets are not the other's, also when they are merged.
    """
    shared: dict[int, object] = {
        id(one): nn.Parameter(one.detach(), requires_grad=False) for one in model.parameters()
    }
    shared |= {id(one): one for one in model.buffers()}
    return copy.deepcopy(model, shared)
