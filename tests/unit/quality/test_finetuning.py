"""Fine-tuning a bundle: a new one comes out, whole, and everybody can read it."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from astra_mesh.bundle import Bundle, open_bundle, verify, write_manifest
from astra_mesh.bundle.tensors import load_weights, open_tensors, save_tensors
from astra_mesh.engine.reference import hidden_rows, pooled, run_solo
from astra_mesh.errors import CalibrationError, CodebookError, InputError, ModelError
from astra_mesh.families import Model, ModelInput, build_model, export_weights
from astra_mesh.quality import EvalSettings, FitOptions, Sample, evaluate, finetuning
from astra_mesh.quality.data import load_samples
from astra_mesh.quality.finetuning import START, Finetuned, finetune
from astra_mesh.quant.codebook import load_codebook
from astra_mesh.quant.fit import Progress
from astra_mesh.tune.options import TuneOptions
from astra_mesh.tune.trainer import CHECKPOINT, CURVE, Trainer
from tests.unit.bundle.making import photo, saved
from tests.unit.families.making import CONFIGS, VOCAB, make_tensors
from tests.unit.quality.full_disk import files_of_at_most
from tests.unit.quality.making import toy_bundle, words, write

FIT = FitOptions(codewords=16, rates=(4, 16), default_rate=16, iterations=2, max_tokens=800)
TUNE = TuneOptions(steps=8, batch=4, check=4, held_out=8, patience=0, learning_rate=1e-3)
KINDS = {"gpt2": False, "llama": False, "bert": True, "vit": True}  # has a class token
NAMES = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "vit": "ViTForImageClassification"}


@pytest.fixture(autouse=True)
def _small_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetuning, "BUFFER", 64)


def data_for(kind: str, folder: Path) -> Path:
    """A hundred inputs."""
    if kind == "vit":
        files: dict[str, bytes | str] = {
            f"{name}/{i}.png": saved(photo(20 + i, 12 + k)) for k, name in enumerate(("cat", "dog"))
            for i in range(50)
        }  # fmt: skip
        return write(folder / "pictures", files)
    if kind == "bert":
        lines = (words(20, 20, start).strip() for start in range(100))
        return write(folder, {"lines.txt": "\n".join(lines)}) / "lines.txt"
    return write(folder, {"text.txt": words(48 * 100)}) / "text.txt"


def tuned(
    folder: Path,
    kind: str = "gpt2",
    options: TuneOptions = TUNE,
    fit: FitOptions = FIT,
    output: str = "new",
    work: str = "new.work",
) -> Finetuned:
    """A run from ``folder/toy`` to ``folder/new``; both are made where they are not there."""
    if not (folder / "toy").exists():
        toy_bundle(folder / "toy", kind)
        data_for(kind, folder)
    bundle = open_bundle(folder / "toy")
    data = {"vit": "pictures", "bert": "lines.txt"}.get(kind, "text.txt")
    found = finetune(bundle, folder / data, fit, options, folder / output, work=folder / work)
    assert found is not None
    return found


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- the new bundle -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_bundle_comes_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    if kind == "bert":  # the toy's sentence vectors gain by a few steps or not, as the seed has it
        measure = Trainer.measure

        def falling(run: Trainer) -> tuple[float, float]:
            mesh, single = measure(run)
            return mesh - run.step, single

        monkeypatch.setattr(Trainer, "measure", falling)
    toy_bundle(tmp_path / "toy", kind)
    data_for(kind, tmp_path)
    before = contents(tmp_path / "toy")
    found = tuned(tmp_path, kind, replace(TUNE, distributed=True))
    assert contents(tmp_path / "toy") == before
    bundle = open_bundle(found.bundle)
    assert bundle.path == (tmp_path / "new").resolve()
    assert bundle.model_id != open_bundle(tmp_path / "toy").model_id
    assert bundle.config == open_bundle(tmp_path / "toy").config
    (path,) = bundle.codebook_paths.values()
    book = load_codebook(path, bundle.model_id)  # it is of these weights
    assert book.id == found.codebook.id
    assert book.rates == {1: 4, 3: 16}
    assert book.class_token == ("distributed" if KINDS[kind] else "single")
    with pytest.raises(CodebookError, match="other weights"):
        load_codebook(path, open_bundle(tmp_path / "toy").model_id)
    extra = "preprocessor_config.json" if kind == "vit" else "tokenizer.json"
    assert (found.bundle / extra).read_bytes() == before[extra]
    files = {"codebook.safetensors", "config.json", extra, "model.safetensors"}
    assert set(verify(bundle)) == files
    assert names(found.bundle) == files | {"manifest.json", CURVE}
    assert found.tuned.steps == TUNE.steps
    assert math.isfinite(found.tuned.best)
    assert found.tuned.best_step > 0  # else the weights were those of the start
    weights, old = load_weights(bundle), load_weights(open_bundle(tmp_path / "toy"))
    assert weights.keys() == old.keys()
    assert any(not torch.equal(weights[name], old[name]) for name in old)


@pytest.mark.parametrize("kind", NAMES)
def test_transformers_reads_the_new_bundle(tmp_path: Path, kind: str) -> None:
    import transformers

    found = tuned(tmp_path, kind)
    bundle = open_bundle(found.bundle)
    theirs, info = getattr(transformers, NAMES[kind]).from_pretrained(
        found.bundle, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ours = build_model(bundle.config, load_weights(bundle))
    generator = torch.Generator().manual_seed(1)
    if kind == "vit":
        given = torch.randn(3, 12, 20, generator=generator)
        inputs = ModelInput(pixels=given)
        logits = ours.classify(pooled([run_solo(ours, inputs, "class")]))
    else:
        given = torch.randint(VOCAB, (30,), generator=generator)
        inputs = ModelInput(tokens=given)
        logits = ours.logits(hidden_rows([run_solo(ours, inputs, "all")]))
    with torch.no_grad():
        wanted = theirs.eval()(given[None]).logits[0]
    torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-4)


def test_it_is_better_on_the_mesh_by_the_evaluation_of_the_package(tmp_path: Path) -> None:
    """Measured with the engine on the part of the data that did not train."""
    options = replace(TUNE, steps=60, check=20, learning_rate=3e-3, distill=0.0)
    before = tuned(tmp_path, options=replace(options, steps=1, learning_rate=1e-6), output="old")
    after = tuned(tmp_path, options=options)
    settings = EvalSettings(peers=(4,), limit=8, split="eval", rates=(16,), codecs=("vq",))
    perplexities = []
    for found in (before, after):
        (row,) = evaluate(open_bundle(found.bundle), tmp_path / "text.txt", settings).rows
        perplexities.append(row.metrics["perplexity"])
        assert math.log(perplexities[-1]) == pytest.approx(found.tuned.best, abs=0.02)
    assert perplexities[1] < 0.8 * perplexities[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_are_stored_as_they_were(tmp_path: Path, dtype: torch.dtype) -> None:
    """Whole numbers among them (old checkpoints have positions) say nothing about that."""
    folder = toy_bundle(tmp_path / "toy", "bert").path
    data_for("bert", tmp_path)
    tensors: dict[str, Tensor] = {"bert.embeddings.a_position_ids": torch.arange(48)}
    tensors |= {name: one.to(dtype) for name, one in make_tensors("bert").items()}
    save_tensors(folder / "model.safetensors", tensors)
    found = tuned(tmp_path, "bert")
    stored = open_tensors(found.bundle / "model.safetensors")
    assert {one.dtype for one in stored.values()} == {dtype}
    assert stored["classifier.weight"].std() > 0.1


def test_without_gain_the_new_bundle_is_the_old_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "measure", lambda self: (1.0 + self.step, 1.0))
    found = tuned(tmp_path)
    assert (found.tuned.steps, found.tuned.best, found.tuned.best_step) == (8, 1.0, 0)
    start = load_codebook(tmp_path / "new.work" / START).tensors()
    kept = load_codebook(found.bundle / "codebook.safetensors").tensors()
    assert kept.keys() == start.keys()
    assert all(torch.equal(kept[name], start[name]) for name in start)
    old, new = (
        build_model(CONFIGS["gpt2"], load_weights(open_bundle(folder))).state_dict()
        for folder in (tmp_path / "toy", found.bundle)
    )
    assert all(torch.equal(new[name], old[name]) for name in old)


def test_a_bundle_in_shards_becomes_one_file(tmp_path: Path) -> None:
    folder = toy_bundle(tmp_path / "toy", "gpt2").path
    data_for("gpt2", tmp_path)
    tensors = make_tensors("gpt2")
    (folder / "model.safetensors").unlink()
    files = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    halves = {name: files[index % 2] for index, name in enumerate(tensors)}
    for file in files:
        save_tensors(folder / file, {k: v for k, v in tensors.items() if halves[k] == file})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": halves}))
    (folder / "merges.txt").write_text("a b\n")
    (folder / "quality.json").write_text("{}")
    found = tuned(tmp_path)
    assert names(found.bundle) >= {"merges.txt", "model.safetensors", "tokenizer.json"}
    assert not names(found.bundle) & {*files, "model.safetensors.index.json", "quality.json"}
    verify(open_bundle(found.bundle))


def test_vit_without_biases_gets_some(tmp_path: Path) -> None:
    """Folding a norm's shift into the projections makes them; the config must say so."""
    folder = toy_bundle(tmp_path / "toy", "vit").path
    data_for("vit", tmp_path)
    (folder / "config.json").write_text(json.dumps(CONFIGS["vit"] | {"qkv_bias": False}))
    tensors = {
        name: one
        for name, one in make_tensors("vit").items()
        if not name.endswith(("query.bias", "key.bias", "value.bias"))
    }
    save_tensors(folder / "model.safetensors", tensors)
    found = tuned(tmp_path, "vit")
    assert open_bundle(found.bundle).config["qkv_bias"] is True
    assert "vit.encoder.layer.0.attention.attention.query.bias" in open_tensors(
        found.bundle / "model.safetensors"
    )


