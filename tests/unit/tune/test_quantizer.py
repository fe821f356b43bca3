"""Codes in training: the values that a receiver gets, the gradients that they should have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from astra_mesh.families import Model
from astra_mesh.quant.codebook import UNLIMITED, Codebook, load_codebook
from astra_mesh.quant.codecs import VectorCodec
from astra_mesh.quant.mixed import Shares, shares
from astra_mesh.tune.options import TuneOptions
from astra_mesh.tune.quantizer import STATISTICS_RATE, Coding, TunedBlock, TunedBook
from tests.unit.engine.plans import HISTORIES, deep_model, random_book
from tests.unit.families.making import make_model

TOKENS, BATCH = 16, 3
BOOKS = [("vq", history) for history in HISTORIES] + [("astra", 0)]
QUIET = TuneOptions(noise=0.0)


def held(distributed: bool = False, batch: int = BATCH) -> Shares:
    bounds = torch.tensor([[5, 9], [1, 2], [7, 15]])[:batch]
    return shares(bounds, TOKENS, distributed=distributed)


def rows_of(model: Model, shared: Shares, seed: int = 3) -> list[Tensor]:
    """Inputs (T', B, D) of each block, each near the one before, as real ones are."""
    generator = torch.Generator().manual_seed(seed)
    batch, count = shared.owner.shape
    found, x = [], torch.zeros(count, batch, model.spec.hidden_size)
    for _ in range(model.spec.num_hidden_layers):
        x = x + torch.randn(x.shape, generator=generator)
        found.append(x * 2 + 0.5)
    return found


def codings(
    model: Model,
    book: TunedBook,
    inputs: list[Tensor],
    shared: Shares,
    stages: int,
    generator: torch.Generator | None = None,
) -> tuple[list[Tensor], list[Tensor], Coding]:
    """What goes in and what comes out for each coded block, and the coding."""
    coding = Coding(book, stages, model, shared, generator)
    given, found = [], []
    for index, x in enumerate(inputs):
        n = x if book.codebook.codec == "astra" else model.block(index).normalize(x)
        if index < book.codebook.first_block:
            coding.first(n)
            continue
        given.append(n.detach().requires_grad_(True))
        found.append(coding(index, given[-1]))
    return given, found, coding


def received(codec: VectorCodec, inputs: list[Tensor], stages: int) -> list[Tensor]:
    """What a receiver rebuilds of one sequence, from block inputs (T, D)."""
    known = codec.model.block(0).normalize(inputs[0]) if codec.first_block else None
    sender, receiver = codec.sender(stages, known), codec.receiver(stages, known)
    coded = range(codec.first_block, len(inputs))
    return [receiver.rebuild(i, sender.encode(i, inputs[i])) for i in coded]


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("codec", "history"), BOOKS)
@pytest.mark.parametrize("distributed", [False, True])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_evaluation_gives_what_a_receiver_rebuilds(
    codec: str, history: int, distributed: bool, noise: float
) -> None:
    """For each number of stages that is used; no noise without a generator."""
    model, shared = deep_model("bert"), held(distributed)
    book = random_book(model, codec, stages=3, history=history)
    receiver = VectorCodec(model, book)
    inputs = rows_of(model, shared)
    assert book.able == tuple(range(1, book.stages + 1))
    for stages in book.able:
        tuned = TunedBook(book, replace(QUIET, noise=noise))
        _, found, _ = codings(model, tuned, inputs, shared, stages)
        for sequence in range(BATCH):
            own = [x[shared.copies :, sequence] for x in inputs]
            wanted = received(receiver, own, stages)
            assert len(wanted) == len(found)
            for rows, one in zip(found, wanted, strict=True):
                torch.testing.assert_close(rows[shared.copies :, sequence], one)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_copies_of_the_class_token_are_not_coded(noise: float) -> None:
    model, shared = make_model("vit"), held(distributed=True)
    tuned = TunedBook(random_book(model, history=UNLIMITED), replace(QUIET, noise=noise))
    generator = torch.Generator().manual_seed(0)
    given, found, _ = codings(model, tuned, rows_of(model, shared), shared, 2, generator)
    assert shared.copies == 3
    for n, rows in zip(given, found, strict=True):
        assert rows.shape == n.shape
        assert torch.equal(rows[:3], n[:3])
        assert not torch.isclose(rows[3:], n[3:], atol=1e-3).all(-1).any()


