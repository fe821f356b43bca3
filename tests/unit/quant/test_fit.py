"""Fitting: repeatable, in the K,V metric, better with every stage; and data that cannot serve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from astra_mesh.bundle import open_bundle
from astra_mesh.bundle.tensors import load_weights
from astra_mesh.engine.reference import hidden_rows, run_plan, run_solo
from astra_mesh.errors import CalibrationError, InputError, WrongTaskError
from astra_mesh.families import Model, ModelInput, build_model
from astra_mesh.plan.layout import make_layout
from astra_mesh.quant import block_fit
from astra_mesh.quant.block_fit import FoundBlock
from astra_mesh.quant.codebook import UNLIMITED, Codebook, check, load_codebook
from astra_mesh.quant.codecs import VectorCodec
from astra_mesh.quant.fit import Stored, fingerprint, fit_codebook
from astra_mesh.quant.kmeans import kmeans
from astra_mesh.quant.mixed import arrange, even_bounds, mixed_block, shares
from astra_mesh.quant.options import FitOptions
from astra_mesh.wire.messages import ModelId
from tests.unit.engine.plans import cut, deep_model, input_of
from tests.unit.families.making import CONFIGS, KINDS, make_model, make_tensors

MODEL = ModelId("a" * 64)
QUICK = FitOptions(rates=(16, 32), groups=2, codewords=16, iterations=3, peers=(4,))
PLAIN = replace(QUICK, history=0, sensitivity=0.0)
ASTRA = FitOptions("astra", 0, groups=4, codewords=16, iterations=3)


def texts(model: Model, count: int = 12, length: int = 40, seed: int = 0) -> list[ModelInput]:
    generator = torch.Generator().manual_seed(seed)
    vocab = model.spec.vocab_size
    return [
        ModelInput(tokens=torch.randint(vocab, (length,), generator=generator))
        for _ in range(count)
    ]


def inputs_for(model: Model, count: int = 24) -> list[ModelInput]:
    """Random ones; images have 16 tokens."""
    return [input_of(model, 16, seed) for seed in range(count)]


def fitted(
    model: Model, inputs: Sequence[ModelInput], options: FitOptions, **more: Any
) -> Codebook:
    return fit_codebook(model, MODEL, inputs, options, **more)[0]


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
def block_inputs(model: Model, inputs: Sequence[ModelInput]) -> list[Tensor]:
    """Inputs (N, D) of each block on one device, all sequences one after the other."""
    found: list[list[Tensor]] = [[] for _ in model.block_list]
    for one in inputs:
        x = model.embed(one, 0, model.count_tokens(one))
        for index, rows in enumerate(found):
            rows.append(x)
            x = model.block(index)(x, model.spec.causal)
    return [torch.cat(rows) for rows in found]


@torch.inference_mode()
def kv_errors(model: Model, codec: VectorCodec, xs: list[Tensor], stages: int) -> dict[int, float]:
    """By block: errors of keys and values, each relative to its own energy; summed."""
    known = model.block(0).normalize(xs[0]) if codec.first_block else None
    sender, receiver = codec.sender(stages, known), codec.receiver(stages, known)
    errors = {}
    for block in range(codec.first_block, len(xs)):
        at, x = model.block(block), xs[block]
        exact = torch.nn.functional.linear(at.normalize(x), at.kv_weight, at.kv_bias)
        found = receiver.decode(block, sender.encode(block, x))
        spread = exact - exact.mean(0)
        parts = zip((found - exact).chunk(2, dim=1), spread.chunk(2, dim=1), strict=True)
        errors[block] = sum(
            float(error.square().sum() / own.square().sum()) for error, own in parts
        )
    return errors


@torch.inference_mode()
def divergence(
    model: Model, codec: VectorCodec, inputs: Sequence[ModelInput], stages: int
) -> float:
    """Mean KL of next tokens, one device to four peers."""
    total = 0.0
    for one in inputs:
        tokens = model.count_tokens(one)
        edges = [tokens * i // 4 for i in (1, 2, 3)]
        layout = make_layout(model.spec, cut(tokens, edges), pooling="all", stages=stages)
        runs = run_plan(model, layout, codec, one)
        alone = hidden_rows([run_solo(model, one, "all")])
        exact, found = (model.logits(rows).log_softmax(-1) for rows in (alone, hidden_rows(runs)))
        total += float((exact.exp() * (exact - found)).sum(-1).mean())
    return total / len(inputs)


Shakespeare = tuple[Model, list[ModelInput]]
REAL = FitOptions(rates=(24, 48), groups=4, codewords=64, iterations=6, history=0, sensitivity=0.0)


def test_the_metric_and_the_stages_pay(shakespeare: Shakespeare) -> None:
    """At the same bits, keys and values are closer than with plain grouped VQ of the embedding."""
    model, inputs = shakespeare
    train, held_out = inputs[:16], inputs[16:]
    ours = VectorCodec(model, fitted(model, train, REAL))
    published = FitOptions("astra", 0, groups=8, codewords=64, iterations=6)
    plain = VectorCodec(model, fitted(model, train, published))
    assert ours.rate(2) == plain.rate(1) == 48
    xs = block_inputs(model, held_out)
    fine, coarse = (kv_errors(model, ours, xs, stages) for stages in (2, 1))
    other = kv_errors(model, plain, xs, 1)
    for block in (1, 2, 3):
        assert fine[block] < 0.9 * coarse[block]
        assert fine[block] < 0.9 * other[block]
        assert fine[block] < 1.0  # sending the mean alone: an error of 1 each for K and V


def test_remembering_pays(shakespeare: Shakespeare) -> None:
    """At the same bits: the longer the history, the closer keys, values and answers."""
    model, inputs = shakespeare
    train, held_out = inputs[:16], inputs[16:]
    xs = block_inputs(model, held_out)
    errors, lost = [], []
    for history in (0, 1, UNLIMITED):
        book = fitted(model, train, replace(REAL, history=history))
        codec = VectorCodec(model, book, "project")
        errors.append(sum(kv_errors(model, codec, xs, 1).values()))
        lost.append(divergence(model, codec, held_out, 1))
    assert errors[1] < 0.85 * errors[0]
    assert errors[2] < 0.95 * errors[1]
    assert lost[2] < lost[1] < lost[0]


def test_knowing_what_answers_depend_on_pays(shakespeare: Shakespeare) -> None:
    """At the same bits the answers are closer, though keys and values are not."""
    model, inputs = shakespeare
    train, held_out = inputs[:16], inputs[16:]
    xs = block_inputs(model, held_out)
    books = [fitted(model, train, replace(REAL, sensitivity=share)) for share in (0.0, 1.0)]
    without, with_it = (VectorCodec(model, book) for book in books)
    lost = [divergence(model, codec, held_out, 1) for codec in (without, with_it)]
    assert lost[1] < 0.7 * lost[0]
    errors = [sum(kv_errors(model, codec, xs, 1).values()) for codec in (without, with_it)]
    assert errors[1] > errors[0]


# --- properties -----------------------------------------------------------------------------------


@pytest.mark.parametrize("history", [0, UNLIMITED])
def test_every_stage_lowers_the_error(history: int) -> None:
    model = make_model("llama")
    options = replace(PLAIN, rates=(8, 16, 32, 64), iterations=5, history=history)
    codec = VectorCodec(model, fitted(model, texts(model), options))
    assert codec.codebook.groups == (2, 2, 4, 8)
    xs = block_inputs(model, texts(model))
    errors = [kv_errors(model, codec, xs, stages) for stages in range(1, 5)]
    for block in (1, 2):
        falling = [one[block] for one in errors]
        assert falling == sorted(falling, reverse=True)
        assert falling[-1] < 0.5 * falling[0]


@pytest.mark.parametrize("options", [QUICK, PLAIN, replace(QUICK, history=1), ASTRA])
def test_a_seed_gives_the_same_codebook_and_another_seed_another(options: FitOptions) -> None:
    model = make_model("gpt2")
    ids = [fitted(model, texts(model), replace(options, seed=seed)).id for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("history", [0, 1, UNLIMITED])
def test_shapes_and_progress(kind: str, history: int) -> None:
    model = make_model(kind)
    steps: list[tuple[int, int, str]] = []
    options = replace(QUICK, history=history)
    book, report = fit_codebook(
        model,
        MODEL,
        inputs_for(model),
        options,
        lambda done, total, what: steps.append((done, total, what)),
    )
    check(book)
    assert (book.codec, book.model, book.history, book.hidden_size) == ("vq", MODEL, history, 32)
    assert (book.first_block, book.blocks) == (1, 2)
    assert (book.groups, book.size, book.default_stages) == ((2, 2, 4), 16, 3)
    if history:
        assert book.rates == {2: 16, 3: 32}
        assert list(book.levels) == [2, 3]
    else:
        assert book.rates == {1: 8, 2: 16, 3: 32}
        assert list(book.levels) == [3]
    total = 3 * len(book.levels)
    assert [step[:2] for step in steps] == [(0, 1), *((i, total) for i in range(total + 1))]
    assert "16 bits" in steps[1][2] or not history
    assert (report.tokens, report.sequences) == (24 * 16, 24)
    found = [(one.block, one.bits) for one in report.blocks]
    assert sorted(found) == [(1, 16), (1, 32), (2, 16), (2, 32)]
    for one in report.blocks:
        assert 0 < one.left < one.predicted <= (1.01 if history else 1.001)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_block_can_be_coded_too(kind: str) -> None:
    model = make_model(kind)
    options = replace(QUICK, history=0, code_first=True)
    book, report = fit_codebook(model, MODEL, inputs_for(model), options)
    check(book)
    assert (book.first_block, book.blocks) == (0, 3)
    assert sorted({one.block for one in report.blocks}) == [0, 1, 2]
    assert all(0 < one.left < one.predicted <= 1.001 for one in report.blocks)
    xs = block_inputs(model, inputs_for(model))
    codec = VectorCodec(model, book)
    errors = [kv_errors(model, one, xs, book.stages) for one in (codec, codec.projecting())]
    assert list(errors[0]) == [0, 1, 2]
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)
    assert all(error < 2 for error in errors[0].values())  # of keys and of values: all of them


@pytest.mark.parametrize("kind", KINDS)
def test_the_published_form(kind: str) -> None:
    """One stage, all blocks, and nothing but groups of codewords of the embedding."""
    model = make_model(kind)
    options = replace(ASTRA, groups=16)
    book, report = fit_codebook(model, MODEL, inputs_for(model), options)
    check(book)
    assert (book.codec, book.first_block, book.blocks, book.groups) == ("astra", 0, 3, (16,))
    assert (book.able, book.rates, book.default_stages) == ((1,), {1: 64}, 1)
    for one in book.levels[1]:
        assert one.tensors().keys() == {"codewords.0"}
        assert one.codewords[0].shape == (16, 16, 2)
    assert [(one.block, one.bits) for one in report.blocks] == [(0, 64), (1, 64), (2, 64)]
    assert all(0 < one.left < one.predicted == 1.0 for one in report.blocks)


@pytest.mark.parametrize("history", [0, 1, UNLIMITED])
@pytest.mark.parametrize("codec", ["vq", "astra"])
def test_what_is_fitted_is_what_is_stored(codec: str, history: int, tmp_path: Path) -> None:
    """Running from the file gives the same codes as running from the fitted object."""
    if codec == "astra" and history:
        return
    model = make_model("gpt2")
    options = replace(QUICK, history=history) if codec == "vq" else ASTRA
    book = fitted(model, texts(model), options)
    book.save(tmp_path / "codebook.safetensors")
    saved = load_codebook(tmp_path / "codebook.safetensors")
    assert saved.id == book.id
    xs = block_inputs(model, texts(model))
    known = model.block(0).normalize(xs[0])
    first, second = (VectorCodec(model, one).sender(book.stages, known) for one in (book, saved))
    for block in range(book.first_block, 3):
        ours, theirs = (one.encode(block, xs[block]) for one in (first, second))
        assert all((a == b).all() for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "vit", "bert"])
@pytest.mark.parametrize("history", [0, 1, 2, UNLIMITED])
@pytest.mark.parametrize("distributed", [False, True])
def test_the_report_says_what_running_gives(kind: str, history: int, distributed: bool) -> None:
    """Its figures are those of the engine's codec on the same sequences and shards."""
    model = deep_model(kind)
    inputs = inputs_for(model)
    options = replace(PLAIN, history=history, rates=(16,), distributed=distributed)
    book, report = fit_codebook(model, MODEL, inputs, options)
    codec = VectorCodec(model, book, "project")
    copies = distributed and model.spec.has_class_token
    assert book.class_token == ("distributed" if copies else "single")
    embedded = torch.stack([model.embed(one, 0, 16) for one in inputs])
    held = shares(even_bounds(16, 4, len(inputs)), 16, distributed=copies)
    x, mask = arrange(embedded, held), held.masks(model.spec.causal)
    sent = slice(held.copies, None)
    known = model.block(0).normalize(x)[sent].flatten(0, 1)
    sender, receiver = codec.sender(book.stages, known), codec.receiver(book.stages, known)
    for index, block in enumerate(model.block(i) for i in range(6)):
        n = block.normalize(x)
        rebuilt = None
        if index:
            rows = receiver.rebuild(index, sender.encode(index, x[sent].flatten(0, 1)))
            rebuilt = torch.cat([n[: held.copies], rows.view_as(n[sent])])
            analysis = book.book(index, book.stages).analysis
            assert analysis is not None
            error, whole = n[sent].flatten(0, 1) - rows, n[sent].flatten(0, 1)
            batch = block_fit.Batch(embedded, held, mask, x)
            (weight,) = block_fit.BlockFit(options, block, index, None)._weights([batch])
            mean = weight @ whole / weight.sum()
            parts = (one @ analysis.T for one in (error, whole - mean))
            left, all_ = (block_fit.energy(one, weight) for one in parts)
            assert report.blocks[index - 1].left == pytest.approx(left / all_, rel=0.02)
        x = mixed_block(block, x, mask, rebuilt)