def test_a_folder_that_holds_something_is_no_output(tmp_path: Path) -> None:
    old = tmp_path / "new" / "codebook-h3.safetensors"
    old.parent.mkdir()
    old.write_bytes(b"old")
    with pytest.raises(InputError, match="holds files already"):
        tuned(tmp_path)
    assert names(old.parent) == {old.name}


@pytest.mark.parametrize("trained", ["lora", "codebook"])
def test_less_may_be_trained(tmp_path: Path, trained: str) -> None:
    found = tuned(tmp_path, options=replace(TUNE, trained=trained))  # type: ignore[arg-type]
    old = build_model(CONFIGS["gpt2"], load_weights(open_bundle(tmp_path / "toy")))
    new = build_model(CONFIGS["gpt2"], load_weights(open_bundle(found.bundle)))
    start = load_codebook(tmp_path / "new.work" / START)
    for name, before in old.state_dict().items():
        adapted = trained == "lora" and name.startswith("block_list") and before.dim() == 2
        assert torch.equal(new.state_dict()[name], before) != adapted, name
    assert any(
        not torch.equal(found.codebook.tensors()[name], tensor)
        for name, tensor in start.tensors().items()
    )
    same = open_bundle(found.bundle).model_id == open_bundle(tmp_path / "toy").model_id
    assert same == (trained == "codebook")  # whose weights' files are those of before


