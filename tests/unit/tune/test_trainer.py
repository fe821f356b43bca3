"""Training runs: they learn, go on where they stopped to the same bits, and end with names."""

from __future__ import annotations

import csv
import itertools
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from astra_mesh.errors import CalibrationError, InputError, ModelError
from astra_mesh.families import Model
from astra_mesh.quant.codebook import Codebook
from astra_mesh.quant.fit import fit_codebook
from astra_mesh.quant.mixed import Shares, even_bounds, shares
from astra_mesh.quant.options import FitOptions
from astra_mesh.tune.lora import twin
from astra_mesh.tune.objective import Batch
from astra_mesh.tune.options import TuneOptions
from astra_mesh.tune.trainer import CHECKPOINT, COLUMNS, CURVE, Trainer, Tuned, schedule
from astra_mesh.wire.messages import ModelId
from tests.unit.families.making import VOCAB, make_model
from tests.unit.quality.full_disk import files_of_at_most
from tests.unit.tune.making import TOKENS, batch_of, inputs_of

# Rows count alike, as they do in the loss that brings codes nearer.
FIT = FitOptions(
    codewords=16, rates=(4, 16), default_rate=16, iterations=2, sensitivity=0, attention=None
)
SHORT = TuneOptions(
    steps=11, batch=4, check=3, patience=0, learning_rate=1e-3, lora_rank=2, covariance="full"
)
Stream = Callable[[int], Iterator[Batch]]


def counting(seed: int, size: int = 4) -> Batch:
    """Text in which each token follows from the one before."""
    tokens = torch.randint(VOCAB, (size, 1), generator=torch.Generator().manual_seed(seed))
    for _ in range(TOKENS - 1):
        tokens = torch.cat([tokens, (tokens[:, -1:] * 7 + 3) % VOCAB], dim=1)
    return Batch(tokens=tokens)


def shades(seed: int, size: int = 4) -> Batch:
    """Pictures that are brighter or darker, and labelled so."""
    batch = batch_of(make_model("vit"), size, seed=seed)
    assert batch.pixels is not None
    assert batch.labels is not None
    return replace(batch, pixels=batch.pixels + (2 * batch.labels - 1)[:, None, None, None])


MADE = {"gpt2": ("generate", counting), "vit": ("classify", shades)}


@cache
def fitted(kind: str) -> Codebook:
    model = make_model(kind)
    inputs = [one for seed in range(4) for one in inputs_of(MADE[kind][1](seed))]
    return fit_codebook(model, ModelId("a" * 64), inputs, FIT)[0]


def trainer(
    work: Path,
    options: TuneOptions = SHORT,
    kind: str = "gpt2",
    *,
    stop: int | None = None,
    batches: Stream | None = None,
    held_out: list[Batch] | None = None,
    book: Codebook | None = None,
    source: str = "",
    model: Model | None = None,
    teacher: Model | None = None,
) -> Trainer:
    """A run from the same start each time; ``stop``: killed when it asks for that batch."""
    task, make = MADE[kind]

    def plain(skip: int) -> Iterator[Batch]:
        for number in itertools.count(skip):
            if number == stop:
                raise KeyboardInterrupt
            yield make(100 + number)

    return Trainer(
        model or make_model(kind),
        teacher or make_model(kind),
        book or fitted(kind),
        task,
        batches or plain,
        held_out or [make(seed) for seed in (7, 8)],
        options,
        work,
        source,
    )


def rows(work: Path) -> list[dict[str, str]]:
    with (work / CURVE).open(newline="") as stream:
        return list(csv.DictReader(stream))


