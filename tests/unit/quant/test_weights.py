"""Calibration rows count by the attention that others pay to them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from astra_mesh.quant import block_fit
from astra_mesh.quant.block_fit import UNSEEN, Batch, BlockFit, Sums, energy, seeded
from astra_mesh.quant.coders import BlockCoder
from astra_mesh.quant.kmeans import kmeans
from astra_mesh.quant.mixed import attention_from_others, even_bounds, shares
from astra_mesh.quant.options import FitOptions
from tests.unit.families.making import make_model

OPTIONS = FitOptions(history=0, codewords=8, rates=(12,), groups=4, sensitivity=0)


def batch_of(kind: str, peers: int, tokens: int = 12, count: int = 5) -> tuple[Batch, BlockFit]:
    model = make_model(kind)
    x = torch.randn(tokens, count, model.spec.hidden_size, generator=seeded(0, kind))
    held = shares(even_bounds(tokens, peers, count), tokens)
    batch = Batch(x.transpose(0, 1), held, held.masks(model.spec.causal), x)
    return batch, BlockFit(OPTIONS, model.block(1), 1, None)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert", "vit"])
@torch.no_grad()
def test_it_is_the_attention_of_the_engine_s_block(kind: str) -> None:
    """Values of one row that are one elsewhere tell what share of each output comes from it."""
    batch, fit = batch_of(kind, 3)
    block, spec = fit.block, make_model(kind).spec
    found = attention_from_others(block, batch.x, batch.mask)
    query, rows = block.project(block.normalize(batch.x), 0)
    for at in range(batch.x.shape[1]):
        wanted = torch.zeros(len(batch.x))
        for head in range(spec.num_attention_heads):
            shared = head // spec.heads_per_kv
            q = query[:, at].flatten(1, 2)[:, head]
            scores = q @ rows[:, at, 0, shared].T / math.sqrt(spec.head_dim)
            if spec.causal:
                scores = scores + torch.full_like(scores, -math.inf).triu(1)
            share, owner = scores.softmax(-1), batch.held.owner[at]
            wanted += (share * (owner[:, None] != owner[None, :])).sum(0)
        torch.testing.assert_close(found[:, at], wanted)
    last = batch.held.owner[0] == 2
    assert bool((found[last] == 0).all()) == spec.causal  # nobody comes after the last peer


@torch.no_grad()
def test_weights_are_one_on_average_and_never_nothing() -> None:
    batch, fit = batch_of("gpt2", 3)
    (weight,) = fit._weights([batch])
    assert float(weight.mean()) == pytest.approx(1)
    assert float(weight.min()) == pytest.approx(UNSEEN)
    alone, fit = batch_of("gpt2", 1)
    assert torch.equal(fit._weights([alone])[0], torch.ones(60))
    fit.options = FitOptions(attention=None)
    assert torch.equal(fit._weights([batch])[0], torch.ones(60))


@pytest.mark.parametrize("past", [False, True])
def test_rows_of_weight_two_are_rows_that_are_there_twice(past: bool) -> None:
    n, before = torch.randn(2, 60, 6, generator=seeded(0, "rows")).unbind()
    weight = torch.ones(60)
    weight[:20] = 2
    heavy, twice = Sums(), Sums()
    heavy.add(before if past else None, n, weight)
    for rows in (slice(None), slice(20)):
        part = n[rows]
        twice.add(before[rows] if past else None, part, torch.ones(len(part)))
    torch.testing.assert_close(heavy.mean(), twice.mean())
    for one, other in zip(heavy.solve(1e-3), twice.solve(1e-3), strict=True):
        assert (one is None) == (other is None) == (not past and one is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
    assert energy(n, weight / weight.mean()) == pytest.approx(
        float(torch.cat([n, n[:20]]).square().sum(1).mean())
    )


def test_codewords_are_weighed_means() -> None:
    y = torch.randn(2, 60, 3, generator=seeded(0, "y"))
    alike = torch.ones(60)
    assert torch.equal(kmeans(y, 16, 5, seeded(0, "x")), kmeans(y, 16, 5, seeded(0, "x"), alike))
    weight = torch.rand(60, generator=seeded(0, "w")) + 0.1
    found = kmeans(y, 1, 3, seeded(0, "x"), weight)
    wanted = (weight[:, None] * y).sum(1, keepdim=True) / weight.sum()
    torch.testing.assert_close(found, wanted)


@torch.no_grad()
def test_what_others_attend_to_is_coded_better(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, fit = batch_of("gpt2", 3, count=60)

    def first(block: object, x: Tensor, mask: Tensor) -> Tensor:
        found = torch.zeros(x.shape[:2])
        found[0] = 1
        return found

    monkeypatch.setattr(block_fit, "attention_from_others", first)
    n = fit.block.normalize(batch.x)
    errors = []
    for power in (None, 1.0):
        fit.options = FitOptions(**(vars(OPTIONS) | {"attention": power}))
        coder = BlockCoder(fit.run([batch], OPTIONS.stage_groups).book)
        assert coder.book.center is not None
        residual = batch.coded(n) - coder.book.center
        added = block_fit.added_rows(coder, residual)
        errors.append((added - residual).square().sum(1).view(len(n), -1).mean(1))
    assert float(errors[1][0]) < 0.8 * float(errors[0][0])
    assert float(errors[1][1:].mean()) > float(errors[0][1:].mean())