@pytest.mark.parametrize("trained", ["all", "lora", "codebook"])
def test_the_teacher_takes_memory_only_where_the_weights_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: str
) -> None:
    places: list[set[int]] = []

    def spy(model: Model, teacher: Model, *others: Any) -> Trainer:
        places.extend({p.data_ptr() for p in one.parameters()} for one in (model, teacher))
        return Trainer(model, teacher, *others)

    monkeypatch.setattr(finetuning, "Trainer", spy)
    tuned(tmp_path, options=replace(TUNE, trained=trained))  # type: ignore[arg-type]
    model, teacher = places
    assert model
    assert teacher.isdisjoint(model) if trained == "all" else teacher == model


# --- data -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("split", "held_out"), [(None, "eval"), ("fit", "eval"), ("eval", "fit")])
def test_what_measures_progress_does_not_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str | None, held_out: str
) -> None:
    """Windows of w60 only are every tenth; who sees them is told by the tokens."""
    toy_bundle(tmp_path / "toy", "gpt2")
    windows = (["w60"] * 8 if i % 10 == 9 else [f"w{i % 60}"] * 8 for i in range(100))
    path = write(tmp_path, {"text.txt": " ".join(w for one in windows for w in one)}) / "text.txt"
    seen: dict[str, set[int]] = {"train": set(), "measure": set()}

    def spy(*arguments: object) -> Trainer:
        made = Trainer(*arguments)  # type: ignore[arg-type]
        seen["measure"] = ids(made.held_out)
        seen["train"] = ids(list(islice(made.batches(0), 60)))
        return made

    monkeypatch.setattr(finetuning, "Trainer", spy)
    finetune(
        open_bundle(tmp_path / "toy"),
        path,
        replace(FIT, codewords=2, rates=(2,), default_rate=2, sensitivity=0),
        replace(TUNE, steps=1),
        tmp_path / "new",
        window=8,
        split=split,  # type: ignore[arg-type]
    )
    tenth, others = ("measure", "train") if held_out == "eval" else ("train", "measure")
    assert seen[tenth] == {60}
    assert 60 not in seen[others]
    assert len(seen[others]) > 4


