"""Whole requests over real peers and sockets, held against the single-process reference."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from astra_mesh import limits
from astra_mesh.bundle import open_bundle
from astra_mesh.bundle.image import ImageProcessor
from astra_mesh.engine.pipeline import Pipeline
from astra_mesh.engine.reference import decode, pooled, run_plan, run_solo
from astra_mesh.engine.shard import ShardRun
from astra_mesh.errors import PortInUseError
from astra_mesh.families import ModelInput
from astra_mesh.mesh.link import Link
from astra_mesh.mesh.probe import Backlog
from astra_mesh.peer import Peer, PeerConfig
from astra_mesh.peer.exchange import MeshExchange
from astra_mesh.peer.inputs import read_inputs
from astra_mesh.peer.loading import load
from astra_mesh.peer.models import Loaded, ModelHost
from astra_mesh.plan.check import layout_of
from astra_mesh.quant.codebook import UNLIMITED
from astra_mesh.quant.codecs import VectorCodec
from astra_mesh.quant.vector import Table, VectorReceiver
from astra_mesh.wire.codec import AnyMessage
from astra_mesh.wire.messages import (
    Inputs,
    Late,
    ModelId,
    Options,
    PeerId,
    Planned,
    Propose,
    Result,
    Sampling,
    Task,
    Use,
)
from tests.integration.mesh_fixtures import client_of, make_models, mesh_of, picture, until

PROMPT = [(7 * i) % 64 for i in range(40)]
ALL = Options(use=Use.ALL)
YEAR_S = 365 * 86_400.0


@pytest.fixture(scope="module")
def loaded_models(models: Path) -> dict[str, Loaded]:
    """The same models once more, for the reference."""
    return {path.name: load(open_bundle(path)) for path in models.iterdir()}


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of the same names with other weights."""
    return make_models(tmp_path_factory.mktemp("models") / "foreign", seed=5)


@pytest.fixture
def mixed(models: Path, foreign: Path) -> Iterator[Path]:
    """The foreign models, ``words`` with a codebook of the others."""
    path = foreign / "words" / "codebook.safetensors"
    own = path.read_bytes()
    path.write_bytes((models / "words" / "codebook.safetensors").read_bytes())
    yield foreign
    path.write_bytes(own)


def reference_of(loaded: Loaded, result: Result, task: Task, inputs: Inputs) -> list[ShardRun]:
    """The shards of the plan that ran, run in this process."""
    plan = result.report.plan
    codec = loaded.codec(plan.codec, plan.codebook)
    given, tokens = read_inputs(loaded, inputs)
    layout = layout_of(plan, loaded.spec, task, tokens, codec.first_block, codec.able)
    return run_plan(loaded.model, layout, codec, given, spare=64)


def options(codec: str, rate: int = 0, class_token: str = "") -> Options:
    return Options(use=Use.ALL, codec=codec, rate=rate, class_token=class_token)


@pytest.mark.parametrize(
    ("codec", "rate"),
    [("vq", 0), ("vq", 8), ("astra", 0), ("fp32", 0), ("fp16", 0), ("int8", 0), ("int4", 0)],
)
async def test_text_over_three_peers_equals_the_reference(
    models: Path, loaded_models: dict[str, Loaded], codec: str, rate: int
) -> None:
    sampling = Sampling(max_new_tokens=16)
    async with mesh_of(["a", "b", "c"], models) as peers, client_of(peers[2]) as client:
        request = client.send(
            Task.GENERATE, "words", tokens=PROMPT, sampling=sampling, options=options(codec, rate)
        )
        reply = await client.reply(request)
    result = reply.done()
    plan = result.report.plan
    assert len(plan.shards) == 3
    assert plan.answering == plan.shards[-1].peer == peers[2].id
    loaded = loaded_models["words"]
    runs = reference_of(loaded, result, Task.GENERATE, Inputs(tokens=PROMPT))
    assert reply.ids == decode(runs, sampling, loaded.stop_ids)
    assert [token.index for token in reply.tokens] == list(range(16))
    if codec == "fp32":
        solo = run_solo(loaded.model, ModelInput(tokens=torch.tensor(PROMPT)), "last", spare=64)
        assert reply.ids == decode([solo], sampling, loaded.stop_ids)


