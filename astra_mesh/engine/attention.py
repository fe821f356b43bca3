"""Attention over parts of the keys, each with its log-sum-exp, and the merge of the parts.

The merge is the one of flash attention's split (Dao et al., arXiv 2307.08691): the result equals
one softmax over all keys. Shapes as in :mod:`astra_mesh.families.block`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Part(NamedTuple):
    """Attention over some of the keys: ``out`` (H_kv, G, T, E), ``lse`` (H_kv, G, T) float32."""

    out: Tensor
    lse: Tensor


def attend(query: Tensor, rows: Tensor, causal: bool = False) -> Part:
    """Attend ``query`` (H_kv, G, T, E) to key/value ``rows`` (S, 2, H_kv, E).

    With ``causal`` the queries belong to the same S = T tokens as the keys. T and S are at least 1
    (torch's CPU kernel divides by zero otherwise, and the process ends).
    """
    groups, tokens = query.shape[1], query.shape[2]
    if tokens == 0 or rows.shape[0] == 0:
        raise ValueError("attention needs at least one query and one key")
    shape = (-1, groups, -1, -1)
    key = rows[:, 0].transpose(0, 1).unsqueeze(1).expand(shape)
    value = rows[:, 1].transpose(0, 1).unsqueeze(1).expand(shape)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, causal
    )
    return Part(out, lse)


def merge(parts: Sequence[Part]) -> Tensor:
    """The heads' outputs (T, q_size) of one softmax over the keys of all parts, in their order."""
    out = parts[0].out
    if len(parts) > 1:
        lse = torch.stack([part.lse for part in parts])
        share = torch.softmax(lse, dim=0).to(out.dtype).unsqueeze(-1)
        out = share[0] * out
        for weight, part in zip(share[1:], parts[1:], strict=True):
            out = torch.addcmul(out, weight, part.out)
    return out.permute(2, 0, 1, 3).reshape(out.shape[2], -1)