def ids(batches: list) -> set[int]:
    return {int(i) for batch in batches for i in batch.tokens.flatten()}


def samples(lengths: list[int]) -> Iterator[Sample]:
    for number, count in enumerate(lengths):
        yield Sample(ModelInput(tokens=torch.full((count,), number)), None)


def test_batches_have_one_length_and_leave_nothing_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where lengths vary: no document is passed over because others are longer."""
    monkeypatch.setattr(finetuning, "BUFFER", 8)
    lengths = [3, 5, 7] * 40
    made = list(finetuning._batches(samples(lengths), replace(TUNE, batch=4), 0))
    assert {len(batch) for batch in made} == {4}
    shapes = [batch.tokens.shape[1] for batch in made if batch.tokens is not None]
    assert {count: shapes.count(count) for count in (3, 5, 7)} == dict.fromkeys((3, 5, 7), 9)
    used = [int(i) for batch in made if batch.tokens is not None for i in batch.tokens[:, 0]]
    assert len(used) == len(set(used))
    assert used != sorted(used)  # drawn from the buffer


def test_batches_go_on_where_they_stopped() -> None:
    lengths = [6] * 300
    whole = list(finetuning._batches(samples(lengths), TUNE, 0))
    later = list(finetuning._batches(samples(lengths), TUNE, 20))
    assert len(whole) > 30
    assert [one.tokens.tolist() for one in later if one.tokens is not None] == [
        one.tokens.tolist() for one in whole[20:] if one.tokens is not None
    ]


def test_processes_share_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its own, and together they have what one process has."""
    lengths = [6] * 300
    whole = [b.tokens for b in finetuning._batches(samples(lengths), TUNE, 0)]
    monkeypatch.setattr(finetuning, "world", lambda: 2)
    for mine in (0, 1):
        monkeypatch.setattr(finetuning, "rank", lambda mine=mine: mine)
        for skip in (0, 3):
            own = [b.tokens for b in finetuning._batches(samples(lengths), TUNE, skip)]
            wanted = whole[mine + 2 * skip :: 2]
            assert len(own) == len(wanted)
            assert all(map(torch.equal, own, wanted))  # type: ignore[arg-type]


# --- interruptions --------------------------------------------------------------------------------


@pytest.mark.parametrize("trained", ["all", "lora", "codebook"])
def test_an_interrupted_run_goes_on_to_the_same_weights(tmp_path: Path, trained: str) -> None:
    options = replace(TUNE, trained=trained, learning_rate=1e-2)  # type: ignore[arg-type]
    whole = tuned(tmp_path, options=options, output="whole", work="other")
    assert whole.fitted is not None

    def stop(done: int, total: int, what: str) -> None:
        if "loss" in what and done == 6:
            raise KeyboardInterrupt

    bundle, data = open_bundle(tmp_path / "toy"), tmp_path / "text.txt"
    with pytest.raises(KeyboardInterrupt):
        finetune(bundle, data, FIT, options, tmp_path / "new", stop)
    assert not (tmp_path / "new").exists()
    work = tmp_path / "new.work"
    assert names(work) == {START, CHECKPOINT, CURVE}
    found = tuned(tmp_path, options=options)
    assert found.fitted is None  # the codebook of the start was there
    assert found.codebook.id == whole.codebook.id
    same = open_bundle(found.bundle).model_id == open_bundle(tmp_path / "toy").model_id
    assert same == (trained == "codebook")
    assert open_bundle(found.bundle).model_id == open_bundle(whole.bundle).model_id
    assert names(work) == {START, CURVE}  # the checkpoint has done its work
    lines = (found.bundle / CURVE).read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", "0", "4", "8"]
    assert found.tuned.best_step == whole.tuned.best_step > 0


