"""Figures from before spare measuring; models come ahead of requests; figures that fail go."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from astra_mesh.bundle import open_bundle
from astra_mesh.engine.compute import ComputeThread
from astra_mesh.limits import PRELOAD_FACTOR
from astra_mesh.peer import loading as loading_module
from astra_mesh.peer import models as module
from astra_mesh.peer import precision as precision_module
from astra_mesh.peer.code_times import measure_codebook
from astra_mesh.peer.config import Wanted
from astra_mesh.peer.measure import comparing
from astra_mesh.peer.measured import Measured
from astra_mesh.peer.models import ModelHost
from astra_mesh.peer.parts import whole
from astra_mesh.peer.precision import choose_precision
from astra_mesh.peer.shelf import float_bytes
from astra_mesh.quant.codecs import VectorCodec
from astra_mesh.wire.messages import ModelId
from tests.bundles import GPT2, VIT, gpt2_tensors, vit_tensors, write_bundle
from tests.integration.mesh_fixtures import fit_small
from tests.mapped import mapped, needs_smaps


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``words`` with codebooks and ``pictures`` without; no others."""
    monkeypatch.setattr("astra_mesh.bundle.store._shipped", list)
    models = tmp_path / "models"
    monkeypatch.setenv("ASTRA_MESH_MODELS", str(models))
    write_bundle(models / "words", GPT2, gpt2_tensors(GPT2))
    write_bundle(models / "pictures", VIT, vit_tensors(VIT))
    fit_small(models / "words")
    return tmp_path


async def host_of(folder: Path, compute: ComputeThread, **more: Any) -> ModelHost:
    host = ModelHost(None, compute, measured=Measured(folder / "measured"), **more)
    await host.start()
    return host


