"""Fitting: repeatable, in the K,V metric, better with every stage; and data that cannot serve."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from astra_mesh.bundle import open_bundle
from astra_mesh.bundle.tensors import load_weights
from astra_mesh.errors import CalibrationError, InputError
from astra_mesh.families import Model, ModelInput, build_model
from astra_mesh.quant.codecs import VectorCodec
from astra_mesh.quant.fit import FitOptions, balance, fit_codebook, kv_frame
from astra_mesh.quant.kmeans import assign, kmeans
from astra_mesh.wire.messages import ModelId
from tests.unit.families.making import CONFIGS, make_model, make_tensors

MODEL = ModelId("a" * 64)
QUICK = FitOptions(groups=4, stages=2, codewords=16, iterations=4)


def texts(model: Model, count: int = 12, length: int = 40, seed: int = 0) -> list[ModelInput]:
    generator = torch.Generator().manual_seed(seed)
    vocab = model.spec.vocab_size
    return [
        ModelInput(tokens=torch.randint(vocab, (length,), generator=generator))
        for _ in range(count)
    ]


# --- real activations -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shakespeare(data_dir: Path) -> tuple[Model, list[ModelInput]]:
    bundle = open_bundle(data_dir / "models" / "gpt2_shakespeare_char")
    text = (data_dir / "datasets" / "tinyshakespeare" / "input.txt").read_text()[:20_000]
    order = {char: i for i, char in enumerate(sorted(set(text)))}
    ids = torch.tensor([order[char] for char in text])
    windows = [ModelInput(tokens=part) for part in ids.split(128)[:24]]
    return build_model(bundle.config, load_weights(bundle)), windows


@torch.inference_mode()
def block_inputs(model: Model, inputs: list[ModelInput], block: int) -> Tensor:
    found = []
    for one in inputs:
        x = model.embed(one, 0, model.count_tokens(one))
        for index in range(block):
            x = model.block(index)(x, model.spec.causal)
        found.append(x)
    return torch.cat(found)


def kv_error(model: Model, codec: VectorCodec, x: Tensor, block: int, stages: int) -> float:
    """Error of keys and values, each relative to its own energy; summed."""
    at = model.block(block)
    exact = torch.nn.functional.linear(at.normalize(x), at.kv_weight, at.kv_bias)
    found = codec.decode(block, codec.encode(block, x, stages))
    spread = exact - exact.mean(0)
    parts = zip((found - exact).chunk(2, dim=1), spread.chunk(2, dim=1), strict=True)
    return sum(float(error.square().sum() / own.square().sum()) for error, own in parts)


def test_the_metric_and_the_stages_pay(shakespeare: tuple[Model, list[ModelInput]]) -> None:
    """At the same bits, keys and values are closer than with plain grouped VQ of the embedding."""
    model, inputs = shakespeare
    train, held_out = inputs[:16], inputs[16:]
    options = FitOptions(groups=4, stages=2, codewords=64, iterations=6)
    ours = VectorCodec(model, fit_codebook(model, MODEL, train, options))
    plain_options = FitOptions("astra", groups=8, stages=1, codewords=64, iterations=6)
    plain = VectorCodec(model, fit_codebook(model, MODEL, train, plain_options))
    assert ours.rate(2) == plain.rate(1) == 48
    for block in (1, 2, 3):
        x = block_inputs(model, held_out, block)
        fine, coarse = (kv_error(model, ours, x, block, stages) for stages in (2, 1))
        assert fine < 0.9 * coarse
        assert fine < 0.9 * kv_error(model, plain, x, block, 1)
        assert fine < 1.0  # better than sending the mean alone (an error of 1 each for K and V)


# --- properties -----------------------------------------------------------------------------------


def test_every_stage_lowers_the_error() -> None:
    model = make_model("llama")
    options = FitOptions(groups=2, stages=5, codewords=16, iterations=5)
    codec = VectorCodec(model, fit_codebook(model, MODEL, texts(model), options))
    for block in (1, 2):
        x = block_inputs(model, texts(model), block)
        errors = [kv_error(model, codec, x, block, stages) for stages in range(1, 6)]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 0.5 * errors[0]


def test_a_seed_gives_the_same_codebook_and_another_seed_another() -> None:
    model = make_model("gpt2")
    ids = [
        fit_codebook(model, MODEL, texts(model), FitOptions(**vars(QUICK) | {"seed": seed})).id
        for seed in (0, 0, 1)
    ]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3", "bert"])
def test_shapes_and_progress(kind: str) -> None:
    model = make_model(kind)
    steps: list[tuple[int, int, str]] = []
    book = fit_codebook(
        model,
        MODEL,
        texts(model),
        QUICK,
        lambda done, total, what: steps.append((done, total, what)),
    )
    assert (book.first_block, len(book.blocks)) == (1, 2)
    assert (book.stages, book.groups, book.size, book.default_stages) == (2, 4, 16, 2)
    assert [step[:2] for step in steps] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    published = FitOptions("astra", groups=16, stages=1, codewords=16, iterations=2)
    book = fit_codebook(model, MODEL, texts(model), published)
    assert (book.first_block, len(book.blocks), book.groups) == (0, 3, 16)
    assert book.rate(1) == 64


def test_what_is_fitted_is_what_is_stored(tmp_path: Path) -> None:
    """Running from the file gives the same codes as running from the fitted object."""
    from astra_mesh.quant.codebook import load_codebook

    model = make_model("gpt2")
    book = fit_codebook(model, MODEL, texts(model), QUICK)
    book.save(tmp_path / "codebook.safetensors")
    saved = load_codebook(tmp_path / "codebook.safetensors")
    x = block_inputs(model, texts(model), 2)
    first, second = (VectorCodec(model, one).encode(2, x, 2) for one in (book, saved))
    assert all((a == b).all() for a, b in zip(first, second, strict=True))


def test_more_tokens_than_asked_for_are_not_read() -> None:
    model = make_model("gpt2")
    options = FitOptions(**vars(QUICK) | {"max_tokens": 200})
    book = fit_codebook(model, MODEL, texts(model, 5), options)
    assert book.id == fit_codebook(model, MODEL, texts(model, 12), options).id


def test_the_frame_measures_errors_of_keys_and_values() -> None:
    model = make_model("gpt2")
    block = model.block(1)
    generator = torch.Generator().manual_seed(5)
    n = torch.randn(400, 32, generator=generator) @ torch.randn(32, 32, generator=generator)
    frame = kv_frame(n, block, 4)
    y = (n - frame.center) @ frame.analysis.T
    back = y @ frame.synthesis.T + frame.center
    exact, found = (v @ block.kv_weight.T for v in (n, back))
    torch.testing.assert_close(found, exact, atol=2e-3, rtol=1e-3)
    spread = exact - exact.mean(0)
    unit = torch.cat(
        [part / part.square().sum(1).mean().sqrt() for part in spread.chunk(2, dim=1)], dim=1
    )
    first, second = y[:200] - y[200:], unit[:200] - unit[200:]
    torch.testing.assert_close(first.norm(dim=1), second.norm(dim=1), rtol=1e-3, atol=1e-3)


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


# --- what cannot be fitted ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (FitOptions("zip"), "no codebook"),
        (FitOptions(groups=0), "groups"),
        (FitOptions(groups=33), "groups"),
        (FitOptions("astra", groups=5, stages=1), "divide"),
        (FitOptions("astra", groups=4, stages=2), "one stage"),
        (FitOptions(codewords=1), "codewords"),
        (FitOptions(codewords=257), "256 codewords"),
        (FitOptions(stages=0), "stages"),
        (FitOptions(stages=65), "stages"),
        (FitOptions(stages=2, default_stages=3), "default_stages"),
        (FitOptions(iterations=-1), "iterations"),
    ],
)
def test_impossible_options(options: FitOptions, text: str) -> None:
    model = make_model("gpt2")
    with pytest.raises(CalibrationError, match=text):
        fit_codebook(model, MODEL, texts(model), options)


def test_too_little_data() -> None:
    model = make_model("gpt2")
    with pytest.raises(CalibrationError, match=r"40 calibration tokens are too few .* least 160"):
        fit_codebook(model, MODEL, texts(model, 1), QUICK)
    with pytest.raises(CalibrationError, match="0 calibration tokens"):
        fit_codebook(model, MODEL, [], QUICK)


def test_data_that_say_nothing() -> None:
    """One token again and again, at one position: there is nothing to learn from."""
    model = make_model("gpt2")
    same = [ModelInput(tokens=torch.tensor([3])) for _ in range(200)]
    with pytest.raises(CalibrationError, match="all alike"):
        fit_codebook(model, MODEL, same, QUICK)


def test_inputs_of_another_model() -> None:
    with pytest.raises(InputError, match="reads text"):
        fit_codebook(make_model("gpt2"), MODEL, [ModelInput(pixels=torch.zeros(3, 4, 4))], QUICK)


def test_a_model_of_one_block_needs_no_codebook() -> None:
    model = build_model(CONFIGS["gpt2"] | {"n_layer": 1}, make_tensors("gpt2"))
    with pytest.raises(CalibrationError, match="one block"):
        fit_codebook(model, MODEL, texts(model), QUICK)


def test_embeddings_too_large_for_a_file() -> None:
    tensors = make_tensors("gpt2")
    tensors["transformer.wte.weight"] *= 1e7
    model = build_model(CONFIGS["gpt2"], tensors)
    options = FitOptions("astra", groups=4, stages=1, codewords=16, iterations=2)
    with pytest.raises(CalibrationError, match="float16"):
        fit_codebook(model, MODEL, texts(model), options)