def test_another_place_to_work(tmp_path: Path) -> None:
    toy_bundle(tmp_path / "toy", "gpt2")
    data = data_for("gpt2", tmp_path)
    work = tmp_path / "a" / "b"
    finetune(open_bundle(tmp_path / "toy"), data, FIT, TUNE, tmp_path / "new", work=work)
    assert names(work) == {START, CURVE}
    assert not (tmp_path / "new.work").exists()


def test_the_usual_place_to_work_goes_when_the_work_is_done(tmp_path: Path) -> None:
    toy_bundle(tmp_path / "toy", "gpt2")
    finetune(open_bundle(tmp_path / "toy"), data_for("gpt2", tmp_path), FIT, TUNE, tmp_path / "new")
    assert (tmp_path / "new" / CURVE).exists()
    assert not (tmp_path / "new.work").exists()


def test_a_start_with_other_options_is_refused_by_name(tmp_path: Path) -> None:
    tuned(tmp_path)
    for other in (
        replace(FIT, rates=(4, 8), default_rate=8),
        replace(FIT, history=1),
        replace(FIT, codewords=32, rates=(5, 10), default_rate=10),
    ):
        with pytest.raises(ModelError, match=r"start\.safetensors is of a run with other options"):
            tuned(tmp_path, fit=other, output="other")
    tensors = make_tensors("gpt2", seed=1)
    save_tensors(tmp_path / "toy" / "model.safetensors", tensors)
    with pytest.raises(CodebookError, match="fitted for other weights"):
        tuned(tmp_path, output="other")


def other_data(folder: Path) -> dict[str, dict[str, Any]]:
    """What makes another run of the same command, by the file that it does not fit."""
    text = write(folder / "more", {"text.txt": words(48 * 100, start=7)}) / "text.txt"
    return {
        "data": {"data": text},
        "window": {"window": 24},
        "split": {"split": "eval"},
        "seed": {"fit": replace(FIT, seed=1), "options": replace(TUNE, seed=1)},
        "sensitivity": {"fit": replace(FIT, sensitivity=0.1)},
        "held-out data": {"held_out_data": text, "split": "fit"},
    }


@pytest.mark.parametrize("what", ["data", "window", "split", "seed", "sensitivity"])
def test_a_start_of_other_data_is_refused_by_name(tmp_path: Path, what: str) -> None:
    tuned(tmp_path)
    work = tmp_path / "new.work"
    kept = contents(work)
    with pytest.raises(ModelError, match=r"start\.safetensors is of a run with .* or other data"):
        again(tmp_path, **other_data(tmp_path)[what])
    assert contents(work) == kept


def test_a_checkpoint_of_other_held_out_data_is_refused_by_name(tmp_path: Path) -> None:
    """The codebook of the start is the same: it was not fitted to them."""
    other = other_data(tmp_path)["held-out data"]

    def stop(done: int, total: int, what: str) -> None:
        if "loss" in what and done == 6:
            raise KeyboardInterrupt

    toy_bundle(tmp_path / "toy", "gpt2")
    data_for("gpt2", tmp_path)
    with pytest.raises(KeyboardInterrupt):
        again(tmp_path, split="fit", progress=stop)
    kept = contents(tmp_path / "new.work")
    with pytest.raises(ModelError, match=r"checkpoint\.pt is of a run with .* other data"):
        again(tmp_path, **other)
    assert contents(tmp_path / "new.work") == kept
    assert again(tmp_path, split="fit").fitted is None


def again(
    folder: Path,
    *,
    data: Path | None = None,
    fit: FitOptions = FIT,
    options: TuneOptions = TUNE,
    progress: Progress = lambda done, total, what: None,
    **named: Any,
) -> Finetuned:
    """Into another folder, with the same one to work in."""
    found = finetune(
        open_bundle(folder / "toy"),
        data or folder / "text.txt",
        fit,
        options,
        folder / "second",
        progress,
        work=folder / "new.work",
        **named,
    )
    assert found is not None
    return found


# --- what goes wrong ------------------------------------------------------------------------------


