"""One request's codes: cutting, counting, putting together, and what is not taken."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from astra_mesh import limits
from astra_mesh.errors import DeadlineError, PeerLostError, ProtocolError
from astra_mesh.families import Model, ModelInput
from astra_mesh.mesh.probe import Backlog
from astra_mesh.peer.exchange import MeshExchange, Patience, partners
from astra_mesh.quant.codebook import UNLIMITED
from astra_mesh.quant.codecs import CodeArray, make_codec
from astra_mesh.quant.fit import fit_codebook
from astra_mesh.quant.options import FitOptions
from astra_mesh.wire.messages import Codes, ModelId, Pooled
from tests.unit.engine.plans import random_codec
from tests.unit.peer.fakes import (
    REQUEST,
    A,
    B,
    C,
    D,
    exchange_of,
    layout_for,
    link_to,
    small_model,
)

THREE = [(0, 10), (10, 25), (25, 40)]
ROW = 4 * 32  # bytes of a token in fp32


@pytest.fixture(scope="module")
def words() -> Model:
    return small_model("gpt2")


@pytest.fixture(scope="module")
def pictures() -> Model:
    return small_model("vit")


@pytest.fixture
def last(words: Model) -> MeshExchange:
    """The third of three shards of a text: it gets codes of A and B for blocks 1 and 2."""
    return exchange_of(words, layout_for(words, THREE, "generate"), 2)


def codes(first: int, count: int, block: int = 1, stage: int = 0, fill: int = 0) -> Codes:
    return Codes(REQUEST, block, stage, first, count, bytes([fill]) * (count * ROW))


# --- out ------------------------------------------------------------------------------------------


async def test_codes_are_cut_to_the_size_of_a_message(words: Model) -> None:
    bounds = [(0, 90), (90, 96)]
    exchange = exchange_of(words, layout_for(words, bounds, "generate"), 0)
    exchange._codec._row = 4096  # type: ignore[union-attr]  # as if the model were wider
    rows = np.arange(90 * 4096, dtype=np.uint32).astype(np.uint8).reshape(90, 4096)
    await exchange.send_codes(1, {1: [rows]})
    sent = exchange.links[B].sent  # type: ignore[attr-defined]
    assert [message.count for message in sent] == [16, 16, 16, 16, 16, 10]
    assert [message.first for message in sent] == [0, 16, 32, 48, 64, 80]
    assert max(len(message.data) for message in sent) == limits.CODES_DATA_BYTES
    assert b"".join(message.data for message in sent) == rows.tobytes()
    assert exchange.sent_bytes == {B: rows.nbytes}


@pytest.mark.parametrize("size", [1, 7, 60, 64])
async def test_codes_of_ten_bits_survive_the_cuts(
    words: Model, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Cut anywhere, each message is filled up to whole bytes of its own."""
    options = FitOptions("astra", 0, groups=1, codewords=520, iterations=1, max_tokens=6000)
    g = torch.Generator().manual_seed(1)
    given = [_tokens(words, g) for _ in range(60)]
    book, _ = fit_codebook(words, ModelId("e" * 64), given, options)
    assert book.code_bits == 10
    codec = make_codec("astra", words, book)
    layout = layout_for(words, [(0, 45), (45, 96)], "generate", first_block=codec.first_block)
    monkeypatch.setattr(limits, "CODES_DATA_BYTES", size)
    sender = MeshExchange(REQUEST, layout, [A, B], 0, codec, 32, {B: link_to(B)})
    receiver = MeshExchange(REQUEST, layout, [A, B], 1, codec, 32, {A: link_to(A)})
    rows = np.random.default_rng(0).integers(0, 520, (45, 1)).astype(np.uint16)
    await sender.send_codes(1, {1: [rows]})
    for message in sender.links[B].sent:  # type: ignore[attr-defined]
        assert len(message.data) <= max(size, 2)
        receiver.take(A, message)
    source, arrays = await receiver.receive_codes(1)
    assert source == 0
    np.testing.assert_array_equal(arrays[0], rows)


def _tokens(model: Model, g: torch.Generator) -> ModelInput:
    return ModelInput(tokens=torch.randint(model.spec.vocab_size, (90,), generator=g))


