"""Adapters: nothing at first, small, and gone into the weights in the end."""

from __future__ import annotations

import pytest
import torch

from astra_mesh.families.block import Linear
from astra_mesh.families.model import Model
from astra_mesh.tune.lora import adapt, merge, twin
from astra_mesh.tune.objective import alone
from tests.unit.families.making import BLOCKS, KINDS, D, make_model
from tests.unit.tune.making import batch_of

LAYERS = 4  # of a block: to queries, keys and values; from heads; up; down


def hidden(model: Model) -> torch.Tensor:
    with torch.no_grad():
        return alone(model, batch_of(model))[0]


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_start_as_nothing_and_merging_keeps_what_they_learned(kind: str) -> None:
    model = make_model(kind)
    plain, names = hidden(model), set(model.state_dict())
    adapters = adapt(model, 4, seed=0)
    assert len(adapters) == 2 * LAYERS * BLOCKS
    assert torch.equal(hidden(model), plain)
    with torch.no_grad():
        for one in adapters:
            one.add_(0.1 * torch.randn(one.shape))
    adapted = hidden(model)
    assert (adapted - plain).abs().max() > 0.1
    merge(model)
    torch.testing.assert_close(hidden(model), adapted)
    assert set(model.state_dict()) == names
    assert all(type(m) is Linear for m in model.block_list.modules() if isinstance(m, Linear))


def test_only_the_adapters_are_asked_to_learn() -> None:
    model = make_model("gpt2").requires_grad_(False)
    adapters = adapt(model, 4, seed=0)
    learning = {id(one) for one in model.parameters() if one.requires_grad}
    assert learning == {id(one) for one in adapters}
    assert {min(one.shape) for one in adapters} == {4}


@pytest.mark.parametrize("kind", KINDS)
def test_a_twin_has_the_same_weights_in_memory_and_no_adapters(kind: str) -> None:
    model = make_model(kind)
    plain = hidden(model)
    places = {one.data_ptr() for one in model.parameters()}
    other = twin(model)
    adapters = adapt(model, 4, seed=0)
    assert {one.data_ptr() for one in other.parameters()} == places
    with torch.no_grad():
        for one in adapters:
            one.add_(0.1 * torch.randn(one.shape))
    assert (hidden(model) - plain).abs().max() > 0.1
    assert torch.equal(hidden(other), plain)
    merge(model)
    assert torch.equal(hidden(other), plain)
    assert not any(one.requires_grad for one in other.parameters())


def test_ranks_beyond_a_matrix_are_cut() -> None:
    assert {min(one.shape) for one in adapt(make_model("gpt2"), 1000, seed=0)} == {D}


def test_a_seed_gives_the_same_start() -> None:
    one, same, other = (adapt(make_model("llama"), 2, seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[0], other[0])
