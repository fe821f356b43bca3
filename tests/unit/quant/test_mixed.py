"""Batches under masks equal the engine's shards, and one can train through them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor

from astra_mesh.engine.reference import hidden_rows, pooled, run_plan, run_solo
from astra_mesh.families import Model, ModelInput
from astra_mesh.families.spec import Pooling
from astra_mesh.plan.layout import ClassToken, make_layout
from astra_mesh.quant.codecs import PlainCodec, VectorCodec
from astra_mesh.quant.codes import Codec
from astra_mesh.quant.mixed import (
    Rebuild,
    Shares,
    arrange,
    even_bounds,
    mixed_block,
    mixed_forward,
    pooled_class,
    pooled_mean,
    shares,
)
from tests.unit.engine.plans import HISTORIES, close, cut, deep_model, input_of, random_codec
from tests.unit.families.making import KINDS, make_model

EDGES = [[5, 6, 11], [8, 12, 13], [1, 2, 15]]  # uneven shards, other ones for each sequence
TOKENS = 16
CASES = [(kind, "single") for kind in KINDS] + [("vit", "distributed"), ("bert", "distributed")]


def inputs_of(model: Model) -> list[ModelInput]:
    return [input_of(model, TOKENS, seed) for seed in range(len(EDGES))]


def embedded_of(model: Model, inputs: Sequence[ModelInput]) -> Tensor:
    """(B, T, D)."""
    return torch.stack([model.embed(one, 0, TOKENS) for one in inputs])


def share_out(class_token: ClassToken = "single") -> Shares:
    return shares(torch.tensor(EDGES), TOKENS, distributed=class_token == "distributed")


class Held:
    """What the others hold of whole batches, with a codebook."""

    def __init__(self, codec: VectorCodec, x: Tensor) -> None:
        """``x`` (T, B, D) is the input of the first block."""
        self.codec = codec
        known = codec.model.block(0).normalize(x)
        self.memory = codec.memory(known.flatten(0, 1))

    def __call__(self, block: int, n: Tensor) -> Tensor:
        codec, stages = self.codec, self.codec.stages
        rows, coder = n.flatten(0, 1), codec.coder(block, stages)
        predicted = codec.predicted(self.memory, block, coder.book, slice(None))
        assert predicted is not None
        codes = [one.T for one in coder.encode(rows - predicted)]
        added = codec.added(block, stages, codes)
        if self.memory is not None:
            self.memory.keep(block, slice(None), predicted, added)
        return (predicted + added).view_as(n)


def half(block: int, n: Tensor) -> Tensor:
    """What the codec fp16 sends."""
    return n.half().float()


def references(
    model: Model, codec: Codec, inputs: Sequence[ModelInput], pooling: Pooling, token: ClassToken
) -> Tensor:
    """The engine, one sequence after the other: (B, T, D), or the pooled rows (B, D)."""
    found = []
    for one, edges in zip(inputs, EDGES, strict=True):
        layout = make_layout(
            model.spec,
            cut(TOKENS, edges),
            pooling=pooling,
            first_block=codec.first_block,
            class_token=token,
            stages=codec.stages,
        )
        runs = run_plan(model, layout, codec, one)
        found.append(hidden_rows(runs) if pooling == "all" else pooled(runs))
    return torch.stack(found)


def all_rows(hidden: Tensor, held: Shares) -> Tensor:
    """(B, T, D) without copies of the class token, from (T', B, D)."""
    first = hidden[:1] if held.copies else hidden[:0]
    return torch.cat([first, hidden[held.copies :]]).transpose(0, 1)


def beside_the_engine(
    model: Model, codec: Codec, token: ClassToken, rebuild: Callable[[Tensor], Rebuild]
) -> Iterator[tuple[Pooling, Tensor, Tensor]]:
    """What a batch gives and what the engine does, for each pooling."""
    inputs, held = inputs_of(model), share_out(token)
    embedded = embedded_of(model, inputs)
    with torch.no_grad():
        maker = rebuild(arrange(embedded, held))
        hidden = mixed_forward(model, embedded, held, codec.first_block, maker)
    found: dict[Pooling, Tensor] = {"all": all_rows(hidden, held)}
    if model.spec.causal:
        found["last"] = hidden[-1]
    else:
        found["class"] = pooled_class(hidden, held)
        found["mean"] = pooled_mean(hidden, held)
    for pooling, rows in found.items():
        yield pooling, rows, references(model, codec, inputs, pooling, token)


@pytest.mark.parametrize(("kind", "class_token"), CASES)
def test_batches_equal_the_engine_with_plain_numbers(kind: str, class_token: ClassToken) -> None:
    """But for numbers near a tie, which each of the two rounds its own way."""
    model = make_model(kind)
    codec, exact = PlainCodec("fp16", model), PlainCodec("fp32", model)
    for pooling, found, wanted in beside_the_engine(model, codec, class_token, lambda x: half):
        unrounded = references(model, exact, inputs_of(model), pooling, class_token)
        rounding = (unrounded - wanted).abs().mean()
        assert (found - wanted).abs().mean() < 0.25 * rounding
        assert not close(unrounded, wanted)


@pytest.mark.parametrize(("kind", "class_token"), CASES)
@pytest.mark.parametrize("history", HISTORIES)
def test_batches_equal_the_engine_with_codes(
    kind: str, class_token: ClassToken, history: int
) -> None:
    model = deep_model(kind)
    codec = random_codec(model, history=history)
    pairs = beside_the_engine(model, codec, class_token, lambda x: Held(codec, x))
    for _, found, wanted in pairs:
        assert close(found, wanted)


@pytest.mark.parametrize(("kind", "class_token"), CASES)
def test_batches_equal_the_engine_with_the_published_codec(
    kind: str, class_token: ClassToken
) -> None:
    """It quantizes before the norm: block by block, as fitting does."""
    model = make_model(kind)
    codec, inputs, held = random_codec(model, "astra"), inputs_of(model), share_out(class_token)
    x, mask = arrange(embedded_of(model, inputs), held), held.masks(model.spec.causal)
    for index in range(model.spec.num_hidden_layers):
        codes = [one.T for one in codec.coder(index, 1).encode(x.flatten(0, 1))]
        rebuilt = codec.added(index, 1, codes).view_as(x)
        block = model.block(index)
        x = mixed_block(block, x, mask, block.normalize(rebuilt))
    wanted = references(model, codec, inputs, "all", class_token)
    assert close(all_rows(model.final(x), held), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_exact_numbers_equal_one_device(kind: str) -> None:
    model = make_model(kind)
    inputs, held = inputs_of(model), share_out()
    hidden = mixed_forward(model, embedded_of(model, inputs), held, 1, lambda _, n: n)
    alone = [hidden_rows([run_solo(model, one, "all")]) for one in inputs]
    assert close(hidden.transpose(0, 1), torch.stack(alone))


def test_sequences_of_a_batch_do_not_see_each_other() -> None:
    model = make_model("bert")
    embedded, held = embedded_of(model, inputs_of(model)), share_out("distributed")
    whole = mixed_forward(model, embedded, held, 1, half)
    for index in range(len(EDGES)):
        one = shares(torch.tensor(EDGES[index : index + 1]), TOKENS, distributed=True)
        alone = mixed_forward(model, embedded[index : index + 1], one, 1, half)
        assert close(whole[:, index : index + 1], alone, 1e-5)


# --- masks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [True, False])
def test_masks_by_hand(causal: bool) -> None:
    mask = shares(torch.tensor([[2]]), 4).masks(causal)
    assert mask.shape == (1, 1, 4, 8)
    exact, rebuilt = (part.int().tolist() for part in mask[0, 0].chunk(2, dim=1))
    if causal:
        assert exact == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
        assert rebuilt == [[0] * 4, [0] * 4, [1, 1, 0, 0], [1, 1, 0, 0]]
    else:
        assert exact == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
        assert rebuilt == [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]


def test_copies_of_the_class_token_are_seen_at_home_only() -> None:
    held = shares(torch.tensor([[2]]), 4, distributed=True)
    assert (held.copies, held.owner.tolist()) == (2, [[0, 1, 0, 1, 1]])
    exact, rebuilt = (part.int().tolist() for part in held.masks(False)[0, 0].chunk(2, dim=1))
    mine, theirs = [1, 0, 1, 0, 0], [0, 1, 0, 1, 1]
    assert exact == [mine, theirs, mine, theirs, theirs]
    assert rebuilt == [[0, 0, 0, 1, 1], [0, 0, 1, 0, 0]] * 2 + [[0, 0, 1, 0, 0]]


def test_even_shards() -> None:
    assert even_bounds(10, 4, 2).tolist() == [[2, 5, 7]] * 2
    assert even_bounds(7, 1, 3).shape == (3, 0)
    assert shares(even_bounds(7, 1, 3), 7).owner.tolist() == [[0] * 7] * 3
    assert shares(even_bounds(8, 8, 1), 8).owner.tolist() == [list(range(8))]


# --- gradients ------------------------------------------------------------------------------------


def loss_of(model: Model, embedded: Tensor, held: Shares, noise: Tensor) -> Tensor:
    """Some smooth scalar of the answers, with errors in what the others hold."""
    hidden = mixed_forward(model, embedded, held, 1, lambda _, n: n + noise)
    weights = torch.linspace(-1, 1, hidden.numel(), dtype=hidden.dtype).view_as(hidden)
    return (hidden * weights).sum()


@pytest.mark.parametrize(("kind", "class_token"), CASES)
def test_gradients_are_those_of_the_function(kind: str, class_token: ClassToken) -> None:
    """Along a random direction, against a difference quotient in float64."""
    model = make_model(kind, dtype=torch.float64)
    held = share_out(class_token)
    embedded = embedded_of(model, inputs_of(model)).double()
    generator = torch.Generator().manual_seed(2)
    rows = TOKENS if not held.copies else TOKENS - 1 + held.copies
    noise = 0.3 * torch.randn(rows, len(EDGES), 32, generator=generator, dtype=torch.float64)
    direction = torch.randn(embedded.shape, generator=generator, dtype=torch.float64)
    leaf = embedded.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss_of(model, leaf, held, noise), leaf)
    step = 1e-6
    ahead, behind = (
        loss_of(model, embedded + side * step * direction, held, noise) for side in (1, -1)
    )
    wanted = float((ahead - behind) / (2 * step))
    assert float((gradient * direction).sum()) == pytest.approx(wanted, rel=1e-5)
    assert (gradient.abs().sum(-1) > 0).all()  # every token matters


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_of_a_block_gets_a_gradient(kind: str) -> None:
    model = make_model(kind).requires_grad_(True)
    held, embedded = share_out(), embedded_of(model, inputs_of(model)).detach()
    loss_of(model, embedded, held, torch.tensor(0.1)).backward()
    for name, weight in model.block_list.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        assert weight.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_inference_before_and_between_does_not_break_training(kind: str) -> None:
    """Inference leaves the cosines and sines of positions behind, as tensors without gradients."""
    model = make_model(kind)
    inputs, held = inputs_of(model), share_out()
    run_solo(model, inputs[0], "all")  # makes the cache
    model.requires_grad_(True)
    embedded = embedded_of(model, inputs).detach()
    loss_of(model, embedded, held, torch.tensor(0.1)).backward()
    first = model.block(0).qkv.weight.grad
    assert first is not None
    wanted = first.clone()
    model.zero_grad()
    with torch.inference_mode():
        for index in range(model.spec.num_hidden_layers):
            rope = model.block(index).rope
            assert rope is not None
            rope._cached = torch.empty(0), torch.empty(0)  # as if it had to grow
            rope(torch.zeros(40, 2, model.spec.head_dim), 0)
    loss = loss_of(model, embedded, held, torch.tensor(0.1))
    run_solo(model, inputs[1], "all")
    loss.backward()
    again = model.block(0).qkv.weight.grad
    assert again is not None
    assert torch.equal(again, wanted)