def weights(model: Model) -> dict[str, Tensor]:
    return {name: one.detach().clone() for name, one in model.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


# --- learning -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "distributed"), [("gpt2", False), ("vit", True)])
def test_a_short_run_lowers_the_held_out_loss(work: Path, kind: str, distributed: bool) -> None:
    options = TuneOptions(
        steps=60, batch=8, check=20, learning_rate=3e-3, distributed=distributed, distill=0.1
    )
    run = trainer(work, options, kind)
    mesh, alone = run.measure()
    tuned = run.run()
    assert tuned.steps == 60
    assert not tuned.stopped_early
    losses = [float(row["held_out_mesh"]) for row in rows(work)]
    assert tuned.best == pytest.approx(min(losses), rel=1e-5)
    assert losses[0] == pytest.approx(mesh, rel=1e-5)
    assert tuned.best < 0.6 * mesh
    assert tuned.best_step == (0, 20, 40, 60)[losses.index(min(losses))] > 0
    assert float(rows(work)[-1]["held_out_alone"]) < 0.6 * alone
    found = run.measure()[0]  # the model holds the best weights now
    assert found == pytest.approx(tuned.best, rel=1e-3)
    assert not any(one.requires_grad for one in run.model.parameters())


def test_training_the_codebook_alone_brings_codes_nearer(work: Path) -> None:
    """No weight moves by a bit, and the mesh answers better."""
    options = replace(
        SHORT,
        trained="codebook",
        steps=80,
        check=40,
        codebook_rate=3e-3,
        reconstruction=1.0,
        noise=0.0,
        distill=1.0,
    )
    run = trainer(work, options)
    before, start, far = weights(run.model), run.measure(), errors(run)
    tuned = run.run()
    assert equal(weights(run.model), before)
    mesh, alone = run.measure()
    assert alone == start[1]
    assert mesh < start[0] - 0.01  # seen: 0.0185 and more, by processor
    assert errors(run) < 0.98 * far
    assert tuned.codebook.id != fitted("gpt2").id


def errors(run: Trainer) -> float:
    """The codebook's own error, relative, at the default rate."""
    objective, batch = run.objective, counting(7)
    held = shares(even_bounds(TOKENS, 4, len(batch)), TOKENS)
    with torch.no_grad():
        _, coding = objective.hidden(batch, held, run.book.codebook.default_stages, None)
        return float(coding.penalties()[1])


def test_lora_trains_adapters_only_and_ends_as_plain_weights(work: Path) -> None:
    options = replace(SHORT, trained="lora", learning_rate=1e-2)
    run = trainer(work, options)
    start = weights(make_model("gpt2"))
    adapted = weights(run.model)
    run.run()
    ends = weights(run.model)
    assert ends.keys() == start.keys() != adapted.keys()
    for name, before in start.items():
        low_rank = name.startswith("block_list") and before.dim() == 2
        change = ends[name] - before
        assert bool(change.abs().max() > 0) == low_rank, name
        if low_rank:
            assert int((torch.linalg.svdvals(change) > 1e-5).sum()) <= 2


def test_all_weights_learn_by_default(work: Path) -> None:
    run = trainer(work)
    run.run()
    start = weights(make_model("gpt2"))
    ends = weights(run.model)
    assert all(not torch.equal(ends[name], start[name]) for name in start)
    assert torch.equal(ends["head.weight"], ends["wte"])  # still tied


def memoryless(kind: str, default_rate: int) -> Codebook:
    inputs = [one for seed in range(4) for one in inputs_of(MADE[kind][1](seed))]
    options = replace(FIT, history=0, default_rate=default_rate)
    return fit_codebook(make_model(kind), ModelId("a" * 64), inputs, options)[0]


@pytest.mark.parametrize(("default_rate", "measured"), [(4, 1), (16, 3)])
def test_a_memoryless_codebook_trains_its_prefixes(
    work: Path, monkeypatch: pytest.MonkeyPatch, default_rate: int, measured: int
) -> None:
    """Every rate that it serves is drawn, and progress is measured at the default one."""
    book = memoryless("gpt2", default_rate)
    assert (list(book.levels), book.able) == ([3], (1, 2, 3))
    run = trainer(work, replace(SHORT, steps=20, check=20), book=book)
    drawn: list[int] = []
    checked: list[int] = []
    plain = run.objective.hidden

    def hidden(batch: Batch, held: Shares, stages: int, own: torch.Generator | None) -> object:
        (checked if own is None else drawn).append(stages)
        return plain(batch, held, stages, own)

    monkeypatch.setattr(run.objective, "hidden", hidden)
    tuned = run.run()
    assert len(drawn) == 20
    assert set(drawn) == {1, 2, 3}
    assert set(checked) == {measured}
    assert tuned.codebook.able == book.able
    assert tuned.codebook.default_stages == measured


def test_bf16_is_near_fp32(work: Path, tmp_path: Path) -> None:
    full = trainer(work, replace(SHORT, noise=0)).run()
    (tmp_path / "half").mkdir()
    half = trainer(tmp_path / "half", replace(SHORT, noise=0, precision="bf16")).run()
    assert half.best != full.best
    assert half.best == pytest.approx(full.best, rel=0.01)


def test_the_learning_rate_rises_and_falls() -> None:
    factors = [schedule(step, 100, 0.1) for step in range(100)]
    assert factors.index(max(factors)) in (9, 10, 11)
    assert max(factors) == pytest.approx(1, abs=0.01)
    assert 0 < factors[0] < 0.2
    assert 0 < factors[-1] < 0.05
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert all(math.isfinite(schedule(0, steps, 0.05)) for steps in (1, 2, 3))


# --- interruptions --------------------------------------------------------------------------------


@pytest.mark.parametrize("trained", ["all", "lora", "codebook"])
@pytest.mark.parametrize("kind", ["gpt2", "vit"])
def test_a_resumed_run_ends_with_the_same_bits(
    work: Path, tmp_path: Path, trained: str, kind: str
) -> None:
    """Stopped between checkpoints, three times; the first is before any step was checked."""
    options = replace(SHORT, trained=trained)  # type: ignore[arg-type]
    whole = trainer(work, options, kind)
    wanted = whole.run()
    again = tmp_path / "again"
    again.mkdir()
    for stop in (2, 4, 8):
        with pytest.raises(KeyboardInterrupt):
            trainer(again, options, kind, stop=stop).run()
    last = trainer(again, options, kind)
    steps: list[int] = []
    found = last.run(lambda done, total, what: steps.append(done))
    assert steps == list(range(7, 12))  # from the checkpoint after step 6
    assert equal(weights(last.model), weights(whole.model))
    assert found.codebook.id == wanted.codebook.id
    assert (found.best, found.best_step) == (wanted.best, wanted.best_step)
    assert (found.start, found.alone) == (wanted.start, wanted.alone)
    assert found.steps == wanted.steps
    assert [drop(row) for row in rows(again)] == [drop(row) for row in rows(work)]


@pytest.mark.parametrize("trained", ["all", "lora", "codebook"])
def test_a_checkpoint_holds_what_is_trained_and_no_more(work: Path, trained: str) -> None:
    run = trainer(work, replace(SHORT, trained=trained))  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        run.run(stopped)
    state = torch.load(work / CHECKPOINT, weights_only=True)
    assert state["model"] == "a" * 64
    assert state["state"].keys() == state["kept"].keys()
    named = {name for name, one in run.objective.named_parameters() if one.requires_grad}
    assert named
    statistics = {name for name in state["state"] if name.endswith((".spread", ".seen"))}
    assert state["state"].keys() == named | statistics
    assert all(name.startswith("book.") for name in statistics)
    of_model = {name for name in named if name.startswith("model.")}
    assert all(name.endswith((".up", ".down")) for name in of_model) == (trained != "all")
    assert bool(of_model) == (trained != "codebook")
    kept = [one for part in ("state", "kept") for one in state[part].values()]
    kept += [x for one in state["optimizer"]["state"].values() for x in one.values()]
    size = sum(one.numel() * one.element_size() for one in kept)
    assert size <= (work / CHECKPOINT).stat().st_size < size + 1000 * len(kept)


def stopped(done: int, total: int, what: str) -> None:
    """Killed after the second checkpoint of a run."""
    if done == 4:
        raise KeyboardInterrupt


@pytest.mark.parametrize("trained", ["lora", "codebook"])
def test_a_teacher_on_the_same_weights_teaches_the_same(
    work: Path, tmp_path: Path, trained: str
) -> None:
    (tmp_path / "twin").mkdir()
    options = replace(SHORT, trained=trained, learning_rate=1e-2)  # type: ignore[arg-type]
    wanted = trainer(work, options)
    codebook = wanted.run().codebook
    model = make_model("gpt2")
    shared = trainer(tmp_path / "twin", options, model=model, teacher=twin(model))
    assert shared.run().codebook.id == codebook.id
    assert equal(weights(shared.model), weights(wanted.model))


def test_a_checkpoint_of_an_older_form_is_refused_by_name(work: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trainer(work, stop=4).run()
    state = torch.load(work / CHECKPOINT, weights_only=True)
    del state["format"]
    torch.save(state, work / CHECKPOINT)
    with pytest.raises(ModelError, match="another version of this program; delete it"):
        trainer(work).run()


def drop(row: dict[str, str]) -> dict[str, str]:
    """Without what the clock says."""
    return {name: value for name, value in row.items() if name != "seconds"}


def test_a_resumed_run_remembers_its_best(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here that of the first check after the start's; all later ones are worse."""
    seen: list[dict[str, Tensor]] = []
    losses = iter([5.0, 1.0, 2.0, 3.0, 4.0])

    def measured(run: Trainer) -> Trainer:
        def measure() -> tuple[float, float]:
            seen.append(weights(run.model))
            return next(losses), 1.0

        monkeypatch.setattr(run, "measure", measure)
        return run

    with pytest.raises(KeyboardInterrupt):
        measured(trainer(work, stop=7)).run()
    last = measured(trainer(work))
    tuned = last.run()
    assert (tuned.best, tuned.best_step) == (1.0, 3)
    assert len(seen) == 5
    assert equal(weights(last.model), seen[1])
    assert not equal(seen[0], seen[1])


def test_the_curve_has_a_row_for_each_check(work: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trainer(work, stop=7).run()
    assert [row["step"] for row in rows(work)] == ["0", "3", "6"]
    trainer(work).run()
    found = rows(work)
    assert [row["step"] for row in found] == ["0", "3", "6", "9", "11"]
    assert tuple(found[0]) == COLUMNS
    empty = {name for name, value in found[0].items() if not value}
    assert empty == {"loss", "data", "distill", "reconstruction"}
    told = [value for row in found for value in row.values() if value]
    assert len(told) == len(found) * len(COLUMNS) - len(empty)
    assert all(math.isfinite(float(value)) for value in told)
    seconds = [float(row["seconds"]) for row in found]
    assert seconds == sorted(seconds)


def test_a_new_run_begins_a_new_curve(work: Path) -> None:
    trainer(work, replace(SHORT, check=2)).run()
    (work / CHECKPOINT).unlink()
    trainer(work).run()
    assert [row["step"] for row in rows(work)] == ["0", "3", "6", "9", "11"]


def test_a_run_may_be_made_longer(work: Path) -> None:
    trainer(work, replace(SHORT, steps=6)).run()
    assert trainer(work, SHORT).run().steps == 11
    assert [row["step"] for row in rows(work)] == ["0", "3", "6", "9", "11"]


def test_the_checkpoint_of_another_run_is_refused_by_name(work: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trainer(work, stop=4).run()
    kept = (work / CHECKPOINT).read_bytes()
    other = replace(fitted("gpt2"), model=ModelId("b" * 64))
    for run in (
        trainer(work, replace(SHORT, noise=0.1)),
        trainer(work, replace(SHORT, seed=1)),
        trainer(work, replace(SHORT, trained="lora")),
        trainer(work, book=other),
        trainer(work, source="other data"),
    ):
        with pytest.raises(ModelError, match=r"checkpoint\.pt is of a run with another codebook"):
            run.run()
    assert (work / CHECKPOINT).read_bytes() == kept


@pytest.mark.parametrize("damage", ["cut", "junk", "empty"])
def test_a_damaged_checkpoint_is_named(work: Path, damage: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        trainer(work, stop=4).run()
    path = work / CHECKPOINT
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[: len(whole) // 2], "junk": b"junk" * 99, "empty": b""}[damage])
    with pytest.raises(ModelError, match=r"checkpoint\.pt cannot be read .* delete it"):
        trainer(work).run()


# --- the end --------------------------------------------------------------------------------------


def test_without_gain_it_stops_and_keeps_the_best(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([4.0, 3.0, 2.0, 2.5, 2.0, 9.0])
    seen: list[dict[str, Tensor]] = []
    run = trainer(work, replace(SHORT, steps=99, patience=2))

    def measure() -> tuple[float, float]:
        seen.append(weights(run.model))
        return next(losses), 1.0

    monkeypatch.setattr(run, "measure", measure)
    tuned = run.run()
    assert (tuned.steps, tuned.best, tuned.best_step) == (12, 2.0, 6)
    assert tuned.stopped_early
    assert equal(weights(run.model), seen[2])
    assert not equal(seen[2], seen[4])


@pytest.mark.parametrize("trained", ["all", "lora", "codebook"])
@pytest.mark.parametrize("stop", [None, 2, 7])
def test_where_all_of_it_is_worse_the_start_is_kept(
    work: Path, monkeypatch: pytest.MonkeyPatch, trained: str, stop: int | None
) -> None:
    """To the bit, also by a run that was resumed; training did move it."""
    options = replace(SHORT, trained=trained)  # type: ignore[arg-type]
    moved: list[str] = []

    def measured(run: Trainer) -> Trainer:
        def measure() -> tuple[float, float]:
            moved.append(run.book.stored().id)
            return 1.0 + run.step, 1.0

        monkeypatch.setattr(run, "measure", measure)
        return run

    if stop is not None:
        with pytest.raises(KeyboardInterrupt):
            measured(trainer(work, options, stop=stop)).run()
    last = measured(trainer(work, options))
    tuned = last.run()
    assert (tuned.steps, tuned.best, tuned.best_step) == (11, 1.0, 0)
    assert equal(weights(last.model), weights(make_model("gpt2")))
    assert tuned.codebook.id == fitted("gpt2").id == moved[0]
    assert len(set(moved)) == len(moved) == 5  # the start is measured once
    assert [row["step"] for row in rows(work)] == ["0", "3", "6", "9", "11"]


def test_a_run_that_had_stopped_early_stops_again(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second time without a step."""
    for steps in (12, 0):
        losses = iter([4.0, 3.0, 2.0, 2.5, 2.0])
        run = trainer(work, replace(SHORT, steps=99, patience=2))
        monkeypatch.setattr(run, "measure", lambda losses=losses: (next(losses), 1.0))
        done: list[int] = []
        tuned = run.run(lambda step, total, what, done=done: done.append(step))  # type: ignore[misc]
        assert (tuned.steps, tuned.start, tuned.best, len(done)) == (12, 4.0, 2.0, steps)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
@pytest.mark.parametrize("history", [True, False])
def test_a_loss_that_is_no_number_ends_the_run(work: Path, covariance: str, history: bool) -> None:
    """What was kept before stays."""

    def batches(skip: int) -> Iterator[Batch]:
        for number in itertools.count(skip):
            batch = shades(number)
            assert batch.pixels is not None
            bad = math.nan if number == 4 else 0.0
            yield replace(batch, pixels=batch.pixels + bad)

    options = replace(SHORT, covariance=covariance)  # type: ignore[arg-type]
    book = None
    if not history:
        inputs = inputs_of(shades(0, 20))
        made = fit_codebook(make_model("vit"), ModelId("a" * 64), inputs, replace(FIT, history=0))
        book = made[0]
    run = trainer(work, options, "vit", batches=batches, book=book)
    with pytest.raises(CalibrationError, match="no number after 4 steps: lower the learning rate"):
        run.run()
    state = torch.load(work / CHECKPOINT, weights_only=True)
    assert state["step"] == 3
    assert all(bool(one.isfinite().all()) for one in state["state"].values())


def test_weights_that_are_no_numbers_end_the_run(work: Path) -> None:
    run = trainer(work)
    with torch.no_grad():
        run.model.block(1).out.weight[0, 0] = math.nan
    with pytest.raises(CalibrationError, match="no number after 0 steps: look at the weights and"):
        run.run()
    assert list(work.iterdir()) == []


def test_held_out_data_that_are_no_numbers_end_the_run(work: Path) -> None:
    """Before it has cost anything."""
    batch = shades(0)
    assert batch.pixels is not None
    run = trainer(work, kind="vit", held_out=[replace(batch, pixels=batch.pixels * math.nan)])
    steps: list[int] = []
    with pytest.raises(CalibrationError, match="no number after 0 steps: look at the weights and"):
        run.run(lambda done, total, what: steps.append(done))
    assert steps == []
    assert list(work.iterdir()) == []


def test_a_measurement_that_is_no_number_ends_the_run(work: Path) -> None:
    """So that no broken weights are taken for the best."""
    run = trainer(work, kind="vit")

    def breaks(done: int, total: int, what: str) -> None:
        if done == 3:  # after the step, before its check
            with torch.no_grad():
                run.model.block(1).out.weight[0, 0] = math.nan

    with pytest.raises(CalibrationError, match="no number after 3 steps: lower the learning rate"):
        run.run(breaks)
    state = torch.load(work / CHECKPOINT, weights_only=True)
    assert (state["step"], state["best_step"]) == (0, 0)
    assert all(bool(one.isfinite().all()) for one in state["kept"].values())
    assert [row["step"] for row in rows(work)] == ["0"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"batch": 0},
        {"check": 0},
        {"held_out": 0},
        {"lora_rank": 0},
        {"peers": ()},
        {"peers": (0,)},
        {"peers": (65,)},
        {"distill": 1.1},
        {"distill": math.nan},
        {"noise": -0.1},
        {"commitment": -1.0},
        {"noise": math.inf},
        {"noise": math.nan},
        {"commitment": math.inf},
        {"reconstruction": math.inf},
        {"decay": math.inf},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"codebook_rate": 1.0},
    ],
)
def test_impossible_options_are_named(work: Path, wrong: dict[str, object]) -> None:
    name = next(iter(wrong))
    with pytest.raises(InputError, match="learning rates" if name.endswith("rate") else name):
        trainer(work, replace(SHORT, **wrong))  # type: ignore[arg-type]


# --- full disks -----------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_checkpoint_before_it(work: Path, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    whole: Tuned = trainer(tmp_path / "whole").run()
    with pytest.raises(KeyboardInterrupt):
        trainer(work, stop=4).run()
    kept = (work / CHECKPOINT).read_bytes()
    with (
        files_of_at_most(len(kept) // 2),
        pytest.raises(ModelError, match=r"checkpoint\.pt cannot be written .* is intact"),
    ):
        trainer(work).run()
    assert sorted(path.name for path in work.iterdir()) == [CHECKPOINT, CURVE]
    assert (work / CHECKPOINT).read_bytes() == kept
    found = trainer(work).run()
    assert found.codebook.id == whole.codebook.id
    assert [row["step"] for row in rows(work)] == ["0", "3", "6", "9", "11"]


def test_a_full_disk_is_told_where_torch_does_not(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=4096))
    text = rf"{work.absolute()}/checkpoint\.pt cannot be written \(no space left on its disk\)"
    with files_of_at_most(3000), pytest.raises(ModelError, match=text):
        trainer(work).run()


def test_a_full_disk_leaves_the_curve_before_it(work: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trainer(work, stop=4).run()
    curve = (work / CURVE).read_bytes()
    with (
        files_of_at_most(len(curve)),
        pytest.raises(ModelError, match=r"cannot write work/training\.csv"),
    ):
        trainer(work).run()
    assert (work / CURVE).read_bytes() == curve
    assert trainer(work).run().steps == 11
