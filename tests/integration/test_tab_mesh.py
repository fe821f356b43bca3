"""Tabs (whole Python peers behind ``/tab``, tests/integration/tabs.py) that take shards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from astra_mesh import limits
from astra_mesh.bundle import open_bundle
from astra_mesh.engine.pipeline import Pipeline
from astra_mesh.engine.reference import decode, pooled, run_solo
from astra_mesh.families import ModelInput
from astra_mesh.mesh.sockets import transport_of
from astra_mesh.mesh.timings import Timings
from astra_mesh.peer import Peer
from astra_mesh.peer.loading import load
from astra_mesh.peer.models import Loaded
from astra_mesh.web import ApiConfig, serving
from astra_mesh.wire.messages import Inputs, Options, RequestId, Sampling, Task, Use
from tests.integration.mesh_fixtures import (
    Reply,
    TestClient,
    client_of,
    mesh_of,
    picture,
    until,
)
from tests.integration.tabs import TabPeer, tab_peer
from tests.integration.test_mesh import reference_of
from tests.integration.web_fixtures import live
from tests.timings import patient

PROMPT = [7 * i % 64 for i in range(40)]
SHORT = Sampling(max_new_tokens=8)
ALL = Options(use=Use.ALL, codec="fp32")


@pytest.fixture(scope="module")
def loaded_models(models: Path) -> dict[str, Loaded]:
    """The same models once more, for the reference."""
    return {path.name: load(open_bundle(path)) for path in models.iterdir()}


@pytest.fixture(scope="module")
def alone(loaded_models: dict[str, Loaded]) -> list[int]:
    """What one device answers; fp32 over any plan gives the same."""
    words = loaded_models["words"]
    run = run_solo(words.model, ModelInput(tokens=torch.tensor(PROMPT)), "last", spare=64)
    return decode([run], SHORT, words.stop_ids)


def ask_words(client: TestClient, options: Options = ALL) -> RequestId:
    return client.send(Task.GENERATE, "words", tokens=PROMPT, options=options, sampling=SHORT)


def all_linked(*peers: Peer) -> Any:
    """Whether each has a link to all others, and knows that tabs are ready."""
    tabs = [peer.id for peer in peers if isinstance(peer, TabPeer)]

    def holds() -> bool:
        known = [peer.others() for peer in peers]
        ready = all(
            offer.timing is not None
            for others in known
            for tab in tabs
            for offer in (others[tab].models if tab in others else ())
        )
        return ready and all_known(*peers)()

    return holds


def all_known(*peers: Peer) -> Any:
    """Whether each has a link to all others."""
    return lambda: all(len(peer.others()) == len(peers) - 1 for peer in peers)


def owners(reply: Reply) -> list[str]:
    return [shard.peer for shard in reply.done().report.plan.shards]


@asynccontextmanager
async def one_tab(models: Path) -> AsyncIterator[tuple[list[Peer], TabPeer]]:
    """Two peers, and a tab of the second."""
    async with live(models, 2) as mesh, tab_peer(mesh.server, "phone", models) as phone:
        await until(all_linked(*mesh.peers, phone))
        yield mesh.peers, phone


async def test_tokens_are_those_of_one_device(models: Path, alone: list[int]) -> None:
    async with one_tab(models) as (peers, phone):
        for coordinator in peers:
            async with client_of(coordinator) as client:
                reply = await client.reply(ask_words(client))
            assert reply.ids == alone
            assert len(owners(reply)) == 3
            assert phone.id in owners(reply)
            assert owners(reply)[-1] == coordinator.id
            report = {one.peer: one for one in reply.done().report.peers}[phone.id]
            assert report.compute_s > 0
            assert sum(report.sent_bytes.values()) > 0


async def test_an_answer_of_all_says_which_tab_still_loads(
    models: Path, alone: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "TAB_PREPARE_S", 0.1)
    async with live(models, 2) as mesh, tab_peer(mesh.server, "pad", models, loads=False) as pad:
        await until(all_known(*mesh.peers, pad))
        monkeypatch.setattr(pad.models, "load", lambda model: asyncio.Event().wait())
        async with client_of(mesh.peers[0]) as client:
            reply = await client.reply(ask_words(client))
            automatic = await client.reply(ask_words(client, Options(codec="fp32")))
        assert reply.ids == alone
        assert pad.id not in owners(reply)
        (note,) = [note for note in reply.done().report.notes if "pad" in note]
        assert note.startswith("planned without pad: this tab has not loaded the model yet")
        assert automatic.done().report.notes == []


@pytest.mark.parametrize("codec", ["fp32", "vq", "astra"])
async def test_labels_and_vectors_equal_the_reference(
    models: Path, loaded_models: dict[str, Loaded], codec: str
) -> None:
    options = Options(use=Use.ALL, codec=codec)
    async with live(models, 1) as mesh, tab_peer(mesh.server, "phone", models) as phone:
        await until(all_linked(mesh.peers[0], phone))
        async with client_of(mesh.peers[0]) as client:
            picked = await client.reply(
                client.send(Task.CLASSIFY, "pictures", image=picture(), options=options)
            )
            embedded = await client.reply(
                client.send(Task.EMBED, "feelings", tokens=PROMPT, options=options)
            )
    assert owners(picked) == owners(embedded) == [phone.id, mesh.peers[0].id]
    loaded, result = loaded_models["pictures"], picked.done()
    runs = reference_of(loaded, result, Task.CLASSIFY, Inputs(image=picture()))
    expected = torch.softmax(loaded.model.classify(pooled(runs)), -1)
    found = {label.label: label.probability for label in result.labels}
    for index, probability in enumerate(expected.tolist()):
        assert found[loaded.model.labels[index]] == pytest.approx(probability, abs=1e-5)
    loaded, result = loaded_models["feelings"], embedded.done()
    runs = reference_of(loaded, result, Task.EMBED, Inputs(tokens=PROMPT))
    vector = np.frombuffer(result.vector, "<f4")
    np.testing.assert_allclose(vector, pooled(runs).numpy(), atol=1e-5)


async def test_two_tabs_of_one_host(models: Path, alone: list[int]) -> None:
    async with (
        live(models, 1) as mesh,
        tab_peer(mesh.server, "phone", models) as one,
        tab_peer(mesh.server, "tablet", models) as other,
    ):
        await until(all_linked(mesh.peers[0], one, other))
        async with client_of(mesh.peers[0]) as client:
            reply = await client.reply(ask_words(client))
        assert reply.ids == alone
        assert set(owners(reply)) == {mesh.peers[0].id, one.id, other.id}
        assert owners(reply)[-1] == mesh.peers[0].id


async def test_two_tabs_of_two_hosts(models: Path, alone: list[int]) -> None:
    async with (
        mesh_of(["a", "b"], models) as peers,
        serving(peers[0], ApiConfig(port=0)) as first,
        serving(peers[1], ApiConfig(port=0)) as second,
        tab_peer(first, "phone", models) as one,
        tab_peer(second, "tablet", models) as other,
    ):
        await until(all_linked(*peers, one, other))
        async with client_of(peers[1]) as client:
            reply = await client.reply(ask_words(client))
        assert reply.ids == alone
        assert set(owners(reply)) == {peer.id for peer in (*peers, one, other)}
        assert owners(reply)[-1] == peers[1].id


async def test_automatic_plans_end_with_the_coordinator_too(models: Path) -> None:
    """However fast the tab says that it is."""
    async with one_tab(models) as (peers, phone), client_of(peers[0]) as client:
        await client.reply(ask_words(client))
        for peer in peers:
            hello = peer._hellos[phone.id]
            assert hello.models
        for _ in range(3):
            reply = await client.reply(ask_words(client, Options(use=Use.AUTO)))
            assert owners(reply)[-1] == peers[0].id
            assert reply.done().report.plan.answering == peers[0].id


async def test_clients_are_not_sent_to_tabs(models: Path) -> None:
    async with one_tab(models) as (peers, phone):
        await until(lambda: peers[0].others()[phone.id].models)
        async with client_of(peers[0]) as client:
            reply = await client.reply(ask_words(client))
        assert reply.planned[0].elsewhere == [f"127.0.0.1:{peers[1].port}"]


# --- ends -----------------------------------------------------------------------------------------


class Held:
    """The first shard that a tab computes stands still; others go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began = asyncio.Event()
        self.tab = ""
        original = Pipeline.prefill

        async def prefill(pipeline: Pipeline) -> None:
            exchange: Any = pipeline.exchange
            if exchange.peers[exchange.shard] == self.tab:
                self.began.set()
                await asyncio.Event().wait()
            await original(pipeline)

        monkeypatch.setattr(Pipeline, "prefill", prefill)