@pytest.mark.parametrize("joined", [0, 4096])
async def test_each_link_gets_its_own_number_of_stages(
    words: Model, monkeypatch: pytest.MonkeyPatch, joined: int
) -> None:
    """Few bytes go in one message, all stages of a link; more go stage after stage."""
    monkeypatch.setattr(limits, "JOINED_CODES_BYTES", joined)
    codec = random_codec(words, stages=3, history=UNLIMITED)
    stages = {(0, 1): 1, (0, 2): 3, (1, 2): 2}
    layout = layout_for(words, THREE, "generate", stages=stages)
    exchange = exchange_of(words, layout, 0, codec)
    rng = np.random.default_rng(0)
    few, all_ = (  # codes of their own for each number of stages, as with a history
        [rng.integers(0, 16, (10, groups)).astype(np.uint8) for groups in (4, 5, 3)[:count]]
        for count in (1, 3)
    )
    await exchange.send_codes(1, {1: few, 2: all_})
    sent = {peer: link.sent for peer, link in exchange.links.items()}  # type: ignore[attr-defined]
    assert [message.stage for message in sent[B]] == [0]
    assert [message.stage for message in sent[C]] == ([0] if joined else [0, 1, 2])
    assert exchange.sent_bytes == {B: 20, C: 20 + 25 + 15}
    for peer, shard, wanted in ((B, 1, few), (C, 2, all_)):
        receiver = exchange_of(words, layout, shard, codec)
        for message in sent[peer]:
            receiver.take(A, message)
        source, arrays = await receiver.receive_codes(1)
        assert source == 0
        for one, other in zip(arrays, wanted, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("size", [2, 7, 64])
async def test_stages_of_different_widths_are_cut_and_put_together(
    words: Model, monkeypatch: pytest.MonkeyPatch, stages: int, size: int
) -> None:
    """From any order; 4, 5 and 3 codes of 4 bits do not fill whole bytes in each message."""
    monkeypatch.setattr(limits, "CODES_DATA_BYTES", size)
    codec = random_codec(words, stages=3, history=1)
    layout = layout_for(words, [(0, 45), (45, 96)], "generate", stages=stages)
    sender, receiver = (exchange_of(words, layout, shard, codec) for shard in (0, 1))
    rng = np.random.default_rng(0)
    wanted = [rng.integers(0, 16, (45, groups)).astype(np.uint8) for groups in (4, 5, 3)[:stages]]
    await sender.send_codes(1, {1: wanted})
    messages = list(sender.links[B].sent)  # type: ignore[attr-defined]
    assert all(len(message.data) <= max(size, 3) for message in messages)
    for at in rng.permutation(len(messages)):
        receiver.take(A, messages[at])
    source, arrays = await receiver.receive_codes(1)
    assert source == 0
    for one, other in zip(arrays, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("stage", "count", "size", "says"),
    [
        (0, 10, 19, "no whole number of stages"),  # the first stage takes 20 bytes
        (0, 10, 21, "no whole number of stages"),
        (0, 10, 25, "no whole number of stages"),  # as many as the second stage takes
        (0, 10, 46, "no whole number of stages"),  # two stages take 45
        (0, 10, 61, "no whole number of stages"),
        (0, 10, 80, "no whole number of stages"),
        (1, 10, 20, "no whole number of stages"),
        (2, 10, 40, "no whole number of stages"),
        (3, 10, 20, "outside"),
    ],
)
def test_payloads_that_no_stages_take(
    words: Model, stage: int, count: int, size: int, says: str
) -> None:
    codec = random_codec(words, stages=3, history=UNLIMITED)
    layout = layout_for(words, THREE, "generate", stages=3)
    receiver = exchange_of(words, layout, 2, codec)
    with pytest.raises(ProtocolError, match=says):
        receiver.take(A, Codes(REQUEST, 1, stage, 0, count, bytes(size)))
    assert receiver._parts == {}
    receiver.take(A, Codes(REQUEST, 1, 0, 0, 10, bytes(60)))


async def test_a_link_that_is_over_is_named(words: Model) -> None:
    exchange = exchange_of(words, layout_for(words, THREE, "generate"), 0)
    exchange.links[C].is_open = False  # type: ignore[misc]
    rows = [np.zeros((10, ROW), dtype=np.uint8)]
    with pytest.raises(PeerLostError, match=C[:8]):
        await exchange.send_codes(1, {1: rows, 2: rows})
    assert exchange.links[B].sent == []  # type: ignore[attr-defined]


# --- rates that may fall --------------------------------------------------------------------------

ADAPTS = Patience(predicted_s=3.0, blocks=3, adapt=True)  # a second for a block
SLOW = Backlog(100, 8.0, None)  # a byte a second


def adapting(model: Model, shard: int, stages: int = 3) -> MeshExchange:
    codec = random_codec(model, stages=3, history=1)
    layout = layout_for(model, [(0, 45), (45, 96)], "generate", stages=stages)
    peers = [A, B]
    links = {peers[1 - shard]: link_to(peers[1 - shard])}
    return MeshExchange(REQUEST, layout, peers, shard, codec, 32, links, ADAPTS)


def rows_of(stages: int) -> list[CodeArray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 16, (45, groups)).astype(np.uint8) for groups in (4, 5, 3)[:stages]]