def test_the_model_s_own_folder_is_refused(tmp_path: Path) -> None:
    bundle, data = toy_bundle(tmp_path / "toy", "gpt2"), data_for("gpt2", tmp_path)
    before = contents(bundle.path)
    (tmp_path / "link").symlink_to(bundle.path)
    (tmp_path / "file").write_text("x")
    for output in (
        bundle.path,
        tmp_path / "x" / ".." / "toy",
        tmp_path / "link",
        tmp_path / "file",
    ):
        with pytest.raises(InputError, match="needs a folder of its own"):
            finetune(bundle, data, FIT, TUNE, output)
    assert contents(bundle.path) == before


@pytest.mark.parametrize(("size", "file"), [(300, "new"), (20_000, "new/model.safetensors")])
def test_a_full_disk_at_the_end_loses_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, file: str
) -> None:
    """While small files are copied, and while the weights are written."""
    whole = tuned(tmp_path, output="whole", work="other")
    with ExitStack() as stack, monkeypatch.context() as patch:

        def export(*arguments: object) -> dict[str, Tensor]:
            found = export_weights(*arguments)  # type: ignore[arg-type]
            stack.enter_context(files_of_at_most(size))
            return found

        patch.setattr(finetuning, "export_weights", export)
        with pytest.raises(ModelError, match=rf"({file} cannot be written|cannot write {file}) "):
            tuned(tmp_path)
    assert (tmp_path / "new.work" / CHECKPOINT).exists()
    steps: list[str] = []
    found = finetune(
        open_bundle(tmp_path / "toy"),
        tmp_path / "text.txt",
        FIT,
        TUNE,
        tmp_path / "new",
        lambda done, total, what: steps.append(what),
    )
    assert not [what for what in steps if "loss" in what]
    assert found is not None
    assert open_bundle(found.bundle).model_id == open_bundle(whole.bundle).model_id
    verify(open_bundle(found.bundle))


def test_one_run_at_a_time_uses_a_work_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From before the first file until after the last."""
    plain, texts = write_manifest, []

    def second(folder: Path) -> None:
        plain(folder)
        with pytest.raises(ModelError) as caught:
            tuned(tmp_path)
        texts.append(caught.value.message)

    monkeypatch.setattr(finetuning, "write_manifest", second)
    tuned(tmp_path)
    work = tmp_path / "new.work"
    assert texts == [
        f"another run is using {work} (process {os.getpid()}): wait for it, or stop it"
    ]
    assert names(work) == {START, CURVE}


@pytest.mark.parametrize("place", ["new", "elsewhere/work"])
def test_folders_that_cannot_be_written_are_named_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """The new model's, and the one to work in."""
    bundle, data = toy_bundle(tmp_path / "toy", "gpt2"), data_for("gpt2", tmp_path)
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("no folder")
    output, work = (tmp_path / name for name in ("new", "elsewhere/work"))
    if place == "new":
        output /= "inner"
    before = names(tmp_path)
    monkeypatch.setattr(finetuning, "build_model", None)  # nothing is read
    with pytest.raises(InputError, match=rf"{place}.* cannot be written: it takes no files"):
        finetune(bundle, data, FIT, TUNE, output, work=work)
    with pytest.raises(InputError, match="name too long"):
        finetune(bundle, data, FIT, TUNE, tmp_path / ("n" * 300))
    with files_of_at_most(0), pytest.raises(InputError, match=r"full cannot be written"):
        finetune(bundle, data, FIT, TUNE, tmp_path / "full")
    assert names(tmp_path) == before


