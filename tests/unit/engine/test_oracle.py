"""Mixed-precision attention against a plain implementation of it.

The oracle works on all tokens at once, with the weights as the checkpoint has them: for each query
one softmax over explicit scores, keys and values exact for its own shard's tokens and rebuilt from
codes for the others. It has no partial attention, no log-sum-exp and none of the engine's code.
What codes stand for is computed from the codebook's tensors by the formulas of quant/codebook.py.
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
from tests.unit.engine.plans import (
    HISTORIES,
    Rebuilt,
    close,
    cut,
    deep_model,
    input_of,
    random_codec,
)
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
        known = model.block(0).normalize(self.x)
        used = sorted(set(layout.stages.values()))
        self.senders = {stages: codec.sender(stages, known) for stages in used}
        self.rebuilt = {stages: Rebuilt(codec.codebook, stages, known) for stages in used}
        for block in range(layout.blocks):
            self._block(block)

    def _visible(self) -> tuple[Tensor, dict[int, Tensor]]:
        """(rows, rows) bool: keys that a query sees exactly, and those from codes, by stages."""
        same = self.owner[:, None] == self.owner[None, :]
        coded = ~same
        if self.layout.distributed:
            coded = coded & (self.position > 0)
        if self.layout.causal:
            past = self.position[:, None] >= self.position[None, :]
            same, coded = same & past, coded & past
        rates = torch.zeros_like(coded, dtype=torch.int64)
        for (sender, receiver), stages in self.layout.stages.items():
            link = (self.owner[:, None] == receiver) & (self.owner[None, :] == sender)
            rates[link] = stages
        return same, {stages: coded & (rates == stages) for stages in self.senders}

    def _held(self, index: int, n: Tensor) -> dict[int, Tensor]:
        """What others hold of n (T, D), by number of stages."""
        if index < self.codec.first_block:
            return dict.fromkeys(self.senders, n)
        found = {}
        for stages, sender in self.senders.items():
            held = self.rebuilt[stages].take(index, sender.encode(index, self.x))
            astra = self.codec.name == "astra"
            found[stages] = self.model.block(index).normalize(held) if astra else held
        return found

    def _block(self, index: int) -> None:
        block, spec = self.model.block(index), self.model.spec
        x = self.x
        n = block.normalize(x)
        exact, coded = self._visible()
        parts = [(n, exact)]
        parts += [(held, coded[stages]) for stages, held in self._held(index, n).items()]
        wide = [torch.nn.functional.linear(v, block.qkv.weight, block.qkv.bias) for v, _ in parts]
        q, kv = spec.q_size, spec.kv_size
        query = self._heads(wide[0][:, :q], spec.num_attention_heads, block.q_norm, block.rope)
        heads = []
        for head in range(spec.num_attention_heads):
            group = head // (spec.num_attention_heads // spec.num_key_value_heads)
            scores, values = [], []
            for w, (_, visible) in zip(wide, parts, strict=True):
                keys = self._heads(
                    w[:, q : q + kv], spec.num_key_value_heads, block.k_norm, block.rope
                )
                score = query[:, head] @ keys[:, group].T / math.sqrt(spec.head_dim)
                scores.append(score.masked_fill(~visible, -torch.inf))
                values.append(w[:, q + kv :].view(len(x), -1, spec.head_dim)[:, group])
            heads.append(torch.cat(scores, dim=1).softmax(-1) @ torch.cat(values))
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
CODECS = [("astra", 0), *(("vq", history) for history in HISTORIES)]


@pytest.mark.parametrize(("codec", "history"), CODECS)
@pytest.mark.parametrize(("kind", "class_token"), CASES)
@pytest.mark.parametrize("edges", [[5, 6, 11], [8], [1, 2, 3, 4, 5, 6]])
def test_plan_equals_the_oracle(
    kind: str, class_token: ClassToken, codec: str, history: int, edges: list[int]
) -> None:
    model = make_model(kind) if history in (0, 2) else deep_model(kind)
    coder = random_codec(model, codec, history=history)
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


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("kind", ["gpt2", "qwen3", "vit"])
def test_links_with_different_numbers_of_stages_equal_the_oracle(kind: str, history: int) -> None:
    """Each number of stages is predicted from what it sent itself."""
    model = deep_model(kind)
    coder, inputs = random_codec(model, stages=3, history=history), input_of(model, 16)
    links = [(i, j) for i in range(4) for j in range(4) if i != j]
    layout = make_layout(
        model.spec,
        cut(16, [5, 5, 11]),
        pooling="all",
        stages={link: 1 + sum(link) % 3 for link in links},
    )
    found = hidden_rows(run_plan(model, layout, coder, inputs))
    assert close(found, Oracle(model, layout, coder, inputs).hidden())
    same = make_layout(model.spec, layout.bounds, pooling="all", stages=3)
    assert not close(found, hidden_rows(run_plan(model, same, coder, inputs)), 0.01)


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
