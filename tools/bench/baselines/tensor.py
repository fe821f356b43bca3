"""Tensor parallelism (Megatron; Shoeybi et al., arXiv 1909.08053).

Each device holds some heads and some of the feed-forward's width: columns of the first matrix, rows
of the second. The partial sums of all tokens are added by a ring all-reduce twice a block, in fp32.
Where heads do not divide among the devices some have one more; key/value heads that several devices
need are computed by each of them. In the last block only the row that the head reads goes on after
the attention.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from astra_mesh.engine.attention import attend, merge
from astra_mesh.families import Model
from astra_mesh.families.block import Block, FeedForward, Linear
from astra_mesh.families.packed import PackedLinear, pack
from tools.bench.baselines.run import Run, even


@dataclass
class TensorParallel:
    """See the module. Keeps the slices of one model for one number of members."""

    _made: dict[tuple[int, int], list[Slice]] = field(default_factory=dict)

    async def __call__(self, run: Run) -> Tensor | None:
        """See :class:`tools.bench.baselines.run.Baseline`."""
        slices = await run.compute(self._slices, run)
        x = await run.compute(run.timed, "compute_s", _embed, run)
        for index, part in enumerate(slices):
            block = run.model.block(index)
            last = index == len(slices) - 1
            keep = slice(run.wanted, run.wanted + 1) if last else slice(None)
            summed = await run.compute(run.timed, "compute_s", part.attention, x, keep)
            summed = await _add_up(run, summed)
            x, wide = await run.compute(
                run.timed, "compute_s", part.between, block, x[keep], summed
            )
            summed = await _add_up(run, wide)
            x = await run.compute(run.timed, "compute_s", part.after, block, x, summed)
        return (await run.compute(run.model.final, x))[0]

    def _slices(self, run: Run) -> list[Slice]:
        """Made once for a number of members; the memory of other numbers is freed."""
        key = run.members, run.rank
        if key not in self._made:
            self._made.clear()
            count = run.model.spec.num_hidden_layers
            self._made[key] = [
                cut(run.model, index, run.members, run.rank) for index in range(count)
            ]
        return self._made[key]


def _embed(run: Run) -> Tensor:
    return run.model.embed(run.inputs, 0, run.model.count_tokens(run.inputs))


async def _add_up(run: Run, part: Tensor) -> Tensor:
    tag = run.tag(2 * run.members)
    found = await run.group.all_reduce(run.members, tag, part.float().contiguous().numpy())
    return torch.from_numpy(found)


@dataclass(frozen=True)
class Slice:
    """What one device holds of one block; biases of the second matrices are added after the sum."""

    block: Block  # with the own heads and the own width, without those biases

    def attention(self, x: Tensor, keep: slice) -> Tensor:
        """Partial sum (T, D) of the attention's output for block input ``x`` (T, D).

        ``keep``: the rows that go on.
        """
        block, causal = self.block, self.block.spec.causal
        query, rows = block.query_key_value(block.normalize(x), 0)
        if keep != slice(None):
            query, rows = query[:, :, keep], rows[: keep.stop] if causal else rows
        part = attend(query, rows, causal and keep == slice(None))
        return block.out(merge([part]))  # type: ignore[no-any-return]

    def between(self, whole: Block, x: Tensor, summed: Tensor) -> tuple[Tensor, Tensor]:
        """From the attention's sum (T, D): the residual stream, and the partial sum of the
        feed-forward."""
        x = x + _biased(summed, whole.out)
        if whole.post_norm:
            x = whole.norm_1(x)
            return x, self.block.ffn(x)
        return x, self.block.ffn(whole.norm_2(x))

    def after(self, whole: Block, x: Tensor, summed: Tensor) -> Tensor:
        """The block's output (T, D)."""
        x = x + _biased(summed, whole.ffn.down)
        return whole.norm_2(x) if whole.post_norm else x


def _biased(summed: Tensor, layer: Linear) -> Tensor:
    return summed if layer.bias is None else summed + layer.bias


def cut(model: Model, index: int, members: int, rank: int) -> Slice:
    """The slice of block ``index`` that one of ``members`` devices holds."""
    whole, spec = model.block(index), model.spec
    heads = range(*even(spec.num_attention_heads, members)[rank])
    if not heads:
        raise ValueError(f"{spec.num_attention_heads} heads are too few for {members} devices")
    per, size = spec.heads_per_kv, spec.head_dim
    kv_of = [head // per for head in heads]
    kv_heads = sorted(set(kv_of))
    if len(kv_heads) > 1 and len(heads) != per * len(kv_heads):
        kv_heads = kv_of  # unequal groups: each query head gets a key/value head of its own
    rows = _head_rows(heads, size, 0)
    rows += _head_rows(kv_heads, size, spec.q_size)
    rows += _head_rows(kv_heads, size, spec.q_size + spec.kv_size)
    columns = _head_rows(heads, size, 0)
    own = replace(spec, num_attention_heads=len(heads), num_key_value_heads=len(kv_heads))
    bias = None if whole.qkv.bias is None else whole.qkv.bias[rows]
    block = Block(
        own,
        post_norm=whole.post_norm,
        norm_1=whole.norm_1,
        norm_2=whole.norm_2,
        qkv=Linear(whole.qkv.weight[rows], bias),
        out=Linear(whole.out.weight[:, columns]),
        ffn=_cut_feed_forward(whole.ffn, members, rank),
        rope=whole.rope,
        q_norm=whole.q_norm,
        k_norm=whole.k_norm,
    ).requires_grad_(False)
    if isinstance(whole.ffn.up, PackedLinear):
        pack(block, fuses=whole.ffn.up.fuses)
    return Slice(block)


def _head_rows(heads: range | list[int], size: int, first: int) -> list[int]:
    return [first + head * size + i for head in heads for i in range(size)]


def _cut_feed_forward(ffn: FeedForward, members: int, rank: int) -> FeedForward:
    width = ffn.down.weight.shape[1]
    own = list(range(*even(width, members)[rank]))
    rows = own + [width + i for i in own] if ffn.gated else own
    bias = None if ffn.up.bias is None else ffn.up.bias[rows]
    return FeedForward(
        Linear(ffn.up.weight[rows], bias), Linear(ffn.down.weight[:, own]), ffn.act, ffn.gated
    )