@pytest.mark.parametrize(("codec", "history"), BOOKS)
def test_half_precision_around_it_changes_nothing(codec: str, history: int) -> None:
    model, shared = make_model("gpt2"), held()
    tuned = TunedBook(random_book(model, codec, history=history), TuneOptions(covariance="full"))
    inputs = rows_of(model, shared)
    plain = codings(model, tuned, inputs, shared, tuned.codebook.stages)[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        coding = Coding(tuned, tuned.codebook.stages, model, shared)
        first = tuned.codebook.first_block
        if first:
            coding.first(model.block(0).normalize(inputs[0]))
        for index, wanted in enumerate(plain, first):
            x = inputs[index]
            found = coding(index, x if codec == "astra" else model.block(index).normalize(x))
            torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(("codec", "history"), BOOKS)
def test_what_is_stored_is_what_its_file_holds(codec: str, history: int, tmp_path: Path) -> None:
    model = make_model("gpt2")
    book = random_book(model, codec, stages=3, history=history)
    tuned = TunedBook(book, QUIET)
    assert tuned.stored().id == book.id
    for parameter in tuned.parameters():
        parameter.data += 0.01 * torch.randn(parameter.shape)
    stored = tuned.stored()
    assert stored.id != book.id
    stored.save(tmp_path / "x.safetensors")
    loaded = load_codebook(tmp_path / "x.safetensors")
    assert loaded.id == stored.id
    assert same(loaded, stored)
    before = stored.id
    for parameter in tuned.parameters():
        parameter.data.zero_()
    assert stored.id == before  # a copy


def same(one: Codebook, other: Codebook) -> bool:
    """In float32, as it runs."""
    return all(
        torch.equal(a, b)
        for stages, books in one.levels.items()
        for left, right in zip(books, other.levels[stages], strict=True)
        for a, b in zip(flat(left), flat(right), strict=True)
    )


def flat(block: object) -> list[Tensor]:
    parts = [*vars(block)["codewords"], *vars(block)["orders"]]
    parts += [vars(block)[name] for name in ("center", "analysis", "synthesis", "predict")]
    return [part for part in parts if part is not None]


# --- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("codec", "history"), BOOKS)
@pytest.mark.parametrize("distributed", [False, True])
def test_gradients_go_straight_through(codec: str, history: int, distributed: bool) -> None:
    """Exactly, for every row, and only to the block's own input; noise or not."""
    model, shared = deep_model("vit"), held(distributed)
    tuned = TunedBook(random_book(model, codec, history=history), TuneOptions(noise=0.5))
    generator = torch.Generator().manual_seed(1)
    given, found, _ = codings(
        model, tuned, rows_of(model, shared), shared, tuned.codebook.stages, generator
    )
    for n, rows in zip(given, found, strict=True):
        weights = torch.randn(rows.shape)
        grads = torch.autograd.grad((rows * weights).sum(), given, allow_unused=True)
        for other, grad in zip(given, grads, strict=True):
            assert torch.equal(grad, weights) if other is n else grad is None


@pytest.mark.parametrize(("codec", "history"), BOOKS)
def test_gradients_reach_codewords_centers_and_predictions(codec: str, history: int) -> None:
    """Each equals the change of the value over a small change of the parameter."""
    model, shared = make_model("llama"), held()
    tuned = TunedBook(random_book(model, codec, history=history), QUIET)
    stages = tuned.codebook.stages
    inputs = rows_of(model, shared)
    generator = torch.Generator().manual_seed(5)
    weights = torch.randn(inputs[-1].shape, generator=generator)

    def value() -> Tensor:
        return (codings(model, tuned, inputs, shared, stages)[1][-1] * weights).sum()

    value().backward()
    block = tuned.blocks(stages)[-1]
    parameters = dict(block.named_parameters())
    assert len(parameters) == stages + (codec == "vq") + (history != 0)
    for name, parameter in parameters.items():
        assert parameter.grad is not None, name
        step = torch.randn(parameter.shape, generator=generator) * 1e-4
        wanted = float((parameter.grad * step).sum())
        with torch.no_grad():
            before = value().double()
            parameter.add_(step)
            found = float(value().double() - before)
            parameter.sub_(step)
        assert found == pytest.approx(wanted, rel=0.01), name
        assert abs(wanted) > 1e-3
    for earlier in tuned.blocks(stages)[:-1]:  # what is remembered of them is a number
        assert all(one.grad is None for one in earlier.parameters())


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_a_memoryless_prefix_s_gradients_reach_its_stages_only(stages: int) -> None:
    """In every block, along with the center, which all rates share."""
    model, shared = deep_model("llama"), held()
    tuned = TunedBook(random_book(model, stages=3, history=0), QUIET)
    found, coding = codings(model, tuned, rows_of(model, shared), shared, stages)[1:]
    loss = sum((rows.square().sum() for rows in found), sum(coding.penalties()))
    assert isinstance(loss, Tensor)
    loss.backward()
    for block in tuned.blocks(stages):
        assert len(block.codewords) == 3
        learns = [one.grad is not None and bool(one.grad.any()) for one in block.codewords]
        assert learns == [stage < stages for stage in range(3)]
        assert block.center is not None
        assert block.center.grad is not None
        assert block.center.grad.any()


def test_only_chosen_codewords_learn() -> None:
    """Each by the sum over the rows that chose it."""
    model, shared = make_model("gpt2"), held()
    book = random_book(model, "astra", groups=4)
    tuned = TunedBook(book, QUIET)
    inputs = rows_of(model, shared)
    _, found, _ = codings(model, tuned, inputs, shared, 1)
    found[0].sum().backward()
    (codewords,) = tuned.blocks(1)[0].codewords
    sender = VectorCodec(model, book).sender(1, None)
    (codes,) = sender.encode(0, inputs[0].flatten(0, 1))
    for group in range(4):
        times = torch.bincount(torch.from_numpy(codes[:, group].astype("int64")), minlength=16)
        assert codewords.grad is not None
        assert torch.equal(codewords.grad[group], times.float()[:, None].expand(-1, 8))
    assert 0 < int((codewords.grad != 0).any(-1).sum()) < 4 * 16


def test_penalties_pull_inputs_to_codes_and_codes_to_inputs() -> None:
    model, shared = make_model("gpt2"), held()
    tuned = TunedBook(random_book(model, history=1), QUIET)
    given, _, coding = codings(model, tuned, rows_of(model, shared), shared, 2)
    commitment, reconstruction = coding.penalties()
    assert float(commitment.detach()) == pytest.approx(float(reconstruction.detach()))
    assert float(commitment.detach()) > 0.1
    pulls = torch.autograd.grad(commitment, given, retain_graph=True)
    with torch.no_grad():
        moved = [n - 0.01 * pull / pull.norm() for n, pull in zip(given, pulls, strict=True)]
        rebuilt = codings(model, tuned, rows_of(model, shared), shared, 2)[1]
        for n, near, code in zip(given, moved, rebuilt, strict=True):
            assert (near - code).norm() < (n - code).norm()
    assert all(
        grad is None for grad in torch.autograd.grad(reconstruction, given, allow_unused=True,
                                                     retain_graph=True)
    )  # fmt: skip
    assert all(
        grad is None
        for grad in torch.autograd.grad(commitment, list(tuned.parameters()), allow_unused=True)
    )
    reconstruction.backward()
    assert all(one.grad is not None for block in tuned.blocks(2) for one in block.parameters())
    empty = Coding(tuned, 2, model, shared).penalties()
    assert [float(one) for one in empty] == [0, 0]


# --- noise ----------------------------------------------------------------------------------------


def many(seed: int = 0) -> tuple[Model, Shares, list[Tensor]]:
    """2,400 rows."""
    model = make_model("gpt2")
    shared = shares(torch.full((150, 1), 8), TOKENS)
    return model, shared, rows_of(model, shared, seed)


def spread_of(error: Tensor) -> Tensor:
    flat = error.detach().flatten(0, 1)
    return flat.T @ flat / len(flat)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_noise_has_the_statistics_of_the_error(covariance: str) -> None:
    """Its covariance is the error's; only the diagonal where no more is asked for."""
    model, shared, inputs = many()
    book = random_book(model, history=UNLIMITED)
    options = TuneOptions(noise=1.0, covariance=covariance)  # type: ignore[arg-type]
    tuned = TunedBook(book, options)
    given, plain, _ = codings(model, tuned, inputs, shared, 2)
    noisy = codings(model, tuned, inputs, shared, 2, torch.Generator().manual_seed(2))[1]
    for n, exact, with_noise in zip(given, plain, noisy, strict=True):
        wanted, found = spread_of(n - exact), spread_of(with_noise - exact)
        off = wanted - wanted.diag().diag()
        assert off.norm() > 0.3 * wanted.norm()  # the cases differ
        torch.testing.assert_close(found.diag(), wanted.diag(), rtol=0.15, atol=0)
        if covariance == "diagonal":
            wanted = wanted.diag().diag()
        assert (found - wanted).norm() < 0.2 * wanted.norm()


def test_noise_is_in_proportion_to_lambda_and_new_each_time() -> None:
    model, shared, inputs = many()
    book = random_book(model, history=1)

    def noise(strength: float, seed: int) -> list[Tensor]:
        tuned = TunedBook(book, TuneOptions(noise=strength))
        plain = codings(model, tuned, inputs, shared, 2)[1]
        generator = torch.Generator().manual_seed(seed)
        noisy = codings(model, tuned, inputs, shared, 2, generator)[1]
        return [one - other for one, other in zip(noisy, plain, strict=True)]

    for once, twice, other in zip(noise(0.2, 1), noise(0.4, 1), noise(0.2, 2), strict=True):
        torch.testing.assert_close(twice, 2 * once, rtol=1e-3, atol=1e-4)
        assert (once * other).mean().abs() < 0.05 * once.square().mean()
        assert once.abs().mean() > 0.01


def test_what_others_predict_from_has_no_noise() -> None:
    """Noise is for the attention that reads n^; the memory is the one of both ends."""
    model, shared, inputs = many()
    tuned = TunedBook(random_book(model, history=UNLIMITED), TuneOptions(noise=1.0))
    generator = torch.Generator().manual_seed(1)
    plain, noisy = (
        Coding(tuned, 2, model, shared, drawn) for drawn in (None, generator)
    )  # fmt: skip
    for coding in (plain, noisy):
        coding.first(model.block(0).normalize(inputs[0]))
        coding(1, model.block(1).normalize(inputs[1]))
    noisy._generator = None
    n = model.block(2).normalize(inputs[2])
    assert torch.equal(noisy(2, n), plain(2, n))


def test_statistics_are_those_of_training_and_run_on() -> None:
    model, shared, inputs = many()
    tuned = TunedBook(random_book(model, history=0), TuneOptions())
    block = tuned.blocks(2)[0]
    codings(model, tuned, inputs, shared, 2)
    assert float(block.spread.sum()) == 0  # type: ignore[operator]
    errors = []
    for seed in (1, 2):
        _, shared, inputs = many(seed)
        generator = torch.Generator().manual_seed(seed)
        given, exact, _ = codings(model, tuned, inputs, shared, 2)
        errors.append(spread_of(given[0] - exact[0]).diag())
        codings(model, tuned, inputs, shared, 2, generator)
        wanted = errors[0]
        if seed == 2:
            wanted = errors[0] + STATISTICS_RATE * (errors[1] - errors[0])
        torch.testing.assert_close(block.spread[1], wanted, rtol=1e-4, atol=1e-6)  # type: ignore[index]
        assert float(block.spread[0].sum()) == 0  # type: ignore[index]  # one stage was not used


def test_an_error_that_is_no_number_is_the_loss_s_to_tell() -> None:
    block = TunedBlock(random_book(make_model("gpt2")).levels[2][0], "full")
    block.observe(torch.full((4, 32), torch.nan), 2)
    assert block.noise(3, torch.Generator(), 2).shape == (3, 32)