@pytest.mark.parametrize("options", [QUICK, PLAIN, ASTRA, replace(QUICK, history=1)])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_an_interrupted_fit_goes_on_where_it_was(
    options: FitOptions, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("gpt2")
    kept: list[Stored] = []
    whole = fitted(model, texts(model), options, keep=lambda done: kept.append(dict(done)))
    count = sum(len(books) for books in whole.levels.values())
    assert [len(one) for one in kept] == list(range(1, count + 1))
    done = kept[min(after, count) - 1]
    runs: list[int] = []
    original = block_fit.BlockFit.run

    def run(self: Any, *arguments: Any) -> FoundBlock:
        runs.append(self.index)
        return original(self, *arguments)

    monkeypatch.setattr(block_fit.BlockFit, "run", run)
    before = dict(done)
    again = fitted(model, texts(model), options, done=done)
    assert again.id == whole.id
    assert len(runs) == count - len(done)
    assert done == before  # the caller's own is left alone
    assert fitted(model, texts(model), options, done=kept[-1]).id == whole.id
    assert len(runs) == count - len(done)


def test_an_interruption_in_the_middle_loses_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("gpt2")
    kept: Stored = {}
    turns: list[int] = []
    original = block_fit.BlockFit.run

    def run(self: Any, *arguments: Any) -> FoundBlock:
        turns.append(self.index)
        if len(turns) == 3:
            raise KeyboardInterrupt
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(block_fit.BlockFit, "run", run)
        with pytest.raises(KeyboardInterrupt):
            fitted(model, texts(model), QUICK, keep=kept.update)
    assert len(kept) == 2
    assert fitted(model, texts(model), QUICK, done=kept).id == fitted(model, texts(model), QUICK).id


def test_more_tokens_than_asked_for_are_not_read() -> None:
    model = make_model("gpt2")
    options = replace(QUICK, max_tokens=200)
    book, report = fit_codebook(model, MODEL, texts(model, 5), options)
    assert (report.tokens, report.sequences) == (200, 5)
    assert book.id == fitted(model, texts(model, 12), options).id


@pytest.mark.parametrize("options", [QUICK, PLAIN, ASTRA])
def test_a_sample_bounds_what_k_means_sees(
    options: FitOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All tokens count for predictions and coordinates' centers; codewords see a sample."""
    model = make_model("gpt2")
    sizes: list[int] = []

    def counting(y: Tensor, *arguments: Any) -> Tensor:
        sizes.append(y.shape[1])
        return kmeans(y, *arguments)

    monkeypatch.setattr(block_fit, "kmeans", counting)
    some = replace(options, sample=100)
    book, report = fit_codebook(model, MODEL, texts(model), some)
    assert set(sizes) == {100}
    assert report.tokens == 480
    assert book.id == fitted(model, texts(model), some).id
    sizes.clear()
    whole = fitted(model, texts(model), options)
    assert set(sizes) == {480}
    assert whole.id != book.id
    assert whole.id == fitted(model, texts(model), replace(options, sample=480)).id


def test_samples_are_drawn_from_all_parts_without_repetition() -> None:
    picks = block_fit.picks([5, 0, 7, 3], 9, block_fit.seeded(0, "x"))
    assert [len(one) for one in picks].count(0) >= 1
    assert sum(map(len, picks)) == 9
    for size, one in zip([5, 0, 7, 3], picks, strict=True):
        assert len(one.unique()) == len(one)
        assert not len(one) or (int(one.min()) >= 0 and int(one.max()) < size)
    whole = block_fit.picks([5, 0, 7], 12, block_fit.seeded(0, "x"))
    assert [one.tolist() for one in whole] == [list(range(5)), [], list(range(7))]


def test_sequences_of_different_lengths_and_numbers_of_peers() -> None:
    model = make_model("gpt2")
    inputs = [*texts(model, 6, 40), *texts(model, 9, 13, seed=1), *texts(model, 3, 1, seed=2)]
    options = replace(QUICK, peers=(4, 2, 8))
    book, report = fit_codebook(model, MODEL, inputs, options)
    check(book)
    assert (report.tokens, report.sequences) == (6 * 40 + 9 * 13 + 3, 18)
    assert book.id != fitted(model, inputs, replace(options, peers=(2,))).id


def test_the_sensitivity_can_be_of_another_task() -> None:
    model = make_model("bert")
    inputs = inputs_for(model)
    ids = {fitted(model, inputs, QUICK, task=task).id for task in ("", "classify", "embed")}
    assert len(ids) == 2  # classification is the first task of this model
    with pytest.raises(WrongTaskError):
        fitted(model, inputs, QUICK, task="generate")


def test_a_fingerprint_tells_inputs_apart() -> None:
    model = make_model("gpt2")
    some = texts(model, 3)
    assert fingerprint(some) == fingerprint(list(some))
    a, b = torch.tensor([1, 2]), torch.tensor([3])
    others = [
        [ModelInput(tokens=torch.cat([a, b]))],
        [ModelInput(tokens=a), ModelInput(tokens=b)],
        [ModelInput(tokens=b), ModelInput(tokens=a)],
        [ModelInput(pixels=torch.zeros(3, 2, 2))],
        [],
    ]
    assert len({fingerprint(one) for one in others}) == len(others)


# --- what cannot be fitted ------------------------------------------------------------------------

VQ = partial(FitOptions, codewords=16)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (FitOptions("zip"), "no codebook"),
        (FitOptions(groups=0), "groups"),
        (FitOptions(groups=33), "groups"),
        (FitOptions("astra", 0, groups=5), "divide"),
        (FitOptions("astra", 1, groups=4), "no history"),
        (FitOptions("astra", groups=4), "no history"),
        (FitOptions(codewords=1), "codewords"),
        (FitOptions(codewords=65537), "codewords"),
        (VQ(history=-2), "history"),
        (VQ(history=1, code_first=True), "first block is coded .* with --history 0 only"),
        (FitOptions("astra", 0, groups=4, code_first=True), "astra codes it anyway"),
        (VQ(rates=()), "no rate"),
        (VQ(rates=(0,)), "0 bits"),
        (VQ(rates=(-4,)), "-4 bits"),
        (VQ(rates=(16, 18)), "18 bits cannot be: it must be a multiple of 4 bits"),
        (VQ(rates=(8, 16), groups=3), "8 bits cannot be: .* of 4 bits .*, 12 or more"),
        (VQ(rates=(512,)), "64 groups in one stage"),
        (VQ(rates=tuple(range(4, 4 * 70, 4))), "69 stages"),
        (VQ(iterations=0), "iterations"),
        (VQ(iterations=-1), "iterations"),
        (VQ(max_tokens=0), "max_tokens"),
        (VQ(sample=0), "sample"),
        (VQ(max_tokens=100), "codewords need at least 160"),
        (VQ(peers=()), "peers"),
        (VQ(peers=(4, 0)), "peers"),
        (VQ(peers=(65,)), "peers"),
    ],
)
def test_impossible_options(options: FitOptions, text: str) -> None:
    model = make_model("gpt2")
    with pytest.raises(CalibrationError, match=text):
        fit_codebook(model, MODEL, texts(model), options)