def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever measures fails."""

    def fail(*args: object, **options: object) -> None:
        raise AssertionError("it is measured again")

    for owner, name in (
        (loading_module, "measuring"),
        (loading_module, "measure_codebook"),
        (loading_module, "choose_precision"),
        (loading_module, "pack_if_faster"),
        (precision_module, "best_s"),
    ):
        monkeypatch.setattr(owner, name, fail)


@pytest.mark.parametrize("precision", ["auto", "bf16"])
async def test_a_second_start_measures_nothing_and_says_the_same(
    folder: Path, compute: ComputeThread, monkeypatch: pytest.MonkeyPatch, precision: Any
) -> None:
    first = await host_of(folder, compute, precision=precision)
    model = first.find("words")
    one = await first.load(model)
    before = first.offer(model)
    never(monkeypatch)
    second = await host_of(folder, compute, precision=precision)
    other = await second.load(model)
    after = second.offer(model)
    assert before is not None
    assert after is not None
    assert before.timing is not None
    assert after.timing is not None
    turns = {"fixed_s": before.timing.fixed_s}  # those of the thread are measured each time
    assert replace(after, timing=replace(after.timing, **turns)) == before
    assert [type(x) for x in other.model.modules()] == [type(x) for x in one.model.modules()]
    assert other.chosen == one.chosen
    with pytest.raises(AssertionError, match="measured again"):  # other conditions
        await (await host_of(folder, compute, precision="fp32")).load(model)


async def test_only_the_codebook_that_is_new_is_measured(
    folder: Path, compute: ComputeThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "models" / "words" / "codebook-astra.safetensors"
    data = await asyncio.to_thread(path.read_bytes)
    path.unlink()
    first = await host_of(folder, compute)
    model = first.find("words")
    await first.load(model)
    path.write_bytes(data)
    measured: list[str] = []
    original = measure_codebook

    def spied(model: Any, book: Any, tables: bool) -> Any:
        measured.append(book.codec)
        return original(model, book, tables)

    monkeypatch.setattr(loading_module, "measure_codebook", spied)
    for _ in range(2):
        await (await host_of(folder, compute)).load(model)
    assert measured == ["astra"]


async def test_with_little_memory_there_are_no_tables_and_figures_of_their_own(
    folder: Path, compute: ComputeThread
) -> None:
    usual = await host_of(folder, compute)
    model = usual.find("words")
    whole = await usual.load(model)
    lean = await (await host_of(folder, compute, tables=False)).load(model)
    for book in lean.codebooks.values():
        times = lean.times[book.id]
        assert set(times.decoder.values()) == {"project"}
        assert times.decode_s == times.project_s
        codec = lean.codec(book.codec, book.id, book.stages)
        assert isinstance(codec, VectorCodec)
        assert (codec.decoder, codec.lean) == ("project", True)
        assert lean.at_work(codec, book.able) is codec
        assert lean.next_table() is None
    again = await (await host_of(folder, compute)).load(model)
    assert again.times == whole.times


@needs_smaps
async def test_the_files_of_codebooks_are_not_held_in_memory(
    folder: Path, compute: ComputeThread
) -> None:
    host = await host_of(folder, compute)
    loaded = await host.load(host.find("words"))
    (key, book), *_ = loaded.codebooks.items()
    assert mapped(folder / "models/words/codebook") == 0
    first = loaded.codec(book.codec, key)
    assert isinstance(first, VectorCodec)
    first.coder(book.first_block, book.stages)
    assert mapped(folder / "models/words/codebook") > 0
    await compute(host.give_back)
    assert mapped(folder / "models/words/codebook") == 0


async def test_two_peers_of_one_device_measure_a_model_once(
    folder: Path, compute: ComputeThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, count = ComputeThread(), list[None]()
    original = choose_precision

    def spied(*args: Any) -> Any:
        count.append(None)
        return original(*args)

    monkeypatch.setattr(loading_module, "choose_precision", spied)
    try:
        hosts = [await host_of(folder, thread) for thread in (compute, other)]
        model = hosts[0].find("words")
        await asyncio.gather(*(host.load(model) for host in hosts))
    finally:
        await asyncio.to_thread(other.close)
    assert len(count) == 1
    assert all(host.is_loaded(model) for host in hosts)


# --- ahead of requests ----------------------------------------------------------------------------


def memory(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(module, "free_memory_bytes", lambda: free)


async def test_all_models_come_where_there_is_memory(
    folder: Path, compute: ComputeThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory(monkeypatch, 1 << 40)
    host = await host_of(folder, compute)
    await host.preload(lambda: True)
    assert all(offer.loaded and offer.timing for offer in host.offers())


async def test_a_small_board_is_not_filled(
    folder: Path, compute: ComputeThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("words", "pictures")
    found = await asyncio.to_thread(
        lambda: [float_bytes(open_bundle(folder / "models" / name)) for name in names]
    )
    sizes = {name: PRELOAD_FACTOR * size for name, size in zip(names, found, strict=True)}
    small, large = sorted(sizes, key=lambda name: sizes[name])
    host = await host_of(folder, compute)
    memory(monkeypatch, int(2 * sizes[small]) - 2)  # half of it has no room for any
    await host.preload(lambda: True)
    assert not any(offer.loaded for offer in host.offers())
    memory(monkeypatch, int(2 * (sizes[small] + sizes[large])) - 2)  # for one, not for both
    await host.preload(lambda: True, 9)  # for none where others load as well
    assert not any(offer.loaded for offer in host.offers())
    await host.preload(lambda: True)
    assert [offer.name for offer in host.offers() if offer.loaded] == [small]


async def test_what_others_take_meanwhile_counts(
    folder: Path, compute: ComputeThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter([1 << 40, 1 << 40, 1 << 30])
    monkeypatch.setattr(module, "free_memory_bytes", lambda: next(free))
    host = await host_of(folder, compute)
    await host.preload(lambda: True)
    assert len([offer for offer in host.offers() if offer.loaded]) == 1


async def test_the_model_used_last_comes_first(
    folder: Path, compute: ComputeThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory(monkeypatch, 1 << 40)
    for name in ("words", "pictures"):
        used = await host_of(folder, compute)
        await used.load(used.find(name))
        order: list[str] = []
        host = await host_of(folder, compute)
        host._on_change = partial(_note_loaded, host, order)
        await host.preload(lambda: True)
        assert order[0] == name


def _note_loaded(host: ModelHost, order: list[str]) -> None:
    order += [one.name for one in host.offers() if one.loaded and one.name not in order]


async def test_requests_come_before_models_that_nobody_asked_for(
    folder: Path, compute: ComputeThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PRELOAD_LOOK_S", 0.01)
    memory(monkeypatch, 1 << 40)
    host, idle = await host_of(folder, compute), False
    ahead = asyncio.ensure_future(host.preload(lambda: idle))
    await asyncio.sleep(0.2)
    assert not any(offer.loaded for offer in host.offers())
    await host.load(host.find("pictures"))  # which a request wants, so it waits for nothing
    idle = True
    await ahead
    assert all(offer.loaded for offer in host.offers())


async def test_a_request_takes_over_what_is_being_loaded_ahead(
    folder: Path, compute: ComputeThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PRELOAD_LOOK_S", 0.01)
    memory(monkeypatch, 1 << 40)
    host = await host_of(folder, compute)
    looks = iter([True])  # it begins; then a request runs for good
    ahead = asyncio.ensure_future(host.preload(lambda: next(looks, False)))
    while not any(entry.lock.locked() for entry in host._entries.values()):
        await asyncio.sleep(0.005)
    (model,) = [key for key, entry in host._entries.items() if entry.lock.locked()]
    async with asyncio.timeout(20):
        await host.load(model)
    ahead.cancel()


async def test_a_model_that_cannot_be_loaded_holds_nothing_up(
    folder: Path, compute: ComputeThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory(monkeypatch, 1 << 40)
    host = await host_of(folder, compute)
    (folder / "models" / "pictures" / "config.json").write_text("{}")
    weights = folder / "models" / "pictures" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    await host.preload(lambda: True)
    assert [offer.name for offer in host.offers() if offer.loaded] == ["words"]


# --- figures that do not hold any more ------------------------------------------------------------


async def doubtful(
    folder: Path, compute: ComputeThread, factor: float, precision: Wanted = "fp32"
) -> tuple[ModelHost, ModelId]:
    """A host whose kept figures are so many times too large."""
    host = await host_of(folder, compute, precision=precision)
    model = host.find("words")
    await host.load(model)
    entry = host._entries[model]
    assert entry.figures is not None
    assert entry.about is not None
    timing = entry.figures.timing
    wrong = replace(
        timing,
        fixed_s=factor * timing.fixed_s,
        per_token_s=factor * timing.per_token_s,
        per_pair_s=factor * timing.per_pair_s,
    )
    figures = replace(entry.figures, timing=wrong)
    await asyncio.to_thread(host._measured.write, entry.about, figures)
    return await host_of(folder, compute, precision=precision), model


@pytest.mark.parametrize("factor", [100.0, 0.01])
async def test_figures_that_do_not_hold_are_made_anew(
    folder: Path, compute: ComputeThread, factor: float
) -> None:
    host, model = await doubtful(folder, compute, factor)
    await host.load(model)
    entry = host._entries[model]
    assert entry.about is not None
    wrong = await asyncio.to_thread(host._measured.read, entry.about)
    assert wrong == entry.figures
    assert host.has_doubts
    await host.look_again(lambda: False)  # a request runs
    assert host.has_doubts
    await host.look_again(lambda: True)
    assert not host.has_doubts
    kept = await asyncio.to_thread(host._measured.read, entry.about)
    assert kept == entry.figures != wrong
    offer = host.offer(model)
    assert offer is not None
    assert offer.timing is not None
    assert offer.timing.head_s == kept.timing.head_s


async def test_a_step_that_was_measured_wrongly_is_found(
    folder: Path, compute: ComputeThread
) -> None:
    """Though the time of a block is right."""
    host = await host_of(folder, compute)
    model = host.find("words")
    loaded = await host.load(model)
    figures = host._entries[model].figures
    assert figures is not None
    timing = replace(figures.timing, step_s=200 * figures.timing.step_s)
    assert whole(comparing(timing, loaded.model)) < 0.1
    assert 0.1 < whole(comparing(figures.timing, loaded.model)) < 10


async def test_a_format_that_was_chosen_by_wrong_figures_is_chosen_anew(
    folder: Path, compute: ComputeThread
) -> None:
    host, model = await doubtful(folder, compute, 100.0, "auto")
    await host.load(model)
    about = host._entries[model].about
    assert about is not None
    await host.look_again(lambda: True)
    assert await asyncio.to_thread(host._measured.read, about) is None


async def test_a_request_ends_measuring_anew(folder: Path, compute: ComputeThread) -> None:
    host, model = await doubtful(folder, compute, 100.0)
    await host.load(model)
    before, looks = host._entries[model].figures, iter([True, True, True, True, True])
    await host.look_again(lambda: next(looks, False))
    assert host.has_doubts
    assert host._entries[model].figures is before


def _about_the_same(*args: object) -> Generator[None, None, float]:
    yield
    return 1.1


async def test_figures_that_hold_stay(
    folder: Path, compute: ComputeThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, model = await doubtful(folder, compute, 1.0)
    await host.load(model)
    monkeypatch.setattr(module, "comparing", _about_the_same)
    never(monkeypatch)
    await host.look_again(lambda: True)
    assert not host.has_doubts
    host.doubt(model)  # not so soon again
    assert not host.has_doubts
    monkeypatch.setattr(module, "RECHECK_S", 0.0)
    host.doubt(model)
    assert host.has_doubts