@pytest.mark.parametrize("lean", [("a", "b", "c"), ("b",), ("c",)])
async def test_peers_with_little_memory_give_the_same_text(
    models: Path, loaded_models: dict[str, Loaded], lean: tuple[str, ...]
) -> None:
    sampling = Sampling(max_new_tokens=16)
    async with (
        mesh_of(["a", "b", "c"], models, low_memory=lean) as peers,
        client_of(peers[2]) as client,
    ):
        request = client.send(
            Task.GENERATE, "words", tokens=PROMPT, sampling=sampling, options=options("vq")
        )
        reply = await client.reply(request)
        for peer in peers:
            loaded = await peer.models.load(peer.models.find("words"))
            assert loaded.tables is (peer.name not in lean)
    own = loaded_models["words"]
    runs = reference_of(own, reply.done(), Task.GENERATE, Inputs(tokens=PROMPT))
    assert reply.ids == decode(runs, sampling, own.stop_ids)


async def test_a_request_does_not_wait_for_tables_that_nobody_made_yet(
    models: Path, loaded_models: dict[str, Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It projects; the tables of its rate are made after it, and the next one looks up."""
    made: list[bool] = []  # whether a request ran meanwhile
    looked_up: list[int] = []
    make, look_up = VectorCodec._make_table, VectorReceiver._look_up
    sampling = Sampling(max_new_tokens=4)
    async with mesh_of(["a", "b"], models) as peers, client_of(peers[0]) as client:

        def making(self: VectorCodec, block: int, stages: int) -> Table:
            made.append(any(peer._requests and peer._requests.running for peer in peers))
            return make(self, block, stages)

        def looking(self: VectorReceiver, block: int, *more: object) -> torch.Tensor:
            looked_up.append(block)
            return look_up(self, block, *more)  # type: ignore[arg-type]

        for peer in peers:
            loaded = await peer.models.load(peer.models.find("words"))
            for times in loaded.times.values():
                times.decoder.update(dict.fromkeys(times.decoder, "table"))
        monkeypatch.setattr(VectorCodec, "_make_table", making)
        monkeypatch.setattr(VectorReceiver, "_look_up", looking)
        for turn in range(2):
            looked_up.clear()
            request = client.send(
                Task.GENERATE, "words", tokens=PROMPT, sampling=sampling, options=options("vq", 8)
            )
            reply = await client.reply(request)
            assert bool(looked_up) == (turn == 1)
            await until(lambda: made)
            await until(lambda: not any(peer.models.lacks_tables for peer in peers))
            runs = reference_of(
                loaded_models["words"], reply.done(), Task.GENERATE, Inputs(tokens=PROMPT)
            )
            assert reply.ids == decode(runs, sampling, loaded_models["words"].stop_ids)
    assert not any(made)


async def test_memory_goes_back_once_nothing_runs_for_a_while(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back: list[float] = []
    monkeypatch.setattr(limits, "GIVE_BACK_S", 0.3)
    monkeypatch.setattr(ModelHost, "give_back", lambda self: given_back.append(1))
    monkeypatch.setattr(ModelHost, "doubt", lambda self, model: None)
    async with mesh_of(["a"], models) as (peer,), client_of(peer) as client:
        for _ in range(3):
            sampling = Sampling(max_new_tokens=2)
            request = client.send(Task.GENERATE, "words", tokens=PROMPT, sampling=sampling)
            (await client.reply(request)).done()
            given_back_between = list(given_back)
        await until(lambda: given_back)
        assert given_back_between == []
        await asyncio.sleep(0.4)
    assert len(given_back) == 1


async def test_memory_of_work_between_requests_goes_back(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may last until long after the last request."""
    given_back: list[float] = []
    monkeypatch.setattr(limits, "GIVE_BACK_S", 60.0)
    monkeypatch.setattr(ModelHost, "give_back", lambda self: given_back.append(1))
    monkeypatch.setattr(ModelHost, "has_doubts", property(lambda self: True))
    async with mesh_of(["a"], models) as (peer,), client_of(peer) as client:
        sampling = Sampling(max_new_tokens=2)
        request = client.send(Task.GENERATE, "words", tokens=PROMPT, sampling=sampling)
        (await client.reply(request)).done()
        await until(lambda: given_back)


async def test_memory_goes_back_now_and_then_if_something_always_runs(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back: list[float] = []
    monkeypatch.setattr(ModelHost, "give_back", lambda self: given_back.append(1))
    monkeypatch.setattr(limits, "GIVE_BACK_S", 60.0)
    sampling = Sampling(max_new_tokens=2)
    async with mesh_of(["a"], models) as (peer,), client_of(peer) as client:
        for busy_s, times in ((60.0, 0), (0.0, 1), (60.0, 1)):
            monkeypatch.setattr(limits, "GIVE_BACK_BUSY_S", busy_s)
            request = client.send(Task.GENERATE, "words", tokens=PROMPT, sampling=sampling)
            (await client.reply(request)).done()
            await until(lambda: not peer._requests._tasks)  # type: ignore[union-attr]
            assert len(given_back) == times


@pytest.mark.parametrize("jump_s", [-50 * YEAR_S, 10 * YEAR_S])
async def test_a_clock_that_jumps_changes_nothing(
    models: Path, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    """In the middle of a request; afterwards links are made anew, too."""
    usual, jumped = time.time, asyncio.Event()
    prefill = Pipeline.prefill

    async def jumps(self: Pipeline) -> None:
        monkeypatch.setattr(time, "time", lambda: usual() + jump_s)
        jumped.set()
        await prefill(self)

    monkeypatch.setattr(Pipeline, "prefill", jumps)
    sampling = Sampling(max_new_tokens=4)
    async with mesh_of(["a", "b"], models) as peers, client_of(peers[1]) as client:
        first, again = (
            client.send(Task.GENERATE, "words", tokens=PROMPT, sampling=sampling, options=ALL)
            for _ in range(2)
        )
        assert (await client.reply(first)).ids == (await client.reply(again)).ids
        assert jumped.is_set()
        link = peers[1].link(peers[0].id)
        assert link is not None
        await link.close()
        await until(lambda: peers[1].link(peers[0].id) is None)
        await until(lambda: peers[1].link(peers[0].id) is not None)
        request = client.send(Task.GENERATE, "words", tokens=PROMPT, sampling=sampling, options=ALL)
        report = (await client.reply(request)).done().report
        assert len(report.plan.shards) == 2
        assert report.notes == []


async def test_text_at_rates_that_fell_equals_the_reference_at_these_rates(
    models: Path, loaded_models: dict[str, Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Links that seem to carry nothing from the second coded block on."""
    monkeypatch.setattr(Link, "backlog", lambda self: Backlog(10**6, 8.0, None))
    monkeypatch.setattr(MeshExchange, "stages", _first_as_planned())
    sampling, loaded = Sampling(max_new_tokens=16), loaded_models["words"]
    async with mesh_of(["a", "b", "c"], models) as peers, client_of(peers[2]) as client:
        request = client.send(
            Task.GENERATE,
            "words",
            tokens=PROMPT,
            sampling=sampling,
            options=Options(use=Use.ALL, codec="vq", late=Late.ADAPT),
        )
        reply = await client.reply(request)
    report = reply.done().report
    order = [shard.peer for shard in report.plan.shards]
    codec = loaded.codec("vq", report.plan.codebook)
    assert isinstance(codec, VectorCodec)
    planned = report.plan.rates[0].stages
    assert planned > min(codec.able)
    by_bits = {codec.rate(stages): stages for stages in codec.able}
    told = {
        (order.index(one.peer), order.index(PeerId(to))): changes
        for one in report.peers
        for to, changes in one.rates.items()
    }
    assert set(told) == {(0, 2), (1, 2)}  # the second shard takes nothing for the last block
    assert all(note.startswith("degraded: ") for note in report.notes)
    assert len(report.notes) == 2

    def sent(block: int, sender: int, receiver: int) -> int:
        changes = told.get((sender, receiver), [])
        past = [bits for at, bits in zip(changes[::2], changes[1::2], strict=True) if at <= block]
        return by_bits[past[-1]] if past else planned

    given, tokens = read_inputs(loaded, Inputs(tokens=PROMPT))
    layout = layout_of(
        report.plan, loaded.spec, Task.GENERATE, tokens, codec.first_block, codec.able
    )
    runs = run_plan(loaded.model, layout, codec.projecting(), given, spare=64, sent=sent)
    assert reply.ids == decode(runs, sampling, loaded.stop_ids)
    assert {sent(1, *link) for link in told} == {planned}
    assert {sent(2, *link) for link in told} == {min(codec.able)}


def _first_as_planned() -> Callable[..., Mapping[int, int]]:
    choose = MeshExchange.stages

    def stages(self: MeshExchange, block: int, busy_s: float) -> Mapping[int, int]:
        if block > self.layout.first_block:
            return choose(self, block, busy_s)
        return {i: self.layout.stages[self.shard, i] for i in self.layout.receivers(self.shard, 1)}

    return stages


@pytest.mark.parametrize("class_token", ["single", "distributed"])
@pytest.mark.parametrize("codec", ["vq", "astra", "fp32"])
async def test_pictures_over_three_peers_equal_the_reference(
    models: Path, loaded_models: dict[str, Loaded], codec: str, class_token: str
) -> None:
    async with mesh_of(["a", "b", "c"], models) as peers, client_of(peers[0]) as client:
        request = client.send(
            Task.CLASSIFY, "pictures", image=picture(), options=options(codec, 0, class_token)
        )
        result = (await client.reply(request)).done()
    loaded = loaded_models["pictures"]
    assert result.report.plan.class_token == class_token
    runs = reference_of(loaded, result, Task.CLASSIFY, Inputs(image=picture()))
    expected = torch.softmax(loaded.model.classify(pooled(runs)), -1)
    found = {label.label: label.probability for label in result.labels}
    for index, probability in enumerate(expected.tolist()):
        assert found[loaded.model.labels[index]] == pytest.approx(probability, abs=1e-5)
    assert [x.probability for x in result.labels] == sorted(found.values(), reverse=True)


async def test_a_large_picture_is_sent_no_larger_than_the_model_looks_at_it(
    models: Path, loaded_models: dict[str, Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    large, shared, send = picture(edge=600), list[bytes](), Link.send

    def watched(link: Link, message: AnyMessage, frame: bytes | None = None) -> None:
        if isinstance(message, Propose):
            shared.append(message.inputs.image)
        send(link, message, frame)

    monkeypatch.setattr(Link, "send", watched)
    async with mesh_of(["a", "b"], models) as peers, client_of(peers[0]) as client:
        request = client.send(
            Task.CLASSIFY, "pictures", image=large, options=options("fp32", 0, "single")
        )
        result = (await client.reply(request)).done()
    assert [len(one) < 10_000 for one in shared] == [True]
    assert len(large) > 1_000_000
    loaded = loaded_models["pictures"]
    runs = reference_of(loaded, result, Task.CLASSIFY, Inputs(image=large))
    expected = torch.softmax(loaded.model.classify(pooled(runs)), -1)
    assert result.labels[0].probability == pytest.approx(float(expected.max()), abs=1e-5)


@pytest.mark.parametrize("class_token", ["single", "distributed"])
@pytest.mark.parametrize("rate", [8, 16])
async def test_embedding_over_four_peers_equals_the_reference(
    models: Path, loaded_models: dict[str, Loaded], class_token: str, rate: int
) -> None:
    text = " ".join(f"w{i}" for i in PROMPT)
    async with mesh_of(["a", "b", "c", "d"], models) as peers, client_of(peers[1]) as client:
        request = client.send(
            Task.EMBED, "feelings", text=text, options=options("vq", rate, class_token)
        )
        result = (await client.reply(request)).done()
    loaded = loaded_models["feelings"]
    runs = reference_of(loaded, result, Task.EMBED, Inputs(tokens=PROMPT))
    vector = np.frombuffer(result.vector, "<f4")
    np.testing.assert_allclose(vector, pooled(runs).numpy(), atol=1e-5)
    solo = run_solo(loaded.model, ModelInput(tokens=torch.tensor(PROMPT)), "mean")
    assert np.abs(vector - pooled([solo]).numpy()).max() > 0.01  # the codes do change something
    assert result.report.bits_per_token == rate


def test_the_codebooks_of_these_tests_remember(loaded_models: dict[str, Loaded]) -> None:
    assert not loaded_models["plain"].codebooks
    for name in ("words", "pictures", "feelings"):
        loaded = loaded_models[name]
        books = loaded.codebooks.items()
        codecs = {book.codec: loaded.codec(book.codec, key) for key, book in books}
        assert set(codecs) == {"vq", "astra"}
        codec = codecs["vq"]
        assert isinstance(codec, VectorCodec)
        assert codec.codebook.history == UNLIMITED
        assert list(codec.codebook.rates.values()) == [8, 16]
        assert set(codec.codebook.levels) == {1, 2}  # a quantizer for each


async def test_the_report_says_who_did_what(models: Path) -> None:
    async with mesh_of(["a", "b", "c"], models) as peers, client_of(peers[2]) as client:
        request = client.send(Task.GENERATE, "words", tokens=PROMPT, options=ALL)
        reply = await client.reply(request)
    report = reply.done().report
    planned = reply.planned[0]
    assert sorted(planned.names.values()) == ["a", "b", "c"]
    assert planned.bits_per_token == report.bits_per_token == 4 * 4
    assert planned.prompt_tokens == len(PROMPT)
    assert [one.tokens for one in report.peers] == [s.stop - s.start for s in planned.plan.shards]
    first, second, last = report.peers
    # Codes of blocks 1 and 2 for those that finish the last block, of block 1 for the other.
    per_block = first.tokens * 4 * 4 // 8
    assert first.sent_bytes[last.peer] > 2 * per_block
    assert first.sent_bytes[second.peer] > per_block
    assert second.sent_bytes.keys() == {last.peer}
    assert not last.sent_bytes
    assert last.decode_steps == report.new_tokens == len(reply.tokens)
    assert report.finish in ("length", "eos", "context")
    assert 0 < report.actual_s <= report.total_s
    assert report.predicted_s > 0
    assert [one.precision for one in report.peers] == ["fp32"] * 3


async def test_alone_a_peer_answers_and_says_that_it_is(models: Path) -> None:
    async with mesh_of(["only"], models) as peers, client_of(peers[0]) as client:
        request = client.send(Task.GENERATE, "words", tokens=PROMPT)
        reply = await client.reply(request)
    assert reply.done().report.bits_per_token == 0
    assert "no other peer" in reply.planned[0].reason


async def test_peers_without_the_same_codebook_are_left_out(models: Path, foreign: Path) -> None:
    async with mesh_of(["a", "b"], [foreign, models]) as peers, client_of(peers[1]) as client:
        request = client.send(Task.GENERATE, "words", tokens=PROMPT, options=ALL)
        reply = await client.reply(request)
    assert [shard.peer for shard in reply.done().report.plan.shards] == [peers[1].id]


async def test_a_peer_lost_during_prefill_is_planned_around(
    models: Path, loaded_models: dict[str, Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Pipeline.prefill
    stuck = asyncio.Event()

    async def prefill(self: Pipeline) -> None:
        if self.run.shard == 0 and len(self.run.layout.bounds) == 3:
            stuck.set()
            await asyncio.Event().wait()
        await original(self)

    monkeypatch.setattr(Pipeline, "prefill", prefill)
    async with mesh_of(["a", "b", "c"], models) as peers, client_of(peers[2]) as client:
        request = client.send(Task.GENERATE, "words", tokens=PROMPT, options=ALL)
        await asyncio.wait_for(stuck.wait(), 10)
        planned = await client.next(request)
        assert isinstance(planned, Planned)
        first = planned.plan.shards[0].peer
        await next(peer for peer in peers if peer.id == first).stop()
        reply = await client.reply(request)
        result = reply.done()
    assert len(result.report.plan.shards) == 2
    assert first not in {shard.peer for shard in result.report.plan.shards}
    assert any("planned again" in note for note in result.report.notes)
    loaded = loaded_models["words"]
    runs = reference_of(loaded, result, Task.GENERATE, Inputs(tokens=PROMPT))
    assert reply.ids == decode(runs, Sampling(), loaded.stop_ids)


async def test_cancelling_frees_the_request_on_every_peer(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    async def prefill(self: Pipeline) -> None:
        started.append(self)
        await asyncio.Event().wait()

    monkeypatch.setattr(Pipeline, "prefill", prefill)
    async with mesh_of(["a", "b", "c"], models) as peers, client_of(peers[2]) as client:
        request = client.send(Task.GENERATE, "words", tokens=PROMPT, options=ALL)
        await until(lambda: len(started) == 3)
        client.cancel(request)
        await until(lambda: not any(busy(peer) for peer in peers), wait_s=1.0)


def busy(peer: Peer) -> bool:
    requests = peer._requests
    assert requests is not None
    return bool(requests._answers or requests._parts or requests._exchanges or requests._running)


async def test_a_client_that_goes_away_cancels_its_requests(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = asyncio.Event()

    async def prefill(self: Pipeline) -> None:
        started.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(Pipeline, "prefill", prefill)
    async with mesh_of(["a", "b"], models) as peers:
        async with client_of(peers[0]) as client:
            client.send(Task.GENERATE, "words", tokens=PROMPT, options=ALL)
            await asyncio.wait_for(started.wait(), 10)
        await until(lambda: not any(busy(peer) for peer in peers), wait_s=1.0)


async def test_peers_of_one_name_are_two_peers(models: Path) -> None:
    async with mesh_of(["twin", "twin", "other"], models) as peers:
        listed = peers[2].peer_list()
        assert sorted(one.name for one in listed) == ["other", "twin", "twin"]
        assert len({one.peer for one in listed}) == 3
        async with client_of(peers[2]) as client:
            reply = await client.reply(
                client.send(Task.GENERATE, "words", tokens=PROMPT, options=ALL)
            )
        shards = reply.done().report.plan.shards
        assert {shard.peer for shard in shards} == {peer.id for peer in peers}
        assert sorted(reply.planned[0].names.values()) == ["other", "twin", "twin"]


async def test_many_requests_at_once_all_get_their_own_answer(
    models: Path, loaded_models: dict[str, Loaded]
) -> None:
    prompts = [[(k * i + 3) % 64 for i in range(20 + k)] for k in range(8)]
    async with mesh_of(["a", "b"], models) as peers, client_of(peers[1]) as client:
        sampling = Sampling(max_new_tokens=6)
        asked = [
            client.send(
                Task.GENERATE, "words", tokens=p, sampling=sampling, options=options("fp32")
            )
            for p in prompts
        ]
        replies = [await client.reply(request) for request in asked]
    loaded = loaded_models["words"]
    for prompt, reply in zip(prompts, replies, strict=True):
        solo = run_solo(loaded.model, ModelInput(tokens=torch.tensor(prompt)), "last", spare=64)
        assert reply.ids == decode([solo], sampling, loaded.stop_ids)


@pytest.mark.parametrize(
    ("ask", "code", "says"),
    [
        ({"task": Task.GENERATE, "model": "nothing", "text": "w1"}, "unknown-model", "words"),
        ({"task": Task.GENERATE, "model": "words", "text": ""}, "empty-prompt", "empty"),
        ({"task": Task.GENERATE, "model": "words", "tokens": []}, "empty-prompt", "empty"),
        ({"task": Task.GENERATE, "model": "words", "tokens": [1] * 97}, "prompt-too-long", "96"),
        ({"task": Task.GENERATE, "model": "words", "tokens": [64]}, "bad-input", "0..63"),
        ({"task": Task.GENERATE, "model": "pictures", "text": "w1"}, "wrong-task", "classify"),
        ({"task": Task.CLASSIFY, "model": "pictures", "image": b"no image"}, "bad-image", "image"),
        ({"task": Task.CLASSIFY, "model": "pictures", "text": "w1"}, "bad-input", "image"),
        ({"task": Task.CLASSIFY, "model": "feelings", "image": b"x"}, "bad-input", "text"),
        (
            {
                "task": Task.GENERATE,
                "model": "words",
                "text": "w1",
                "options": Options(codec="zip"),
            },
            "bad-codec",
            "fp16",
        ),
        (
            {"task": Task.GENERATE, "model": "words", "text": "w1", "options": Options(rate=7)},
            "bad-rate",
            "8, 16",
        ),
        (
            {
                "task": Task.GENERATE,
                "model": "words",
                "text": "w1",
                "sampling": Sampling(temperature=1000.0),
            },
            "bad-input",
            "temperature",
        ),
    ],
)
async def test_bad_input_is_a_named_error(models: Path, ask: dict, code: str, says: str) -> None:
    async with mesh_of(["only"], models) as peers, client_of(peers[0]) as client:
        task, model = ask.pop("task"), ask.pop("model")
        reply = await client.reply(client.send(task, model, **ask))
        assert reply.failure is not None
        assert reply.failure.code == code
        assert says in reply.failure.text
        again = await client.reply(client.send(Task.GENERATE, "words", tokens=PROMPT))
        again.done()


async def test_a_port_in_use_is_a_named_error(models: Path) -> None:
    async with mesh_of(["only"], models) as peers:
        config = PeerConfig(
            port=peers[0].port, listen="127.0.0.1", discovery=False, ephemeral=True, models=()
        )
        with pytest.raises(PortInUseError, match="--port"):
            await Peer(config).start()


async def test_a_codebook_of_other_weights_is_left_out_and_named(mixed: Path) -> None:
    async with mesh_of(["only"], mixed) as peers, client_of(peers[0]) as client:
        request = client.send(Task.GENERATE, "words", tokens=PROMPT, options=Options(codec="vq"))
        reply = await client.reply(request)
        assert reply.failure is not None
        assert reply.failure.code == "codebook"
        assert "other weights" in reply.failure.text
        other = Options(codec="fp16")
        request = client.send(Task.GENERATE, "words", tokens=PROMPT, options=other)
        result = (await client.reply(request)).done()
    assert any("left out" in note for note in result.report.notes)


async def test_a_task_that_a_model_cannot_do_is_refused_before_it_is_loaded(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(host: ModelHost, model: ModelId) -> Loaded:
        raise AssertionError("it was loaded")

    monkeypatch.setattr(ModelHost, "load", never)
    async with mesh_of(["a"], models) as (peer,), client_of(peer) as client:
        reply = await client.reply(client.send(Task.GENERATE, "pictures", tokens=PROMPT))
    assert reply.failure is not None
    assert reply.failure.code == "wrong-task"
    assert "this vit model cannot generate; it can classify" in reply.failure.text


async def test_a_picture_is_packed_only_where_others_could_get_it(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed: list[int] = []
    original = ImageProcessor._packed

    def spied(self: ImageProcessor, image: Any, data: bytes) -> bytes:
        packed.append(len(data))
        return original(self, image, data)

    monkeypatch.setattr(ImageProcessor, "_packed", spied)
    data = picture(edge=48)
    for names in (["a"], ["a", "b"]):
        async with mesh_of(names, models) as peers, client_of(peers[0]) as client:
            for options in (Options(use=Use.SOLO), Options(use=Use.ALL)):
                request = client.send(Task.CLASSIFY, "pictures", image=data, options=options)
                (await client.reply(request)).done()
    assert packed == [len(data)]