def test_the_plan_holds_where_it_has_to(words: Model) -> None:
    """Also on a link that carries nothing."""
    exchange = exchange_of(words, layout_for(words, THREE, "generate", stages=3), 0)
    for link in exchange.links.values():
        link.under_way = SLOW  # type: ignore[attr-defined]
    assert exchange.stages(1, 0.0) == {1: 3, 2: 3}
    assert exchange.rates == {}


@pytest.mark.parametrize("planned", [2, 3])
def test_rates_fall_with_the_link_and_that_is_reported(words: Model, planned: int) -> None:
    exchange = adapting(words, 0, planned)
    assert exchange.stages(1, 0.0) == {1: planned}
    assert exchange.rates == {}
    exchange.links[B].under_way = SLOW  # type: ignore[attr-defined]
    assert exchange.stages(2, 0.0) == {1: 1}
    assert exchange.rates == {B: [2, 16]}  # 4 codes of 4 bits


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("size", [7, 20, 4096])
async def test_each_message_says_how_many_stages_there_are(
    words: Model, monkeypatch: pytest.MonkeyPatch, stages: int, size: int
) -> None:
    """Whatever the plan allows, a receiver takes what was sent."""
    monkeypatch.setattr(limits, "CODES_DATA_BYTES", size)
    sender, receiver, wanted = adapting(words, 0), adapting(words, 1), rows_of(stages)
    await sender.send_codes(1, {1: wanted})
    messages = list(sender.links[B].sent)  # type: ignore[attr-defined]
    assert {message.stage for message in messages} == {0}
    for at in np.random.default_rng(1).permutation(len(messages)):
        receiver.take(A, messages[at])
    source, arrays = await receiver.receive_codes(1)
    assert source == 0
    for one, other in zip(arrays, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_no_rate_can_have_sent(words: Model) -> None:
    receiver = adapting(words, 1, stages=2)
    for stage, size, says in (
        (0, 60, "no whole number"),  # three stages, one more than planned
        (0, 21, "no whole number"),
        (1, 25, "each message has the first stages"),
    ):
        with pytest.raises(ProtocolError, match=says):
            receiver.take(A, Codes(REQUEST, 1, stage, 0, 10, bytes(size)))
    receiver.take(A, Codes(REQUEST, 1, 0, 0, 10, bytes(20)))
    with pytest.raises(ProtocolError, match="two rates"):
        receiver.take(A, Codes(REQUEST, 1, 0, 10, 10, bytes(45)))


# --- in -------------------------------------------------------------------------------------------


async def test_parts_come_together_from_any_order(last: MeshExchange) -> None:
    last.take(B, codes(18, 7, fill=2))
    last.take(A, codes(0, 10, fill=3))
    last.take(B, codes(10, 8, fill=1))
    source, (rows,) = await last.receive_codes(1)
    assert (source, rows.shape, int(rows.max())) == (0, (10, ROW), 3)
    source, (rows,) = await last.receive_codes(1)
    assert source == 1
    assert rows[:, 0].tolist() == [1] * 8 + [2] * 7


@pytest.mark.parametrize(
    ("sender", "message", "says"),
    [
        (D, codes(0, 10), "no shard"),
        (C, codes(25, 5), "does not need"),  # its own shard
        (A, codes(0, 10, block=0), "does not need"),  # known to everybody
        (A, codes(0, 10, block=3), "does not need"),  # there are three blocks
        (A, codes(0, 11), "outside"),
        (A, codes(5, 6), "outside"),
        (B, codes(9, 1), "outside"),
        (B, codes(40, 1), "outside"),
        (A, codes(0, 10, stage=1), "outside"),
        (A, Codes(REQUEST, 1, 0, 0, 10, bytes(10 * ROW - 1)), "1279 bytes"),
        (A, Codes(REQUEST, 1, 0, 0, 10, b""), "0 bytes"),
        (A, Codes(REQUEST, 1, 0, 0, 10, bytes(2 * 10 * ROW)), "of 1 on"),  # the rate is one stage
        (
            A,
            Codes(REQUEST, 1, 0, 0, 10, np.full(320, np.nan, "<f4").tobytes()),
            "finite",
        ),
        (
            A,
            Codes(REQUEST, 1, 0, 0, 10, np.full(320, np.inf, "<f4").tobytes()),
            "finite",
        ),
        (A, Pooled(REQUEST, 1.0, bytes(4 * 32)), "does not need"),
    ],
)
def test_what_the_plan_does_not_allow(
    last: MeshExchange, sender: str, message: Codes | Pooled, says: str
) -> None:
    with pytest.raises(ProtocolError, match=says):
        last.take(sender, message)  # type: ignore[arg-type]
    assert last._parts == {}
    last.take(A, codes(0, 10))


def test_rows_that_came_before(last: MeshExchange) -> None:
    last.take(A, codes(0, 6))
    with pytest.raises(ProtocolError, match="before"):
        last.take(A, codes(5, 5))
    last.take(A, codes(6, 4))
    with pytest.raises(ProtocolError, match="before"):
        last.take(A, codes(0, 1))


async def test_what_is_missing_is_named_at_the_deadline(
    last: MeshExchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CODES_TIMEOUT_S", 0.01)
    last.take(A, codes(0, 10))
    last.take(B, codes(10, 1))
    await last.receive_codes(1)
    with pytest.raises(DeadlineError, match=f"codes of block 1 came from {B[:8]} within"):
        await last.receive_codes(1)


async def test_patience_begins_when_there_is_nothing_else_to_do(
    last: MeshExchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CODES_TIMEOUT_S", 0.01)
    idle_s = 0.0

    def idle() -> float:
        return idle_s

    waiting = asyncio.ensure_future(last.receive_codes(1, idle))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    last.take(A, codes(0, 10))
    assert (await waiting)[0] == 0
    waiting = asyncio.ensure_future(last.receive_codes(1, idle))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    idle_s = 5.0  # longer than anybody waits
    with pytest.raises(DeadlineError):
        await waiting
    began = time.monotonic()
    with pytest.raises(DeadlineError):  # idle already: patience begins with the wait
        await last.receive_codes(1, idle)
    assert time.monotonic() - began >= 0.009


async def test_a_failure_ends_waiting_now_and_later(last: MeshExchange) -> None:
    waiting = asyncio.ensure_future(last.receive_codes(1))
    await asyncio.sleep(0)
    last.fail(PeerLostError("first"))
    last.fail(PeerLostError("second"))
    for block in (1, 2):
        with pytest.raises(PeerLostError, match="first"):
            await (waiting if block == 1 else last.receive_codes(block))


async def test_a_lost_link_matters_while_something_is_missing(last: MeshExchange) -> None:
    for block in (1, 2):
        last.take(A, codes(0, 10, block=block))
    assert not last.misses(A)
    assert last.misses(B)
    last.link_gone(last.links[A], PeerLostError("a"))
    await last.receive_codes(1)
    last.link_gone(link_to(B), PeerLostError("another link to b"))
    last.take(B, codes(10, 15))
    await last.receive_codes(1)
    last.link_gone(last.links[B], PeerLostError("b"))
    with pytest.raises(PeerLostError, match="b"):
        await last.receive_codes(2)


# --- pooled vectors -------------------------------------------------------------------------------


@pytest.fixture
def answering(pictures: Model) -> MeshExchange:
    """Distributed class tokens: A and B both send C their share."""
    bounds = [(0, 5), (5, 11), (11, 17)]
    layout = layout_for(pictures, bounds, "classify", class_token="distributed")
    return exchange_of(pictures, layout, 2)


def vector(value: float = 1.0, size: int = 32) -> bytes:
    return np.full(size, value, "<f4").tobytes()


async def test_pooled_vectors_come_in_shard_order(answering: MeshExchange) -> None:
    answering.take(B, Pooled(REQUEST, 2.0, vector(2.0)))
    assert answering.misses(A)
    answering.take(A, Pooled(REQUEST, 1.0, vector(1.0)))
    shares = await answering.receive_pooled(2)
    assert [(float(v[0]), w) for v, w in shares] == [(1.0, 1.0), (2.0, 2.0)]


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (Pooled(REQUEST, 1.0, b""), "0 values"),
        (Pooled(REQUEST, 1.0, vector(size=1)), "1 values"),
        (Pooled(REQUEST, 1.0, vector(size=33)), "33 values"),
        (Pooled(REQUEST, 1.0, vector(math.nan)), "not valid"),
        (Pooled(REQUEST, 1.0, vector(math.inf)), "not valid"),
        (Pooled(REQUEST, 0.0, vector()), "not valid"),
    ],
)
def test_pooled_vectors_that_are_not_taken(
    answering: MeshExchange, message: Pooled, says: str
) -> None:
    with pytest.raises(ProtocolError, match=says):
        answering.take(A, message)
    assert answering._pooled == {}


def test_pooled_vectors_of_those_who_send_none(
    answering: MeshExchange, pictures: Model, words: Model
) -> None:
    answering.take(A, Pooled(REQUEST, 1.0, vector()))
    for sender in (A, C, D):
        with pytest.raises(ProtocolError):
            answering.take(sender, Pooled(REQUEST, 1.0, vector()))
    single = layout_for(pictures, [(0, 5), (5, 11), (11, 17)], "classify", class_token="single")
    with pytest.raises(ProtocolError, match="does not need"):
        exchange_of(pictures, single, 2).take(B, Pooled(REQUEST, 1.0, vector()))
    with pytest.raises(ProtocolError, match="does not need"):
        exchange_of(pictures, single, 1).take(A, Pooled(REQUEST, 1.0, vector()))


async def test_a_missing_pooled_vector_is_named(
    answering: MeshExchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CODES_TIMEOUT_S", 0.01)
    answering.take(A, Pooled(REQUEST, 1.0, vector()))
    with pytest.raises(DeadlineError, match=f"pooled vectors came from {B[:8]} within"):
        await answering.receive_pooled(2)


async def test_a_failure_ends_waiting_for_pooled_vectors(answering: MeshExchange) -> None:
    waiting = asyncio.ensure_future(answering.receive_pooled(2))
    await asyncio.sleep(0)
    answering.link_gone(answering.links[B], PeerLostError("gone"))
    with pytest.raises(PeerLostError, match="gone"):
        await waiting


# --- partners and the end -------------------------------------------------------------------------


def test_partners_are_those_with_whom_something_is_exchanged(words: Model, pictures: Model) -> None:
    causal = layout_for(words, THREE, "generate")
    assert [partners(causal, shard) for shard in range(3)] == [[1, 2], [0, 2], [0, 1]]
    holes = layout_for(words, [(0, 10), (10, 10), (10, 40)], "generate")
    assert [partners(holes, shard) for shard in range(3)] == [[2], [], [0]]
    # Without codes (one block) the answering shard still needs all: it has to propose to them.
    short = replace(causal, blocks=1)
    assert partners(short, 2) == [0, 1]
    # Only position 0, of which every shard has a copy: nothing is sent, but its class token is.
    bounds = [(0, 1), (1, 9), (9, 17)]
    own = layout_for(pictures, bounds, "classify", class_token="distributed")
    assert partners(own, 2) == [0, 1]
    assert 2 in partners(own, 0)


def test_abandoning_ends_the_request_on_every_link(last: MeshExchange) -> None:
    last.abandon()
    assert all(link.ended == [REQUEST] for link in last.links.values())  # type: ignore[attr-defined]