async def test_a_tab_that_dies_in_a_request(
    models: Path, alone: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    async with one_tab(models) as (peers, phone), client_of(peers[0]) as client:
        held.tab = phone.id
        request = ask_words(client)
        await asyncio.wait_for(held.began.wait(), 20)
        transport = transport_of(phone.tab.socket)
        assert transport is not None
        transport.abort()
        reply = await client.reply(request)
        assert reply.ids == alone
        assert set(owners(reply)) == {peers[0].id, peers[1].id}
        assert any("planned again without" in note for note in reply.done().report.notes)
        await until(lambda: not any(phone.id in peer.others() for peer in peers))


async def test_a_tab_that_falls_silent_in_a_request(
    models: Path, alone: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A phone that sleeps: its socket stays open, and nothing comes."""
    held = Held(monkeypatch)
    short = Timings(heartbeat_s=0.2, silence_s=patient(0.6), lost_s=patient(1.2))
    async with (
        mesh_of(["a", "b"], models, short) as peers,
        serving(peers[1], ApiConfig(port=0)) as server,
        tab_peer(server, "phone", models, short) as phone,
        client_of(peers[0]) as client,
    ):
        await until(all_linked(*peers, phone))
        held.tab = phone.id
        request = ask_words(client)
        await asyncio.wait_for(held.began.wait(), 20)
        transport = transport_of(phone.tab.socket)
        assert transport is not None
        transport.pause_reading()

        async def nothing(data: bytes) -> None:
            await asyncio.sleep(0)

        monkeypatch.setattr(phone.tab.socket, "send_bytes", nothing)
        reply = await client.reply(request)
        assert reply.ids == alone
        assert phone.id not in owners(reply)
        transport.resume_reading()


async def test_a_host_that_dies_in_a_request(
    models: Path, alone: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tab goes with it."""
    held = Held(monkeypatch)
    async with one_tab(models) as (peers, phone), client_of(peers[0]) as client:
        held.tab = phone.id
        request = ask_words(client)
        await asyncio.wait_for(held.began.wait(), 20)
        await peers[1].stop()
        reply = await client.reply(request)
        assert reply.ids == alone
        assert owners(reply) == [peers[0].id]
