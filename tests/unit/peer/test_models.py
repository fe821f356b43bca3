"""What a peer offers, and loading at the first use."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from astra_mesh.bundle import Bundle
from astra_mesh.engine.compute import ComputeThread
from astra_mesh.errors import (
    BadBundleError,
    CodebookError,
    InputError,
    UnknownModelError,
    UnsupportedModelError,
    WrongTaskError,
)
from astra_mesh.peer import models as module
from astra_mesh.peer import offers
from astra_mesh.peer.config import Wanted
from astra_mesh.peer.loading import loading
from astra_mesh.peer.measured import Figures
from astra_mesh.peer.models import Loaded, ModelHost, choose_stages
from astra_mesh.peer.parts import Parts
from astra_mesh.wire.messages import CodebookId, Task
from tests.bundles import (
    BERT,
    GPT2,
    VIT,
    bert_tensors,
    gpt2_tensors,
    vit_tensors,
    word_tokenizer,
    write_bundle,
)
from tests.integration.mesh_fixtures import fit_small
from tests.timings import patient


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder with ``words``; the shipped models are not looked at."""
    monkeypatch.setattr("astra_mesh.bundle.store._shipped", list)
    monkeypatch.setenv("ASTRA_MESH_MODELS", str(tmp_path))
    write_bundle(tmp_path / "words", GPT2, gpt2_tensors(GPT2))
    return tmp_path


async def names_of(host: ModelHost) -> list[str]:
    await host.start()
    return sorted(offer.name for offer in host.offers())


async def test_all_models_are_offered(folder: Path, compute: ComputeThread) -> None:
    await asyncio.to_thread(write_bundle, folder / "pictures", VIT, vit_tensors(VIT))
    host = ModelHost(None, compute)
    assert await names_of(host) == ["pictures", "words"]
    offer = next(offer for offer in host.offers() if offer.name == "words")
    assert (offer.family, offer.timing, offer.loaded) == ("gpt2", None, False)
    assert host.find("words") == host.find(offer.id[:8]) == offer.id
    for name in ("word", offer.id[:7], "", "w" * 100):
        with pytest.raises(UnknownModelError, match="pictures, words"):
            host.find(name)


@pytest.mark.parametrize(
    ("file", "data"),
    [
        ("config.json", b"{"),
        ("config.json", b'{"model_type": "none"}'),
        ("config.json", b'{"model_type": "gpt2"}'),
        ("config.json", b'{"model_type": "gpt2", "n_embd": "x", "n_layer": [], "n_head": {}}'),
        ("model.safetensors", b""),
        ("manifest.json", b"[]"),
    ],
)
async def test_a_broken_bundle_is_left_out_and_named(
    folder: Path,
    compute: ComputeThread,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    data: bytes,
) -> None:
    monkeypatch.setattr("astra_mesh.bundle.store._reported", set())
    await asyncio.to_thread(write_bundle, folder / "broken", VIT, vit_tensors(VIT))
    (folder / "broken" / file).write_bytes(data)
    names = await names_of(ModelHost(None, compute))
    assert "words" in names
    if file == "model.safetensors":
        return  # its content is read when it is wanted
    assert names == ["words"]
    assert any("broken" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("absent", UnknownModelError), ("odd", UnsupportedModelError), ("bad", BadBundleError)],
)
async def test_a_named_model_must_be_usable(
    folder: Path, compute: ComputeThread, name: str, kind: type[Exception]
) -> None:
    await asyncio.to_thread(
        write_bundle, folder / "odd", VIT | {"model_type": "odd"}, vit_tensors(VIT)
    )
    await asyncio.to_thread(write_bundle, folder / "bad", VIT, vit_tensors(VIT))
    (folder / "bad" / "config.json").write_text("{")
    with pytest.raises(kind):
        await ModelHost((name,), compute).start()


