"""The codebooks' graphs give the codes that Python gives, and rebuild the same from them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from astra_mesh.browser.codes import book_graphs, book_tensors
from astra_mesh.browser.tensors import Packed
from astra_mesh.quant.codebook import sources
from astra_mesh.quant.codecs import VectorCodec
from astra_mesh.quant.coders import Memory
from tests.unit.browser.running import Session
from tests.unit.engine.plans import HISTORIES, deep_model, random_codec

TOKENS = 60


@torch.inference_mode()
def _check(codec: VectorCodec, stages: int) -> None:
    """Codes of all blocks, each graph fed with what Python kept of the blocks before."""
    book, model = codec.codebook, codec.model
    hidden = model.spec.hidden_size
    known = torch.randn(TOKENS, hidden, generator=torch.Generator().manual_seed(1))
    memory = codec.memory(known)
    sender, receiver = codec.sender(stages, known), codec.receiver(stages, known)
    for block in range(codec.first_block, model.spec.num_hidden_layers):
        one = book.book(block, stages)
        widest = book.book(block, stages if book.history else book.stages)
        packed = Packed(book_tensors(widest))
        graphs = book_graphs(one, packed, hidden, book.history)
        made = {name: Session(graph, packed) for name, graph in graphs.items()}
        x = torch.randn(TOKENS, hidden, generator=torch.Generator().manual_seed(9 + block))
        n = x if one.center is None else model.block(block).normalize(x)
        codes = sender.encode(block, x)
        past = None if memory is None else memory.past(block).numpy()
        fed = {} if past is None else {"past": past}
        found = made["encode"](n=n.numpy(), **fed)
        same = [np.mean(found[f"codes.{i}"] == wanted) for i, wanted in enumerate(codes)]
        assert min(same) >= 0.999
        given = {f"codes.{i}": wanted.astype(np.int32) for i, wanted in enumerate(codes)}
        rebuilt = made["rebuild"](**given, **fed)
        wanted = receiver.rebuild(block, codes)
        np.testing.assert_allclose(rebuilt["n"], wanted.numpy(), rtol=1e-5, atol=1e-5)
        if memory is not None:
            _check_kept(memory, codec, block, stages, codes, found, rebuilt)


def _check_kept(
    memory: Memory,
    codec: VectorCodec,
    block: int,
    stages: int,
    codes: list[np.ndarray],
    found: dict[str, np.ndarray],
    rebuilt: dict[str, np.ndarray],
) -> None:
    book = codec.codebook.book(block, stages)
    predicted = memory.predict(block, book, slice(None))
    memory.keep(block, slice(None), predicted, codec.added(block, stages, codes))
    unlimited = codec.codebook.history == -1
    kept = predicted + codec.added(block, stages, codes)
    if not unlimited:
        kept = codec.added(block, stages, codes)
    np.testing.assert_allclose(found["kept"], kept.numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(rebuilt["kept"], kept.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_codes_of_a_codebook(history: int, stages: int) -> None:
    _check(random_codec(deep_model("gpt2"), groups=3, stages=3, history=history), stages)


def test_codes_of_the_published_form() -> None:
    _check(random_codec(deep_model("gpt2"), "astra", groups=4), 1)


@pytest.mark.parametrize("history", [1, 2, -1])
def test_what_is_predicted_without_codes(history: int) -> None:
    codec = random_codec(deep_model("gpt2"), stages=1, history=history)
    block, hidden = 4, codec.model.spec.hidden_size
    book = codec.codebook.book(block, 1)
    packed = Packed(book_tensors(book))
    made = Session(book_graphs(book, packed, hidden, history)["predict"], packed)
    past = torch.randn(TOKENS, hidden * len(sources(history, block)))
    assert book.predict is not None
    assert book.center is not None
    wanted = torch.addmm(book.center, past, book.predict.flatten(0, 1))
    np.testing.assert_allclose(made(past=past.numpy())["n"], wanted.numpy(), rtol=1e-5, atol=1e-5)