@pytest.mark.parametrize(
    ("options", "groups", "stages", "default"),
    [
        (FitOptions(), (1, 1, 2, 4, 8), {8: 1, 16: 2, 32: 3, 64: 4, 128: 5}, 4),
        (FitOptions(rates=(64, 16)), (1, 1, 2, 4), {16: 2, 64: 4}, 4),
        (FitOptions(rates=(16, 64), default_rate=1), (1, 1, 2, 4), {16: 2, 64: 4}, 2),
        (FitOptions(rates=(10,), codewords=1024), (1,), {10: 1}, 1),
        (FitOptions(rates=(27,), codewords=512, groups=3), (3,), {27: 1}, 1),
        (FitOptions("astra", 0, groups=32, codewords=1024), (32,), {320: 1}, 1),
    ],
)
def test_rates_become_stages(
    options: FitOptions, groups: tuple[int, ...], stages: dict[int, int], default: int
) -> None:
    assert options.stage_groups == groups
    wanted = {rate: count for rate, count in stages.items() if rate in options.rates}
    assert options.stages == (wanted if options.codec == "vq" else stages)
    assert options.default_stages == default


@pytest.mark.parametrize("options", [QUICK, PLAIN, ASTRA])
def test_too_little_data(options: FitOptions) -> None:
    model = make_model("gpt2")
    with pytest.raises(CalibrationError, match=r"40 calibration tokens are too few .* least 160"):
        fit_codebook(model, MODEL, texts(model, 1), options)
    with pytest.raises(CalibrationError, match="0 calibration tokens"):
        fit_codebook(model, MODEL, [], options)
    fit_codebook(model, MODEL, texts(model, 4), options)  # just enough


