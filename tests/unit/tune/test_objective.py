"""The loss of a batch: of what the mesh would answer, against the data and the full model."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from astra_mesh.engine.reference import hidden_rows, pooled, run_plan, run_solo
from astra_mesh.families import Model
from astra_mesh.plan.layout import make_layout
from astra_mesh.quant.codebook import UNLIMITED, Codebook
from astra_mesh.quant.codecs import VectorCodec
from astra_mesh.quant.mixed import Shares, pooled_class, pooled_mean, shares
from astra_mesh.tune.objective import Batch, Objective, alone, draw_shares
from astra_mesh.tune.options import TuneOptions
from astra_mesh.tune.quantizer import TunedBook
from tests.unit.engine.plans import random_book
from tests.unit.families.making import KINDS, make_model
from tests.unit.tune.making import TOKENS, batch_of, inputs_of, memorizing_book

QUIET = TuneOptions(noise=0.0, commitment=0.0, reconstruction=0.0, distill=0.0)
TASKS = [("gpt2", "generate"), ("qwen3", "generate"), ("vit", "classify"), ("bert", "classify")]
ALL_TASKS = [*TASKS, ("bert", "embed")]
UNEVEN = [[4, 5, 11], [1, 2, 3], [9, 14, 15]]


def objective(
    model: Model,
    book: Codebook,
    task: str,
    options: TuneOptions = QUIET,
    teacher: Model | None = None,
) -> Objective:
    return Objective(model, TunedBook(book, options), teacher, task, options)


def solo(model: Model, batch: Batch, task: str) -> Tensor:
    """Answers of the engine on one device: (B, classes), (B, T, vocab) or (B, D)."""
    found = []
    for one in inputs_of(batch):
        if task == "generate":
            found.append(model.logits(hidden_rows([run_solo(model, one, "all")])))
        elif task == "classify":
            found.append(model.classify(pooled([run_solo(model, one, "class")])))
        else:
            found.append(F.normalize(pooled([run_solo(model, one, "mean")]), dim=-1))
    return torch.stack(found)


def loss_of(
    learner: Objective, batch: Batch, held: Shares, stages: int = 2
) -> tuple[float, list[float]]:
    """The loss and its parts, without noise."""
    total, parts = learner(batch, held, stages, None)
    return float(total.detach()), parts.tolist()


def plain_loss(model: Model, batch: Batch, task: str) -> float:
    """Cross-entropy of one device, summed up in plain words."""
    scores = solo(model, batch, task).log_softmax(-1)
    if task == "classify":
        assert batch.labels is not None
        picked = [one[int(label)] for one, label in zip(scores, batch.labels, strict=True)]
    else:
        assert batch.tokens is not None
        picked = [
            rows[place, int(ids[place + 1])]
            for rows, ids in zip(scores, batch.tokens, strict=True)
            for place in range(len(ids) - 1)
        ]
    return -float(torch.stack(picked).mean())


def uneven(distributed: bool = False) -> Shares:
    return shares(torch.tensor(UNEVEN), TOKENS, distributed=distributed)


# --- what the mesh answers ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_alone_is_the_engine_on_one_device(kind: str) -> None:
    model = make_model(kind)
    batch = batch_of(model)
    hidden, held = alone(model, batch)
    for index, one in enumerate(inputs_of(batch)):
        wanted = hidden_rows([run_solo(model, one, "all")])
        torch.testing.assert_close(hidden[:, index], wanted, rtol=0, atol=1e-4)
        if not model.spec.causal:
            mean = pooled([run_solo(model, one, "mean")])
            torch.testing.assert_close(pooled_mean(hidden, held)[index], mean, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("codec", "history"), [("vq", 0), ("vq", 1), ("vq", -1), ("astra", 0)])
def test_hidden_rows_are_those_of_the_engine_s_shards(kind: str, codec: str, history: int) -> None:
    model = make_model(kind)
    book = random_book(model, codec, history=history)
    batch = batch_of(model)
    hidden, _ = objective(model, book, "generate").hidden(batch, uneven(), book.stages, None)
    for index, one in enumerate(inputs_of(batch)):
        layout = make_layout(
            model.spec,
            list(pairwise([0, *UNEVEN[index], TOKENS])),
            pooling="all",
            first_block=book.first_block,
            stages=book.stages,
        )
        runs = run_plan(model, layout, VectorCodec(model, book, "project"), one)
        torch.testing.assert_close(hidden[:, index], hidden_rows(runs), rtol=0, atol=1e-3)
        far = (hidden[:, index] - alone(model, batch)[0][:, index]).abs().max()
        assert far > 0.1  # codes so coarse are no exact rows


@pytest.mark.parametrize("kind", ["vit", "bert"])
def test_copies_of_the_class_token_answer_as_in_the_engine(kind: str) -> None:
    model = make_model(kind)
    book = random_book(model, history=UNLIMITED)
    batch, held = batch_of(model), uneven(distributed=True)
    hidden, _ = objective(model, book, "classify").hidden(batch, held, 2, None)
    for index, one in enumerate(inputs_of(batch)):
        layout = make_layout(
            model.spec,
            list(pairwise([0, *UNEVEN[index], TOKENS])),
            pooling="class",
            first_block=1,
            class_token="distributed",
            stages=2,
        )
        runs = run_plan(model, layout, VectorCodec(model, book, "project"), one)
        found = pooled_class(hidden, held)[index]
        torch.testing.assert_close(found, pooled(runs), rtol=0, atol=1e-3)


# --- the loss -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "task"), TASKS)
@pytest.mark.parametrize("codec", ["vq", "astra"])
def test_with_exact_codes_the_loss_is_one_device_s(kind: str, task: str, codec: str) -> None:
    model = make_model(kind)
    batch = batch_of(model)
    exact = objective(model, memorizing_book(model, batch, codec), task)
    total, parts = loss_of(exact, batch, uneven(), 1)
    wanted = plain_loss(model, batch, task)
    assert total == pytest.approx(wanted, abs=2e-5)
    assert parts == pytest.approx([wanted, 0, 0], abs=2e-5)
    coarse = objective(model, random_book(model, codec), task)
    away, _ = loss_of(coarse, batch, uneven(), coarse.book.codebook.stages)
    assert abs(away - wanted) > 5e-4


@pytest.mark.parametrize(("kind", "task"), TASKS)
@pytest.mark.parametrize("distributed", [False, True])
def test_one_peer_has_one_device_s_loss_whatever_the_codes(
    kind: str, task: str, distributed: bool
) -> None:
    model = make_model(kind)
    batch = batch_of(model)
    options = replace(QUIET, peers=(1,), distributed=distributed)
    drawn = torch.Generator().manual_seed(0)
    held = draw_shares(TOKENS, 3, options, drawn, model.spec.has_class_token)
    coarse = objective(model, random_book(model, history=UNLIMITED), task, options)
    total, _ = loss_of(coarse, batch, held)
    assert total == pytest.approx(plain_loss(model, batch, task), abs=1e-4)


@pytest.mark.parametrize(("kind", "task"), ALL_TASKS)
def test_distillation_is_zero_for_the_same_answers_only(kind: str, task: str) -> None:
    model, teacher = make_model(kind), make_model(kind)
    options = replace(QUIET, distill=1.0, peers=(1,))
    batch = batch_of(model)
    same = objective(model, random_book(model), task, options, teacher)
    one = shares(torch.empty(3, 0, dtype=torch.int64), TOKENS)
    assert loss_of(same, batch, one)[0] == pytest.approx(0, abs=1e-5)
    assert loss_of(same, batch, uneven())[0] > 1e-3
    other = objective(model, random_book(model), task, options, make_model(kind, seed=1))
    assert loss_of(other, batch, one)[0] > 1e-3


@pytest.mark.parametrize(("kind", "task"), TASKS)
def test_distillation_is_the_divergence_from_the_teacher(kind: str, task: str) -> None:
    model, teacher = make_model(kind), make_model(kind, seed=1)
    batch = batch_of(model)
    options = replace(QUIET, distill=1.0)
    one = shares(torch.empty(3, 0, dtype=torch.int64), TOKENS)
    learner = objective(model, random_book(model), task, options, teacher)
    found, _ = loss_of(learner, batch, one)
    right, own = (solo(one, batch, task).log_softmax(-1) for one in (teacher, model))
    wanted = (right.exp() * (right - own)).sum(-1).mean()
    assert found == pytest.approx(float(wanted), abs=1e-4)


def test_distillation_of_sentences_is_the_squared_distance() -> None:
    model, teacher = make_model("bert"), make_model("bert", seed=1)
    batch = batch_of(model)
    one = shares(torch.empty(3, 0, dtype=torch.int64), TOKENS)
    learner = objective(model, random_book(model), "embed", QUIET, teacher)
    wanted = (solo(model, batch, "embed") - solo(teacher, batch, "embed")).square().sum(-1).mean()
    total, parts = loss_of(learner, batch, one)
    assert total == pytest.approx(float(wanted), abs=1e-5)  # data say nothing here
    assert parts[:2] == pytest.approx([0, float(wanted)], abs=1e-5)


def test_parts_are_weighed_as_asked() -> None:
    model = make_model("vit")
    options = replace(QUIET, distill=0.3, commitment=0.5, reconstruction=0.25)
    learner = objective(model, random_book(model), "classify", options, make_model("vit", seed=1))
    total, parts = loss_of(learner, batch_of(model), uneven())
    data, distill, reconstruction = parts
    assert min(data, distill, reconstruction) > 0.01
    wanted = 0.7 * data + 0.3 * distill + (0.5 + 0.25) * reconstruction
    assert total == pytest.approx(wanted, rel=1e-5)


def test_unknown_labels_count_for_nothing() -> None:
    model = make_model("vit")
    learner = objective(
        model, random_book(model), "classify", replace(QUIET, distill=0.5), make_model("vit", 1)
    )
    one = shares(torch.empty(2, 0, dtype=torch.int64), TOKENS)
    both, first, none = (
        loss_of(learner, batch_of(model, 2, labels=labels), one)
        for labels in ([1, 2], [1, -1], [-1, -1])
    )
    scores = solo(model, batch_of(model, 2), "classify").log_softmax(-1)
    assert both[1][0] == pytest.approx(-float(scores[0, 1] + scores[1, 2]) / 2, abs=1e-4)
    assert first[1][0] == pytest.approx(-float(scores[0, 1]), abs=1e-4)
    assert none[1][0] == 0
    assert none[0] == pytest.approx(none[1][1])  # the teacher alone, at full weight


@pytest.mark.parametrize(("kind", "task"), ALL_TASKS)
def test_everything_learns_but_the_teacher(kind: str, task: str) -> None:
    model, teacher = make_model(kind), make_model(kind, seed=1)
    book = random_book(model, history=1)
    for one in (model, teacher):
        one.requires_grad_(True)
    learner = objective(model, book, task, TuneOptions(distill=0.5), teacher)
    assert {id(one) for one in learner.parameters()}.isdisjoint(map(id, teacher.parameters()))
    learner(batch_of(model), uneven(), 2, torch.Generator())[0].backward()
    assert all(one.grad is None for one in teacher.parameters())
    blind = {name for name, one in learner.named_parameters() if not reached(one)}
    unused = {"generate": set(), "classify": set(), "embed": {"pooler", "head"}}[task]
    if kind == "bert":
        unused = unused | {"types"}
    assert {name.split(".")[1] for name in blind if name.startswith("model.")} <= unused
    assert all(name.startswith(("model.", "book.levels.1.")) for name in blind)


def reached(parameter: Any) -> bool:
    return parameter.grad is not None and bool(parameter.grad.abs().max() > 0)


# --- plans ----------------------------------------------------------------------------------------


def drawn(options: TuneOptions, seed: int, tokens: int = TOKENS, size: int = 4) -> Shares:
    generator = torch.Generator().manual_seed(seed)
    return draw_shares(tokens, size, options, generator, has_class=True)


def sizes(held: Shares) -> list[list[int]]:
    """Tokens of each shard, of each sequence."""
    owners = held.owner[:, held.copies :]
    return [torch.bincount(one, minlength=int(held.owner.max()) + 1).tolist() for one in owners]


def test_every_number_of_peers_and_uneven_shards_are_drawn() -> None:
    options = replace(QUIET, distributed=False)
    counts: Counter[int] = Counter()
    cuts = set()
    for seed in range(400):
        held = drawn(options, seed)
        assert held.owner.shape == (4, TOKENS)
        assert held.copies == 0
        assert bool((held.owner.diff() >= 0).all())  # contiguous, and
        assert all(min(one) >= 1 for one in sizes(held))  # nobody is without tokens
        found = {len(one) for one in sizes(held)}
        assert len(found) == 1  # one number for all sequences
        counts[found.pop()] += 1
        cuts |= {tuple(one) for one in sizes(held) if len(one) == 2}
    assert set(counts) == set(options.peers)
    assert min(counts.values()) > 400 / 8 / 2
    assert len(cuts) == TOKENS - 1  # every boundary between two shards


def test_boundaries_differ_between_sequences_unless_even_is_asked_for() -> None:
    options = replace(QUIET, peers=(3,), distributed=False)
    assert len({tuple(one) for one in sizes(drawn(options, 0, size=20))}) > 5
    assert sizes(drawn(replace(options, uneven=False), 0)) == [[5, 5, 6]] * 4


def test_plans_are_fixed_by_the_generator() -> None:
    options = QUIET
    owners = [drawn(options, seed).owner.tolist() for seed in (1, 1, 2)]
    assert owners[0] == owners[1] != owners[2]


def test_no_more_peers_than_tokens() -> None:
    options = replace(QUIET, peers=(8,), distributed=False)
    assert sizes(drawn(options, 0, tokens=3)) == [[1, 1, 1]] * 4
    assert sizes(drawn(options, 0, tokens=1)) == [[1]] * 4


def test_a_class_token_has_a_copy_on_each_peer() -> None:
    held = drawn(replace(QUIET, peers=(3,)), 0)
    assert held.copies == 3
    assert held.owner[:, :3].tolist() == [[0, 1, 2]] * 4
    assert held.owner.shape == (4, 3 + TOKENS - 1)
    without = draw_shares(TOKENS, 4, QUIET, torch.Generator(), has_class=False)
    assert without.copies == 0
