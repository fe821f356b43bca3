"""What an error costs: the metric and its coordinates, their groups, and codewords in them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from astra_mesh.quant.frame import (
    balance,
    balanced_order,
    kv_metric,
    make_frame,
    mixed_metric,
)
from astra_mesh.quant.kmeans import assign, kmeans
from astra_mesh.quant.mixed import arrange, even_bounds, mixed_block, pooled_class, shares
from astra_mesh.quant.sensitivity import sensitivities
from tests.unit.engine.plans import input_of
from tests.unit.families.making import make_model


@pytest.mark.parametrize(("kind", "task"), [("gpt2", "generate"), ("vit", "classify")])
@pytest.mark.parametrize("distributed", [False, True])
def test_the_sensitivity_predicts_how_far_answers_move(
    kind: str, task: str, distributed: bool
) -> None:
    """Errors along its first axis change the answers more than others of the same size."""
    model = make_model(kind)
    inputs = [input_of(model, 16, seed) for seed in range(32)]
    embedded = torch.stack([model.embed(one, 0, 16) for one in inputs])
    held = shares(
        even_bounds(16, 4, 32), 16, distributed=distributed and model.spec.has_class_token
    )
    batches = [(embedded, held)]
    found = sensitivities(model, batches, 1, task, torch.Generator().manual_seed(0))
    assert [float(one.trace()) > 0 for one in found] == [False, True, True]
    assert sum(float(one.trace()) for one in found) == pytest.approx(1.0)
    for one in found[1:]:
        assert torch.equal(one, one.T)
        assert float(torch.linalg.eigvalsh(one)[0]) > -1e-9
    axes = torch.linalg.eigh(found[1])[1].float()

    def moved(axis: Tensor) -> float:
        """KL of the answers when the others hold n of block 1 with an error along ``axis``."""

        def answer(size: float) -> Tensor:
            x, mask = arrange(embedded, held), held.masks(model.spec.causal)
            for index in range(3):
                block = model.block(index)
                n = block.normalize(x) + (size * axis if index == 1 else 0.0)
                x = mixed_block(block, x, mask, n)
            hidden = model.final(x)
            wide = model.logits(hidden) if task == "generate" else None
            if wide is None:
                wide = model.classify(pooled_class(hidden, held))
            return wide.log_softmax(-1)

        exact, other = answer(0.0), answer(0.1)
        return float((exact.exp() * (exact - other)).sum(-1).mean())

    most, least = moved(axes[:, -1]), moved(axes[:, 0])
    assert most > 2 * least


def test_the_metric_measures_errors_of_keys_and_values() -> None:
    model = make_model("gpt2")
    block = model.block(1)
    generator = torch.Generator().manual_seed(5)
    n = torch.randn(400, 32, generator=generator) @ torch.randn(32, 32, generator=generator)
    residual = n - n.mean(0)
    frame = make_frame(residual, kv_metric(residual, block))
    y = residual @ frame.analysis.T
    torch.testing.assert_close(
        y.var(0, correction=0).double(), frame.variances, rtol=1e-3, atol=1e-6
    )
    assert bool((frame.variances.diff() <= 0).all())
    covariance = y.T @ y / len(y)
    off = covariance - covariance.diag().diag()
    assert off.abs().max() < 1e-4 * covariance.max()  # the principal axes
    back = y @ frame.synthesis.T
    exact, found = (v @ block.kv_weight.T for v in (residual, back))
    torch.testing.assert_close(found, exact, atol=2e-3, rtol=1e-3)
    unit = torch.cat(
        [part / part.square().sum(1).mean().sqrt() for part in exact.chunk(2, dim=1)], dim=1
    )
    first, second = y[:200] - y[200:], unit[:200] - unit[200:]
    torch.testing.assert_close(first.norm(dim=1), second.norm(dim=1), rtol=1e-3, atol=1e-3)


def test_directions_that_no_error_counts_in_are_guessed_from_the_others() -> None:
    """With few keys and values the metric is blind for some; the regression fills them."""
    model = make_model("llama")  # 2 x 16 rows of keys and values for 32 dimensions
    block = model.block(1)
    weight = block.qkv.weight
    with torch.no_grad():
        weight[-16:] = weight[-32:-16]  # values that see what keys see
    generator = torch.Generator().manual_seed(5)
    n = torch.randn(4000, 32, generator=generator) @ torch.randn(32, 32, generator=generator)
    residual = n - n.mean(0)
    frame = make_frame(residual, kv_metric(residual, block))
    assert frame.analysis.shape == (16, 32)
    back = residual @ frame.analysis.T @ frame.synthesis.T
    exact, found = (v @ block.kv_weight.T for v in (residual, back))
    torch.testing.assert_close(found, exact, atol=5e-3, rtol=1e-3)
    left = (residual - back).square().sum() / residual.square().sum()
    best = torch.linalg.lstsq(residual @ frame.analysis.T, residual).solution
    wanted = (residual - residual @ frame.analysis.T @ best).square().sum()
    assert float(left) == pytest.approx(float(wanted / residual.square().sum()), rel=1e-3)


def test_metrics_mix_by_their_traces() -> None:
    one, other = torch.eye(4).double() * 5, torch.diag(torch.tensor([1.0, 0, 0, 0])).double()
    assert torch.equal(mixed_metric(one, None, 2.0), torch.eye(4).double() / 4)
    mixed = mixed_metric(one, other * 7, 2.0)
    assert mixed.diag().tolist() == [2.25, 0.25, 0.25, 0.25]
    assert torch.equal(mixed_metric(one, other * 0, 2.0), torch.eye(4).double() / 4)


@pytest.mark.parametrize(("count", "groups"), [(22, 4), (32, 32), (5, 8), (7, 1), (3, 2)])
def test_orders_hold_every_coordinate_once(count: int, groups: int) -> None:
    order = balanced_order(torch.rand(count, generator=torch.Generator().manual_seed(1)), groups)
    width = -(-count // groups)
    assert order.shape == (groups * width,)
    assert sorted(order[order < count].tolist()) == list(range(count))
    assert (order[order >= count] == count).all()


def test_groups_are_balanced_and_hold_every_dimension_once() -> None:
    values = torch.logspace(3, -3, 22, dtype=torch.float64)
    members = balance(values, 4)
    assert sorted(i for group in members for i in group) == list(range(22))
    assert max(map(len, members)) == 6
    full = [group for group in members if len(group) == 6]
    totals = [float(values[group].log().sum()) for group in full]
    assert max(totals) - min(totals) < 3.0  # in order of falling variance they would differ by 25


def test_kmeans_improves_and_moves_idle_codewords() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    data = (corners.repeat(50, 1) + 0.1 * torch.randn(200, 2, generator=generator)).unsqueeze(0)

    def error(iterations: int) -> float:
        words = kmeans(data, 8, iterations, torch.Generator().manual_seed(1))
        return float((data[0] - words[0][assign(data, words)[0]]).square().sum())

    errors = [error(count) for count in (0, 1, 2, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 200 * 2 * 0.1**2 * 1.2  # every corner has a codeword
    crowd = torch.cat([torch.zeros(1, 190, 2), 5 + torch.randn(1, 10, 2, generator=generator)], 1)
    words = kmeans(crowd, 8, 20, torch.Generator().manual_seed(1))
    assert len(assign(crowd, words).unique()) > 4  # it started with nearly all of them at zero
