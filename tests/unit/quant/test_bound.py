"""The attention-error bound holds for every query, carries over to other data, and is not idle."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from astra_mesh.families import Model
from astra_mesh.families.block import Block
from astra_mesh.quant.bound import (
    AttentionBound,
    BlockStatistics,
    attention_sensitivity,
    estimate,
    residual_moment,
    total_variation,
)
from astra_mesh.quant.mixed import mixed_block, shares
from tests.unit.families.making import CAUSAL, KINDS, make_model

TOKENS, BATCH = 16, 12
LEVELS = (1e-4, 0.03, 0.3, 1.0, 5.0, 100.0)  # residuals in units of n


@dataclass(frozen=True)
class Case:
    """One block and what one batch of residuals makes of it; float64, so that rounding is none."""

    block: Block
    x: Tensor
    n: Tensor
    mask: Tensor

    def noisy(self, level: float, seed: int = 0, *, coherent: bool = False) -> Tensor:
        """``n`` with Gaussian residuals; coherent: the same one for all tokens of a sequence."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(self.n.shape, generator=generator, dtype=self.n.dtype)
        return self.n + level * self.n.std() * (noise[:1] if coherent else noise)

    def half(self, second: bool) -> Case:
        part = slice(BATCH // 2, None) if second else slice(BATCH // 2)
        return replace(self, x=self.x[:, part], n=self.n[:, part], mask=self.mask[part])


def make_case(kind: str, *, distributed: bool = False) -> Case:
    """Random inputs through the first block, so that the second one's are no embeddings."""
    model: Model = make_model(kind, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    bounds = torch.randint(1, TOKENS, (BATCH, 2), generator=generator).sort(1).values
    held = shares(bounds, TOKENS, distributed=distributed)
    mask = held.masks(kind in CAUSAL)
    shape = (mask.shape[2], BATCH, model.spec.hidden_size)
    x = mixed_block(
        model.block(0), torch.randn(shape, generator=generator, dtype=torch.float64), mask, None
    )
    return Case(model.block(1), x, model.block(1).normalize(x), mask)


@pytest.fixture(scope="module", params=[*KINDS, "vit, class token copied"])
def case(request: pytest.FixtureRequest) -> Case:
    kind = request.param.split(",")[0]
    return make_case(kind, distributed=kind != request.param)


def violations(bound: Tensor, observed: Tensor) -> int:
    """How many queries err by more than their bound."""
    return int((observed > bound * (1 + 1e-9) + 1e-12).sum())


def attention_output(case: Case, rebuilt: Tensor | None) -> Tensor:
    """What the block's own forward adds to the residual stream, caught on its way: (T, B, D)."""
    caught: list[Tensor] = []
    hook = case.block.out.register_forward_hook(lambda *args: caught.append(args[-1]))
    mixed_block(case.block, case.x, case.mask, rebuilt)
    hook.remove()
    (found,) = caught
    return found


# --- every query ----------------------------------------------------------------------------------


def test_observed_is_what_the_mixed_forward_does(case: Case) -> None:
    rebuilt = case.noisy(0.3)
    error = attention_output(case, rebuilt) - attention_output(case, None)
    found = AttentionBound(case.block).observed(case.x, rebuilt, case.mask)
    torch.testing.assert_close(found, error.norm(dim=-1))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("coherent", [False, True])
def test_it_holds_for_every_query(case: Case, level: float, coherent: bool) -> None:
    bound, rebuilt = AttentionBound(case.block), case.noisy(level, coherent=coherent)
    found = bound.query_bound(case.x, rebuilt, case.mask)
    observed = bound.observed(case.x, rebuilt, case.mask)
    assert found.isfinite().all()
    assert observed.max() > 0
    assert violations(found, observed) == 0


@pytest.mark.parametrize("level", LEVELS)
def test_it_holds_with_residuals_that_seek_to_do_harm(level: float) -> None:
    """Up the gradient of the error itself, in steps of a fixed size per token."""
    case = make_case("gpt2")
    rebuilt = case.noisy(level)
    size = (rebuilt - case.n).norm(dim=-1, keepdim=True)
    exact = attention_output(case, None)
    for _ in range(8):
        rebuilt.requires_grad_()
        error = (attention_output(case, rebuilt) - exact).square().sum()
        (up,) = torch.autograd.grad(error, rebuilt)
        moved = rebuilt.detach() - case.n + size * torch.nn.functional.normalize(up, dim=-1)
        rebuilt = case.n + size * torch.nn.functional.normalize(moved, dim=-1)
    bound = AttentionBound(case.block)
    observed = bound.observed(case.x, rebuilt, case.mask)
    gentle = bound.observed(case.x, case.noisy(level), case.mask)
    assert observed.square().mean() > 1.5 * gentle.square().mean() or level > 1
    assert violations(bound.query_bound(case.x, rebuilt, case.mask), observed) == 0


@pytest.mark.parametrize("level", LEVELS)
def test_float32_needs_no_allowance_beyond_rounding(level: float) -> None:
    case = make_case("llama")
    bound = AttentionBound(case.block.float())
    at = case.x.float(), case.noisy(level).float(), case.mask
    found, observed = bound.query_bound(*at), bound.observed(*at)
    assert found.isfinite().all()
    assert (observed <= found * (1 + 1e-4) + 1e-5).all()


def test_no_residual_no_bound(case: Case) -> None:
    bound = AttentionBound(case.block)
    assert bound.query_bound(case.x, case.n, case.mask).max() == 0
    statistics = bound.collect(case.x, case.n, case.mask)
    assert statistics.bound == statistics.observed == statistics.sequence_bound == 0
    assert statistics.looseness == 1


def test_it_grows_with_the_residual(case: Case) -> None:
    bound = AttentionBound(case.block)
    found = [bound.collect(case.x, case.noisy(level), case.mask).bound for level in LEVELS]
    assert found == sorted(found)
    assert found[0] < 1e-2 * found[2]


def test_a_wrong_bound_is_caught(case: Case) -> None:
    """The check above can fail: coherent residuals come within a factor of two for some query."""
    bound, rebuilt = AttentionBound(case.block), case.noisy(0.03, coherent=True)
    found = bound.query_bound(case.x, rebuilt, case.mask)
    observed = bound.observed(case.x, rebuilt, case.mask)
    assert violations(found / 2, observed) > 0


def test_queries_without_remote_tokens_are_exact() -> None:
    case = make_case("gpt2")
    rebuilt = case.noisy(1.0)
    alone = ~case.mask[:, 0, :, TOKENS:].any(-1).T  # (T, B)
    bound = AttentionBound(case.block)
    assert alone.any()
    assert bound.query_bound(case.x, rebuilt, case.mask)[alone].max() == 0
    assert bound.observed(case.x, rebuilt, case.mask)[alone].max() == 0


# --- total variation ------------------------------------------------------------------------------


def test_total_variation_holds_and_is_sharp() -> None:
    generator = torch.Generator().manual_seed(3)
    for _ in range(200):
        low, high, mass = torch.rand(3, generator=generator, dtype=torch.float64)
        low, high = -4 * low, 4 * high
        share = torch.linspace(0, 1, 4001, dtype=torch.float64) * mass  # of weight, at one end
        exact = torch.stack([share, mass - share, (1 - mass).expand_as(share)])
        ends = torch.stack([high, low, torch.zeros(()).double()])[:, None]
        moved = exact * ends.exp()
        worst = (moved / moved.sum(0) - exact).abs().sum(0).max() / 2
        found = total_variation(mass, low, high)
        assert worst <= found + 1e-12
        assert found == pytest.approx(float(worst), rel=1e-5)


def test_total_variation_of_a_whole_softmax() -> None:
    width = torch.tensor([0.0, 1e-9, 0.1, 3.0, 200.0], dtype=torch.float64)
    found = total_variation(torch.ones(5).double(), -width / 2, width / 2)
    torch.testing.assert_close(found, torch.tanh(width / 4))
    assert total_variation(torch.zeros(5).double(), -width, width).max() < 1e-200


# --- statistics -----------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_what_one_half_says_holds_on_the_other(case: Case, level: float) -> None:
    bound = AttentionBound(case.block)
    fit, new = case.half(False), case.half(True)
    said = bound.collect(fit.x, fit.noisy(level, 1), fit.mask)
    error = bound.observed(new.x, new.noisy(level, 2), new.mask)
    assert error.square().mean().sqrt() <= said.bound
    assert (error.square().mean(0).sqrt() <= said.sequence_bound).all()
    assert said.sequence_bound >= said.bound
    for alpha in (0.5, 0.1, 0.01):
        assert (error > said.tail(alpha)).double().mean() <= alpha


def test_it_is_not_idle(case: Case) -> None:
    """Measured: 2.9 to 4.5 times the observed error for small residuals, below 7 for any."""
    bound = AttentionBound(case.block)
    small = bound.collect(case.x, case.noisy(0.01), case.mask)
    assert 1 < small.looseness < 5
    assert small.relative_bound < 0.1
    for level in LEVELS:
        assert bound.collect(case.x, case.noisy(level), case.mask).looseness < 10


def test_batches_merge(case: Case) -> None:
    bound, rebuilt = AttentionBound(case.block), case.noisy(0.3)
    whole = bound.collect(case.x, rebuilt, case.mask)
    parts = [
        bound.collect(case.x[:, at], rebuilt[:, at], case.mask[at])
        for at in (slice(5), slice(5, BATCH))
    ]
    merged = parts[0].merge(parts[1])
    assert merged.to_dict() == pytest.approx(whole.to_dict())
    assert (merged.sequences, merged.queries) == (BATCH, BATCH * len(case.x))


def test_statistics_survive_a_file(case: Case) -> None:
    found = AttentionBound(case.block).collect(case.x, case.noisy(0.3), case.mask)
    again = BlockStatistics.from_dict(json.loads(json.dumps(found.to_dict())))
    assert again == found
    assert isinstance(again.queries, int)
    with pytest.raises(KeyError):
        BlockStatistics.from_dict({"queries": 1})


# --- the estimate ---------------------------------------------------------------------------------


def test_the_estimate_from_the_residual_moment(case: Case) -> None:
    """Independent small residuals: what the estimate assumes, so it must come out right."""
    generator = torch.Generator().manual_seed(0)
    sensitive = torch.stack(
        [attention_sensitivity(case.block, case.x, case.mask, generator) for _ in range(30)]
    ).mean(0)
    bound = AttentionBound(case.block)
    errors, said = [], []
    for seed in range(10):
        rebuilt = case.noisy(0.003, seed)
        errors.append(bound.observed(case.x, rebuilt, case.mask).square().mean())
        said.append(estimate(sensitive, residual_moment(case.n, rebuilt)) ** 2)
    observed = math.sqrt(float(torch.stack(errors).mean()))
    assert math.sqrt(sum(said) / len(said)) == pytest.approx(observed, rel=0.1)
