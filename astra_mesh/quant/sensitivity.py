"""How much the model's answer depends on what is held of remote tokens, block by block.

For small errors ``r`` (D,) of n^ the divergence of the answer from the single device's is about
``r F r^T / 2`` with the Fisher information F: the mean of ``g g^T`` over answers drawn from the
model itself, g being the gradient of the answer's log-probability (Amari 1998; used for compression
since Hassibi and Stork 1993). Sentence encoders have no log-probability: there g is the
gradient of a random projection of the normalized sentence vector, which makes ``r F r^T`` the mean
squared error of that vector (Gauss-Newton).

Each sequence counts alike: its gradients are divided by their common norm.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from astra_mesh.families.model import Model
from astra_mesh.quant.mixed import Shares, mixed_forward, pooled_class, pooled_mean


def sensitivities(
    model: Model,
    batches: Iterable[tuple[Tensor, Shares]],
    first_block: int,
    task: str,
    generator: torch.Generator,
) -> list[Tensor]:
    """(D, D) float64 for each block, zero below ``first_block``; scaled to sum to 1 in trace.

    Args:
        model: in full precision.
        batches: embedded sequences (B, T, D), and who owns what.
        first_block: the first one that is coded.
        task: "generate", "classify" or "embed".
        generator: draws the answers.
    """
    size = model.spec.hidden_size
    sums = [torch.zeros(size, size, dtype=torch.float64) for _ in model.block_list]
    with torch.enable_grad():
        for embedded, held in batches:
            for block, gradient in _gradients(
                model, embedded, held, first_block, task, generator
            ).items():
                rows = gradient[held.copies :].flatten(0, 1)
                sums[block] += (rows.T @ rows).double()
    total = sum(float(one.trace()) for one in sums)
    return [one / max(total, 1e-300) for one in sums]


def _gradients(
    model: Model,
    embedded: Tensor,
    held: Shares,
    first_block: int,
    task: str,
    generator: torch.Generator,
) -> dict[int, Tensor]:
    """Of each coded block's n^ (T, B, D), normalized by sequence."""
    leaves: dict[int, Tensor] = {}

    def rebuild(block: int, n: Tensor) -> Tensor:
        leaves[block] = n.detach().requires_grad_(True)
        return leaves[block]

    hidden = mixed_forward(model, embedded, held, first_block, rebuild)
    target = _target(model, hidden, held, task, generator)
    found: Sequence[Tensor | None] = torch.autograd.grad(
        target, list(leaves.values()), allow_unused=True
    )
    gradients = {
        block: torch.zeros_like(leaves[block]) if one is None else one
        for block, one in zip(leaves, found, strict=True)
    }
    squares = torch.stack([one.square().sum((0, 2)) for one in gradients.values()]).sum(0)
    norm = squares.sqrt().clamp_min(1e-12)[None, :, None]
    return {block: one / norm for block, one in gradients.items()}


def _target(
    model: Model, hidden: Tensor, held: Shares, task: str, generator: torch.Generator
) -> Tensor:
    """A scalar whose gradient tells how the answers depend on things."""
    if task == "embed":
        vectors = F.normalize(pooled_mean(hidden, held), dim=-1)
        return (vectors * torch.randn(vectors.shape, generator=generator)).sum()
    if task == "classify":
        logits = model.classify(pooled_class(hidden, held))
    else:
        logits = model.logits(hidden.flatten(0, 1))
    scores = logits.float().log_softmax(-1)
    drawn = torch.multinomial(scores.detach().exp(), 1, generator=generator)
    return scores.gather(1, drawn).sum()