def test_too_little_room_is_named_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for the weights twice is too little for the checkpoint, and plenty without one."""
    bundle, data = toy_bundle(tmp_path / "toy", "gpt2"), data_for("gpt2", tmp_path)
    size = (bundle.path / "model.safetensors").stat().st_size
    before = names(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=2 * size))
    with pytest.raises(
        ModelError, match=r"no space left for /.*new\.work: about \d+ MiB are needed"
    ):
        finetune(bundle, data, FIT, TUNE, tmp_path / "new")
    assert names(tmp_path) == before
    assert finetune(bundle, data, FIT, replace(TUNE, trained="lora"), tmp_path / "new")


@pytest.mark.parametrize("work", [None, "a/b"])
def test_a_run_that_never_began_leaves_no_folder(tmp_path: Path, work: str | None) -> None:
    bundle = toy_bundle(tmp_path / "toy", "gpt2")
    data = write(tmp_path, {"x.txt": words(480)}) / "x.txt"
    before = names(tmp_path)
    options = replace(FIT, codewords=64, rates=(6,), default_rate=6)
    place = None if work is None else tmp_path / work
    for wrong, problem in ((data, "too few for 64"), (tmp_path / "absent", "no file or folder")):
        with pytest.raises(CalibrationError, match=problem):
            finetune(bundle, wrong, options, TUNE, tmp_path / "new", work=place)
        assert names(tmp_path) == before
    (tmp_path / "new.work").mkdir()  # was there before
    with pytest.raises(CalibrationError):
        finetune(bundle, data, options, TUNE, tmp_path / "new")
    assert names(tmp_path) == before | {"new.work"}


def test_pictures_without_labels_need_the_teacher(tmp_path: Path) -> None:
    bundle = toy_bundle(tmp_path / "toy", "vit")
    files: dict[str, bytes | str] = {f"{i}.png": saved(photo(20 + i, 12)) for i in range(60)}
    data = write(tmp_path / "x", files)
    with pytest.raises(InputError, match="no labels: there is nothing to learn"):
        finetune(bundle, data, FIT, replace(TUNE, distill=0.0), tmp_path / "new")
    found = finetune(bundle, data, FIT, TUNE, tmp_path / "new")
    assert found is not None
    assert found.tuned.best > 0


def test_labels_beyond_the_classes_are_named_before_any_work(tmp_path: Path) -> None:
    """Also far behind those that are held out."""
    bundle = toy_bundle(tmp_path / "toy", "bert")
    rows = [f"{words(12, 12, i).strip()}\t{i % 2}" for i in range(90)]
    content = "\n".join(["sentence\tlabel", *rows, "w1 w2\t5"])
    data = write(tmp_path, {"x.tsv": content}) / "x.tsv"
    with pytest.raises(CalibrationError, match=r"x\.tsv, line 92: there is no class '5'"):
        finetune(bundle, data, FIT, TUNE, tmp_path / "new")
    assert not (tmp_path / "new.work" / finetuning.START).exists()


def test_numbers_of_pictures_beyond_the_classes_are_named_before_any_work(tmp_path: Path) -> None:
    """Also where others measure."""
    bundle, fine = toy_bundle(tmp_path / "toy", "vit"), data_for("vit", tmp_path)
    pictures: dict[str, bytes | str] = {f"{i}.png": saved(photo(20 + i, 12)) for i in range(9)}
    rows = "".join(f"{i}.png,{i % 3}\n" for i in range(8)) + "8.png,99\n"
    data = write(tmp_path / "bad", pictures | {"labels.csv": f"file,label\n{rows}"})
    before = names(tmp_path)
    for held_out in (None, fine):
        with pytest.raises(CalibrationError, match=r"labels\.csv, line 10: there is no class '99'"):
            finetune(bundle, data, FIT, TUNE, tmp_path / "new", held_out_data=held_out)
        assert names(tmp_path) == before


def test_too_little_data_are_named(tmp_path: Path) -> None:
    bundle = toy_bundle(tmp_path / "toy", "gpt2")
    data = write(tmp_path, {"x.txt": words(100)}) / "x.txt"
    with pytest.raises(CalibrationError, match="too little"):
        finetune(bundle, data, FIT, TUNE, tmp_path / "new")
    data.write_text(words(480))
    options = replace(FIT, codewords=64, rates=(6,), default_rate=6)
    with pytest.raises(CalibrationError, match="too few for 64 codewords"):
        finetune(bundle, data, options, TUNE, tmp_path / "new")
    assert load_samples(bundle, data, limit=1, split="eval")
    assert not (tmp_path / "new").exists()


def test_a_loss_that_is_no_number_makes_no_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "measure", lambda self: (math.nan if self.step > 4 else 1.0, 1.0))
    with pytest.raises(CalibrationError, match="no number after 8 steps"):
        tuned(tmp_path)
    assert not (tmp_path / "new").exists()


def test_everything_asked_for_is_tried_before_data_are_read(tmp_path: Path) -> None:
    bundle: Bundle = toy_bundle(tmp_path / "toy", "gpt2")
    with pytest.raises(InputError, match="steps"):
        finetune(bundle, tmp_path / "absent", FIT, replace(TUNE, steps=0), tmp_path / "new")
    with pytest.raises(InputError, match="cannot classify"):
        finetune(bundle, tmp_path / "absent", FIT, TUNE, tmp_path / "new", task="classify")
