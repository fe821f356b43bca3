"""Mixed-precision attention against a plain implementation of it.

The oracle works on all tokens at once, with the weights as the checkpoint has them: for each query
one softmax over explicit scores, keys and values exact for its own shard's tokens and rebuilt from
codes for the others. It has no partial attention, no log-sum-exp and none of the engine's code.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from astra_mesh.engine.attention import attend, merge
from astra_mesh.engine.reference import hidden_rows, pooled, run_plan
from astra_mesh.families import Model, ModelInput
from astra_mesh.plan.layout import ClassToken, Layout, make_layout
from astra_mesh.quant.codecs import VectorCodec
from tests.unit.engine.plans import close, cut, input_of, random_codec
from tests.unit.families.making import KINDS, make_model


class Oracle:
    """``rows`` are all rows of all shards in order, copies of the class token included."""

    def __init__(self, model: Model, layout: Layout, codec: VectorCodec, inputs: ModelInput):
        self.model, self.layout, self.codec = model, layout, codec
        owners, positions = [], []
        for shard, (start, stop) in enumerate(layout.bounds):
            copied = [0] if layout.distributed and start > 0 and stop > start else []
            positions += [*copied, *range(start, stop)]
            owners += [shard] * (len(copied) + stop - start)
        self.owner, self.position = torch.tensor(owners), torch.tensor(positions)
        self.x = model.embed(inputs, 0, model.count_tokens(inputs))[self.position]
        for block in range(layout.blocks):
            self._block(block)

    def _visible(self) -> tuple[Tensor, Tensor]:
        """(rows, rows) bool: keys that a query sees exactly, and keys that it sees from codes."""
        same = self.owner[:, None] == self.owner[None, :]
        past = self.position[:, None] >= self.position[None, :]
        sent = torch.ones_like(self.position, dtype=torch.bool)
        if self.layout.distributed:
            sent = self.position > 0
        if self.layout.causal:
            return same & past, ~same & past & sent
        return same, ~same & sent.expand_as(same)

    def _block(self, index: int) -> None:
        block, spec = self.model.block(index), self.model.spec
        x = self.x
        n = block.normalize(x)
        rebuilt = n
        if index >= self.codec.first_block:
            codes = self.codec.encode(index, x, self.codec.stages)
            rebuilt = self.codec.rebuild(index, codes)
            if self.codec.name == "astra":
                rebuilt = block.normalize(rebuilt)
        wide = [
            torch.nn.functional.linear(v, block.qkv.weight, block.qkv.bias) for v in (n, rebuilt)
        ]
        q, kv = spec.q_size, spec.kv_size
        query = self._heads(wide[0][:, :q], spec.num_attention_heads, block.q_norm, block.rope)
        heads = []
        for head in range(spec.num_attention_heads):
            group = head // (spec.num_attention_heads // spec.num_key_value_heads)
            scores, values = [], []
            for w in wide:
                keys = self._heads(
                    w[:, q : q + kv], spec.num_key_value_heads, block.k_norm, block.rope
                )
                scores.append(query[:, head] @ keys[:, group].T / math.sqrt(spec.head_dim))
                values.append(w[:, q + kv :].view(len(x), -1, spec.head_dim)[:, group])
            exact, coded = self._visible()
            weights = torch.cat(
                [
                    scores[0].masked_fill(~exact, -torch.inf),
                    scores[1].masked_fill(~coded, -torch.inf),
                ],
                dim=1,
            ).softmax(-1)
            heads.append(weights @ torch.cat(values))
        self.x = block.mix(x, torch.cat(heads, dim=1))

    def _heads(self, wide: Tensor, heads: int, norm: object, rope: object) -> Tensor:
        """(rows, heads, E), normalized and rotated pair by pair."""
        found = wide.reshape(len(wide), heads, -1)
        if norm is not None:
            found = norm(found)  # type: ignore[operator]
        if rope is None:
            return found
        half = found.shape[-1] // 2
        turns = torch.arange(half) / half
        angle = self.position[:, None, None] * 10000.0**-turns
        first, second = found[..., :half], found[..., half:]
        return torch.cat(
            [
                first * angle.cos() - second * angle.sin(),
                first * angle.sin() + second * angle.cos(),
            ],
            dim=-1,
        )

    def hidden(self) -> Tensor:
        """Final rows of all tokens; of the class token the first copy."""
        first = [int((self.position == p).nonzero()[0]) for p in range(self.layout.tokens)]
        return self.model.final(self.x[first])

    def class_mean(self) -> Tensor:
        return self.model.final(self.x[self.position == 0]).mean(0)


CASES = [(kind, "single") for kind in KINDS] + [("vit", "distributed"), ("bert", "distributed")]


@pytest.mark.parametrize("codec", ["vq", "astra"])
@pytest.mark.parametrize(("kind", "class_token"), CASES)
@pytest.mark.parametrize("edges", [[5, 6, 11], [8], [1, 2, 3, 4, 5, 6]])
def test_plan_equals_the_oracle(
    kind: str, class_token: ClassToken, codec: str, edges: list[int]
) -> None:
    model = make_model(kind)
    coder = random_codec(model, codec, stages=2 if codec == "vq" else 1)
    inputs = input_of(model, 16)
    layout = make_layout(
        model.spec,
        cut(16, edges),
        pooling="all",
        first_block=coder.first_block,
        class_token=class_token,
        stages=coder.stages,
    )
    runs = run_plan(model, layout, coder, inputs)
    oracle = Oracle(model, layout, coder, inputs)
    assert close(hidden_rows(runs), oracle.hidden())
    exact = make_layout(model.spec, [(0, 16)], pooling="all")
    alone = hidden_rows(run_plan(model, exact, coder, inputs))
    assert not close(oracle.hidden(), alone, 0.01)  # the codes do change something


@pytest.mark.parametrize("kind", ["vit", "bert"])
@pytest.mark.parametrize("class_token", ["single", "distributed"])
def test_pooled_class_token(kind: str, class_token: ClassToken) -> None:
    model = make_model(kind)
    coder, inputs = random_codec(model), input_of(model, 16)
    layout = make_layout(
        model.spec, cut(16, [3, 3, 9]), pooling="class", class_token=class_token, stages=2
    )
    oracle = Oracle(model, layout, coder, inputs)
    assert close(pooled(run_plan(model, layout, coder, inputs)), oracle.class_mean())


def test_pooled_mean_counts_copies_of_the_class_token_once() -> None:
    model = make_model("bert")
    coder, inputs = random_codec(model), input_of(model, 16)
    layout = make_layout(
        model.spec, cut(16, [3, 3, 9]), pooling="mean", class_token="distributed", stages=2
    )
    oracle = Oracle(model, layout, coder, inputs)
    rows = oracle.model.final(oracle.x)
    copies = rows[oracle.position == 0].mean(0)
    wanted = (copies + rows[oracle.position > 0].sum(0)) / 16
    assert close(pooled(run_plan(model, layout, coder, inputs)), wanted)


@pytest.mark.parametrize(("groups", "sizes"), [(1, [1, 7, 3]), (4, [20, 1]), (2, [5])])
def test_merging_parts_equals_one_softmax(groups: int, sizes: list[int]) -> None:
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(2, groups, 6, 8, generator=generator)
    rows = torch.randn(sum(sizes), 2, 2, 8, generator=generator) * 3
    parts = [attend(query, part) for part in rows.split(sizes)]
    key, value = rows[:, 0].transpose(0, 1), rows[:, 1].transpose(0, 1)
    weights = (query @ key.unsqueeze(1).mT / math.sqrt(8)).softmax(-1)
    wanted = (weights @ value.unsqueeze(1)).permute(2, 0, 1, 3).reshape(6, -1)
    torch.testing.assert_close(merge(parts), wanted, atol=2e-6, rtol=0)


def test_attention_of_nothing_is_refused() -> None:
    """The kernel underneath ends the whole process there."""
    query, rows = torch.zeros(1, 1, 2, 8), torch.zeros(3, 2, 1, 8)
    with pytest.raises(ValueError, match="at least one"):
        attend(query, rows[:0])
    with pytest.raises(ValueError, match="at least one"):
        attend(query[:, :, :0], rows)