@pytest.mark.parametrize("options", [QUICK, PLAIN, replace(QUICK, history=1), ASTRA])
def test_data_that_say_nothing(options: FitOptions) -> None:
    """One token again and again, at one position: there is nothing to learn from."""
    model = make_model("gpt2")
    same = [ModelInput(tokens=torch.tensor([3])) for _ in range(200)]
    with pytest.raises(CalibrationError, match="all alike"):
        fit_codebook(model, MODEL, same, options)


def test_inputs_of_another_model() -> None:
    with pytest.raises(InputError, match="reads text"):
        fit_codebook(make_model("gpt2"), MODEL, [ModelInput(pixels=torch.zeros(3, 4, 4))], QUICK)


def test_a_model_of_one_block_needs_no_codebook() -> None:
    model = build_model(CONFIGS["gpt2"] | {"n_layer": 1}, make_tensors("gpt2"))
    with pytest.raises(CalibrationError, match="one block"):
        fit_codebook(model, MODEL, texts(model), QUICK)
    assert fitted(model, texts(model), ASTRA).blocks == 1  # it codes the first block too


def test_embeddings_too_large_for_a_file() -> None:
    tensors = make_tensors("gpt2")
    tensors["transformer.wte.weight"] *= 1e7
    model = build_model(CONFIGS["gpt2"], tensors)
    with pytest.raises(CalibrationError, match="float16"):
        fit_codebook(model, MODEL, texts(model), ASTRA)