async def test_copies_of_a_model_are_one_by_all_their_names(
    folder: Path, compute: ComputeThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RESCAN_S", 0.01)
    await asyncio.to_thread(write_bundle, folder / "again", GPT2, gpt2_tensors(GPT2))
    changed = asyncio.Event()
    host = ModelHost(None, compute, changed.set)
    await host.start()
    (offer,) = host.offers()
    assert (offer.name, offer.also) == ("again", ["words"])
    assert host.find("words") == host.find("again") == offer.id
    with pytest.raises(UnknownModelError, match="it has: again, words"):
        host.find("others")
    watching = asyncio.ensure_future(host.watch())
    try:
        await asyncio.to_thread(write_bundle, folder / "third", GPT2, gpt2_tensors(GPT2))
        await asyncio.wait_for(changed.wait(), patient(10))
        assert host.offers()[0].also == ["third", "words"]
        changed.clear()
        await asyncio.to_thread(shutil.rmtree, folder / "words")
        await asyncio.wait_for(changed.wait(), patient(10))
        assert host.offers()[0].also == ["third"]
    finally:
        watching.cancel()


async def test_of_two_copies_that_with_more_codebooks_counts(
    folder: Path, compute: ComputeThread
) -> None:
    await asyncio.to_thread(write_bundle, folder / "again", GPT2, gpt2_tensors(GPT2))
    await asyncio.to_thread(fit_small, folder / "words")
    host = ModelHost(None, compute)
    await host.start()
    (offer,) = host.offers()
    assert (offer.name, offer.also, len(offer.codebooks)) == ("words", ["again"], 2)
    for path in (folder / "words").glob("codebook*"):
        path.unlink()
    late = ModelHost(None, compute)
    await late.start()
    assert not late.offers()[0].codebooks
    await asyncio.to_thread(fit_small, folder / "words")
    for one in await compute(late._shelf.read):
        await late._renew(*one)
    bundle = late.bundle(offer.id)
    assert bundle is not None
    assert (bundle.name, len(late.offers()[0].codebooks)) == ("words", 2)


TEMPLATE = "{{ messages[0].content }}"


async def test_of_copies_that_with_a_chat_template_reads_texts(
    folder: Path, compute: ComputeThread
) -> None:
    await asyncio.to_thread(fit_small, folder / "words")
    for path in folder.glob("words/chat_template.jinja"):
        path.unlink()
    again = await asyncio.to_thread(write_bundle, folder / "zagain", GPT2, gpt2_tensors(GPT2))
    (again / "tokenizer.json").write_text(word_tokenizer(60))
    (again / "chat_template.jinja").write_text(TEMPLATE)
    host = ModelHost(None, compute)
    await host.start()
    model = host.find("words")
    assert host.holds_conversations(model)
    loaded = await host.load(model)
    assert (loaded.bundle.name, loaded.words.name) == ("words", "zagain")
    assert host.reader(model) is loaded.words
    assert len(loaded.codebooks) == 2
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.vocab_size == 60
    await asyncio.to_thread(shutil.rmtree, again)
    await host._rescan()
    assert (loaded.words.name, loaded.tokenizer.vocab_size) == ("words", 64)
    assert not host.holds_conversations(model)


async def test_who_asks_a_model_for_what_it_cannot_is_told_of_those_that_can(
    folder: Path, compute: ComputeThread
) -> None:
    host = ModelHost(None, compute)
    await host.start()
    with pytest.raises(WrongTaskError, match=r": choose another model$"):
        host.require(host.find("words"), Task.CLASSIFY, picture=True)
    for name in "dabc":
        await asyncio.to_thread(write_bundle, folder / name, VIT, vit_tensors(VIT, ord(name)))
    await host._rescan()
    host.require(host.find("a"), Task.CLASSIFY, picture=True)
    with pytest.raises(WrongTaskError, match=r": choose another model, such as a, b, c$"):
        host.require(host.find("words"), Task.CLASSIFY, picture=True)
    with pytest.raises(WrongTaskError, match=r": choose another model$"):  # for a text none
        host.require(host.find("words"), Task.CLASSIFY)


async def test_of_pictures_only_models_that_read_them_are_named(
    folder: Path, compute: ComputeThread
) -> None:
    tensors = bert_tensors(BERT)
    await asyncio.to_thread(write_bundle, folder / "sentiment", BERT, tensors)
    await asyncio.to_thread(write_bundle, folder / "photos", VIT, vit_tensors(VIT))
    host = ModelHost(None, compute)
    await host.start()
    with pytest.raises(WrongTaskError, match=r": choose another model, such as photos$"):
        host.require(host.find("words"), Task.CLASSIFY, picture=True)
    with pytest.raises(WrongTaskError, match=r": choose another model, such as sentiment$"):
        host.require(host.find("words"), Task.CLASSIFY)
    text = "sentiment reads text: give a text, not an image, or choose a model that reads pictures"
    with pytest.raises(InputError, match=rf"^{text}, such as photos$"):
        host.require(host.find("sentiment"), Task.CLASSIFY, picture=True)
    host.require(host.find("sentiment"), Task.CLASSIFY)


async def test_a_copy_that_reads_no_texts_after_all_does_not_matter(
    folder: Path, compute: ComputeThread
) -> None:
    again = await asyncio.to_thread(write_bundle, folder / "again", GPT2, gpt2_tensors(GPT2))
    (again / "tokenizer.json").write_text("{")
    (again / "chat_template.jinja").write_text(TEMPLATE)
    await asyncio.to_thread(fit_small, folder / "words")
    host = ModelHost(None, compute)
    await host.start()
    loaded = await host.load(host.find("words"))
    assert loaded.words.name == "words"
    assert loaded.tokenizer is not None


async def test_what_cannot_be_used_is_complained_about_once(
    folder: Path, compute: ComputeThread, caplog: pytest.LogCaptureFixture
) -> None:
    odd = VIT | {"model_type": "odd"}
    await asyncio.to_thread(write_bundle, folder / "odd", odd, vit_tensors(VIT))
    (folder / "words" / "codebook-bad.safetensors").write_bytes(b"no")
    host = ModelHost(None, compute)
    await host.start()
    for _ in range(3):
        host._take(await compute(host._shelf.read))
    told = [record.getMessage() for record in caplog.records]
    assert len([one for one in told if "the model odd is left out" in one]) == 1
    assert len([one for one in told if "a codebook is left out" in one]) == 1


async def test_no_more_models_than_a_hello_holds(
    folder: Path,
    compute: ComputeThread,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(offers, "MODELS_PER_PEER", 1)
    await asyncio.to_thread(write_bundle, folder / "pictures", VIT, vit_tensors(VIT))
    host = ModelHost(None, compute)
    assert await names_of(host) == ["pictures"]
    host._take(await compute(host._shelf.read))
    assert len([one for one in caplog.records if "too many" in one.getMessage()]) == 1


async def test_two_at_once_load_a_model_once(
    folder: Path, compute: ComputeThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    original = loading

    def spied(
        bundle: Bundle, precision: Wanted, known: Figures | None, words: Bundle, **more: bool
    ) -> Parts[tuple[Loaded, Figures]]:
        loads.append(bundle.name)
        return original(bundle, precision, known, words, **more)

    monkeypatch.setattr(module, "loading", spied)
    changes: list[None] = []
    host = ModelHost(None, compute, lambda: changes.append(None))
    await host.start()
    model = host.find("words")
    one, two = await asyncio.gather(host.load(model), host.load(model))
    assert one is two
    assert loads == ["words"]
    assert len(changes) == 1
    offer = host.offer(model)
    assert offer is not None
    assert offer.loaded
    assert offer.timing is not None


async def test_loading_that_was_cancelled_can_be_repeated(
    folder: Path, compute: ComputeThread
) -> None:
    host = ModelHost(None, compute)
    await host.start()
    model = host.find("words")
    task = asyncio.ensure_future(host.load(model))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await host.load(model)).bundle.name == "words"


async def test_a_model_that_does_not_load_is_an_error_each_time(
    folder: Path, compute: ComputeThread
) -> None:
    host = ModelHost(None, compute)
    await host.start()
    (folder / "words" / "model.safetensors").write_bytes(b"cut")
    for _ in range(2):
        with pytest.raises(BadBundleError):
            await host.load(host.find("words"))
    assert not host.offers()


@pytest.mark.parametrize("named", [False, True])
async def test_a_model_that_goes_is_offered_no_more_until_it_is_back(
    folder: Path, compute: ComputeThread, named: bool
) -> None:
    changes: list[int] = []
    host = ModelHost(("words",) if named else None, compute, lambda: changes.append(1))
    await host.start()
    model = host.find("words")
    loaded = await host.load(model)
    await host._rescan()
    away = folder.with_name("away")
    await asyncio.to_thread(shutil.move, folder / "words", away)
    before = len(changes)
    await host._rescan()
    assert (host.offers(), len(changes) - before) == ([], 1)
    with pytest.raises(UnknownModelError):
        await host.load(model)
    assert loaded.model is not None  # who has it goes on
    await asyncio.to_thread(shutil.move, away, folder / "words")
    await host._rescan()
    assert (host.find("words"), len(changes) - before) == (model, 2)


async def test_a_damaged_model_is_offered_no_more_and_says_why(
    folder: Path, compute: ComputeThread
) -> None:
    host = ModelHost(None, compute)
    await host.start()
    model = host.find("words")
    weights = folder / "words" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    await host._rescan()
    assert host.offers()  # somebody may write it just now
    await host._rescan()
    assert not host.offers()
    with pytest.raises(BadBundleError, match=r"model\.safetensors.*cut short"):
        host.find("words")
    weights.write_bytes(whole)
    await host._rescan()
    await host._rescan()
    assert host.find("words") == model


async def test_what_does_not_load_is_offered_again_when_its_files_are_mended(
    folder: Path, compute: ComputeThread
) -> None:
    host = ModelHost(None, compute)
    tokenizer = folder / "words" / "tokenizer.json"
    tokenizer.write_text("{")
    await host.start()
    with pytest.raises(BadBundleError, match="tokenizer"):
        await host.load(host.find("words"))
    for _ in range(2):
        await host._rescan()
        assert not host.offers()
    kept = [host._shelf.left_out_because("words"), *host._shelf._left_out.values()]
    assert [error.__traceback__ for error in kept if error] == [None, None]  # no weights there
    tokenizer.unlink()
    await host._rescan()
    assert (await host.load(host.find("words"))).tokenizer is None


async def test_a_copy_takes_the_place_of_a_folder_that_went(
    folder: Path, compute: ComputeThread
) -> None:
    await asyncio.to_thread(shutil.copytree, folder / "words", folder / "again")
    host = ModelHost(None, compute)
    await host.start()
    model = host.find("again")
    await asyncio.to_thread(shutil.rmtree, folder / "again")
    await host._rescan()
    (offer,) = host.offers()
    bundle = host.bundle(model)
    assert (offer.name, offer.also) == ("words", [])
    assert bundle is not None
    assert bundle.path == folder / "words"


async def test_codecs_and_rates(folder: Path, compute: ComputeThread) -> None:
    host = ModelHost(None, compute)
    await host.start()
    loaded = await host.load(host.find("words"))
    codec, book = loaded.choose_codec("")
    assert (codec.name, book) == ("fp16", "")
    assert choose_stages(codec, 0) == 1
    assert choose_stages(codec, codec.rate(1)) == 1
    with pytest.raises(InputError, match=str(codec.rate(1))):
        choose_stages(codec, 7)
    with pytest.raises(InputError, match="zip"):
        loaded.choose_codec("zip")
    with pytest.raises(CodebookError, match="fit"):
        loaded.choose_codec("vq")
    with pytest.raises(CodebookError, match="no codebook"):
        loaded.codec("fp16", CodebookId("b" * 64))
