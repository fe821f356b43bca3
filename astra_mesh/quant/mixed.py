"""Mixed-precision attention of whole batches: what fitting and fine-tuning run.

The same arithmetic as :mod:`astra_mesh.engine` for a plan (tests hold the two together), but for B
sequences of T rows at once, differentiable, and with the shards as masks: every row attends the
exact keys and values of its own shard and the rebuilt ones of the others, in one softmax. Tensors
are ``(T, B, D)``: rows first, so that rotary positions apply as in a single sequence.

Distributed class tokens (arXiv 2505.19342, section 3.3) are P rows in front of the others, one
copy of the class token for each shard.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from astra_mesh.families.block import Block
from astra_mesh.families.model import Model

Rebuild = Callable[[int, Tensor], Tensor]  # block, n (T, B, D) -> what the others hold of it


@dataclass(frozen=True)
class Shares:
    """Who owns which row of which sequence.

    ``copies`` rows in front are copies of the class token, one for each shard in turn; they are
    never sent. The rows after them are the tokens (without the class token where it is copied).
    """

    owner: Tensor  # (B, T) int64
    copies: int = 0

    def masks(self, causal: bool) -> Tensor:
        """(B, 1, T, 2T) bool: which of [exact keys, rebuilt keys] a row attends."""
        same = self.owner[:, :, None] == self.owner[:, None, :]
        sent = torch.ones_like(self.owner, dtype=torch.bool)
        sent[:, : self.copies] = False
        exact, rebuilt = same, ~same & sent[:, None, :]
        if causal:
            earlier = torch.ones_like(same[0]).tril()
            exact, rebuilt = exact & earlier, rebuilt & earlier
        return torch.cat([exact, rebuilt], dim=2).unsqueeze(1)


def shares(bounds: Tensor, tokens: int, *, distributed: bool = False) -> Shares:
    """Shares of B sequences of ``tokens`` tokens.

    Args:
        bounds: (B, P - 1) int64, ascending: where the shards after the first begin.
        tokens: T, class token included.
        distributed: every shard holds a copy of the class token.
    """
    place = torch.arange(tokens)
    owner = (place[None, :, None] >= bounds[:, None, :]).sum(2)  # (B, T)
    if not distributed:
        return Shares(owner)
    count = bounds.shape[1] + 1
    copies = torch.arange(count).expand(len(bounds), -1)
    return Shares(torch.cat([copies, owner[:, 1:]], dim=1), count)


def even_bounds(tokens: int, peers: int, batch: int) -> Tensor:
    """Bounds (batch, peers - 1) of even shards, as the engine cuts them."""
    return torch.tensor([tokens * i // peers for i in range(1, peers)]).expand(batch, -1)


def arrange(embedded: Tensor, held: Shares) -> Tensor:
    """Rows (T', B, D) of embedded sequences (B, T, D): class token copies in front."""
    x = embedded.transpose(0, 1)
    if held.copies:
        x = torch.cat([x[:1].expand(held.copies, -1, -1), x[1:]])
    return x


def mixed_block(block: Block, x: Tensor, mask: Tensor, rebuilt: Tensor | None) -> Tensor:
    """A block's output (T, B, D) of its input ``x``; ``rebuilt`` (S, B, D) is n as others hold it.

    With ``rebuilt`` None the others' rows are exact. S is T, or 0 where no row attends others;
    ``mask`` is (B, 1, T, T + S).
    """
    query, rows = block.project(block.normalize(x), 0)
    others = rows if rebuilt is None else rows[:0]
    if rebuilt is not None and len(rebuilt):
        others = block.key_value(rebuilt, 0)
    both = torch.cat([rows, others]).permute(2, 1, 3, 0, 4)  # (2, B, H_kv, 2T, E)
    groups = query.shape[3]
    key, value = (
        part.unsqueeze(2).expand(-1, -1, groups, -1, -1).flatten(1, 2) for part in both.unbind(0)
    )
    wide = query.permute(1, 2, 3, 0, 4).flatten(1, 2)  # (B, H, T, E)
    out = F.scaled_dot_product_attention(wide, key, value, attn_mask=mask)
    return block.mix(x, out.permute(2, 0, 1, 3).flatten(2))


def attention_from_others(block: Block, x: Tensor, mask: Tensor) -> Tensor:
    """(T, B): the attention that rows of other shards pay to each row, over all heads.

    ``x`` (T, B, D) is the block's input, ``mask`` (B, 1, T, 2T) as for :func:`mixed_block`. Takes
    (H, T, T) float32, one sequence after the other.
    """
    query, rows = block.project(block.normalize(x), 0)
    keys, found = rows.unbind(-3)[0], torch.zeros(x.shape[:2])
    for at in range(x.shape[1]):
        scores = torch.einsum("thge,she->hgts", query[:, at], keys[:, at])
        own, others = mask[at, 0].chunk(2, dim=-1)
        scores = (scores / math.sqrt(keys.shape[-1])).masked_fill(~(own | others), -math.inf)
        found[:, at] = scores.softmax(-1).masked_fill(~others, 0.0).sum((0, 1, 2))
    return found


def mixed_forward(
    model: Model, embedded: Tensor, held: Shares, first_block: int, rebuild: Rebuild
) -> Tensor:
    """Final hidden rows (T', B, D) of embedded sequences (B, T, D) under the given shares."""
    x, mask = arrange(embedded, held), held.masks(model.spec.causal)
    for index in range(model.spec.num_hidden_layers):
        block = model.block(index)
        known = index < first_block
        x = mixed_block(block, x, mask, None if known else rebuild(index, block.normalize(x)))
    return model.final(x)


def pooled_class(hidden: Tensor, held: Shares) -> Tensor:
    """The class row (B, D) of final hidden rows: the mean over its copies where there are any."""
    return hidden[: held.copies].mean(0) if held.copies else hidden[0]


def pooled_mean(hidden: Tensor, held: Shares) -> Tensor:
    """The mean row (B, D) of final hidden rows; copies of the class token count as one token."""
    if not held.copies:
        return hidden.mean(0)
    tokens = hidden[held.copies :]
    return (hidden[: held.copies].mean(0) + tokens.sum(0)) / (len(tokens) + 1)
