"""A client whose peer is lost goes on with another one, and gets the whole answer."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest
import torch

from astra_mesh import limits
from astra_mesh.bundle import open_bundle
from astra_mesh.client import Mesh, nearby
from astra_mesh.client.way import Way
from astra_mesh.engine.reference import decode, run_solo
from astra_mesh.engine.sampling import Sampler
from astra_mesh.errors import PeerLostError
from astra_mesh.families import ModelInput
from astra_mesh.mesh.connect import Address
from astra_mesh.mesh.meeting import MeetingPlaces
from astra_mesh.mesh.sockets import transport_of
from astra_mesh.peer import Peer
from astra_mesh.peer.answer import Answer
from astra_mesh.peer.loading import load
from astra_mesh.wire.messages import Sampling
from tests.integration.between import silent
from tests.integration.mesh_fixtures import mesh_of, picture, until
from tests.timings import patient

PROMPT = [(7 * i) % 64 for i in range(40)]
NEW = 20


def sampling(temperature: float) -> Sampling:
    return Sampling(max_new_tokens=NEW, temperature=temperature, seed=3)


@pytest.fixture(scope="module")
def undisturbed(models: Path) -> dict[float, list[int]]:
    """What one device answers, by temperature."""
    loaded = load(open_bundle(models / "words"))
    given = ModelInput(tokens=torch.tensor(PROMPT))
    runs = {t: run_solo(loaded.model, given, "last", spare=64) for t in (0.0, 0.8)}
    return {t: decode([run], sampling(t), loaded.stop_ids) for t, run in runs.items()}


async def vanish(peer: Peer) -> None:
    """As if its process were killed: all its sockets end without a word."""
    drop_links(peer)
    await peer.stop()


def drop_links(peer: Peer) -> None:
    """End its connections without a word."""
    assert peer._links is not None
    for link in list(peer._links._links):
        transport = transport_of(link._socket)
        assert transport is not None
        transport.abort()


async def goes_on_with_b(mesh: Mesh, peers: list[Peer]) -> None:
    """A text whose first peer vanishes after a token."""
    generation = mesh.generate("words", PROMPT, max_new_tokens=NEW)
    await anext(generation)
    await vanish(peers[0])
    rest = [token.id async for token in generation]
    assert len(rest) == NEW - 1
    assert mesh.peer.name == "b"


async def goodbye(peer: Peer) -> None:
    await peer.stop()


@pytest.mark.parametrize("way", [vanish, goodbye])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("at", [0, 7, NEW - 1])
async def test_a_text_goes_on_after_the_tokens_that_came(
    models: Path, undisturbed: dict[float, list[int]], way: object, temperature: float, at: int
) -> None:
    assert callable(way)
    wanted = undisturbed[temperature]
    async with mesh_of(["a", "b"], models) as peers, Mesh(("127.0.0.1", peers[0].port)) as mesh:
        generation = mesh.generate(
            "words", PROMPT, max_new_tokens=NEW, temperature=temperature, seed=3, use="solo"
        )
        ids, indices = [], []
        async with asyncio.timeout(patient(20.0)):
            async for token in generation:
                ids.append(token.id)
                indices.append(token.index)
                if token.index == at:
                    await way(peers[0])
        assert ids == wanted[:NEW]
        assert indices == list(range(len(wanted)))
        assert generation.report is not None
        assert generation.report.new_tokens == len(wanted)
        if at < NEW - 1:  # else the answer may have been on its way in one piece
            (note,) = [x for x in generation.report.notes if "continued by b" in x]
            found = re.match(
                r"continued by b after (?:(1) token|(\d+) tokens): the peer a at", note
            )
            assert found is not None, note
            assert int(found[1] or found[2]) > at  # some may have been on their way
            assert "Check that" not in note  # it went on by itself
            report = generation.report
            assert 0 < report.tokens_s < report.took_s
            assert 0 < report.lost_s < report.took_s
            assert mesh.peer.name == "b"
            assert len(await mesh.peers()) == 1  # what comes next is asked there, too


async def test_an_answer_is_asked_for_once_more(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, original = asyncio.Event(), Answer._prefill

    async def gated(self: Answer, *args: object) -> object:
        if not reached.is_set():
            reached.set()
            await asyncio.Event().wait()
        return await original(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Answer, "_prefill", gated)
    async with mesh_of(["a", "b"], models) as peers, Mesh(("127.0.0.1", peers[0].port)) as mesh:
        task = asyncio.create_task(mesh.classify("pictures", picture(), use="solo"))
        await asyncio.wait_for(reached.wait(), patient(20.0))
        await vanish(peers[0])
        found = await asyncio.wait_for(task, patient(20.0))
        assert found.labels
        assert any("continued by b: the peer a at" in note for note in found.report.notes)
        assert 0 < found.report.lost_s <= found.report.took_s - found.report.total_s


async def test_a_peer_that_went_before_it_was_asked_is_told_as_that(models: Path) -> None:
    async with mesh_of(["a", "b"], models) as peers, Mesh(("127.0.0.1", peers[0].port)) as mesh:
        async for _ in mesh.generate("words", PROMPT, max_new_tokens=2, use="solo"):
            pass  # and the client was told of b
        await peers[0].stop()
        await until(lambda: not mesh.is_open)
        generation = mesh.generate("words", PROMPT, max_new_tokens=2)
        assert len([token async for token in generation]) == 2
        assert generation.report is not None
        (note,) = [x for x in generation.report.notes if "continued" in x]
        assert note.startswith("continued by b: the peer a at ")
        assert note.endswith(" went away before it was asked (it said goodbye)")


async def test_without_another_peer_the_loss_is_named(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CLIENT_SEARCH_S", 0.2)
    async with mesh_of(["a"], models) as peers, Mesh(("127.0.0.1", peers[0].port)) as mesh:
        generation = mesh.generate("words", PROMPT, max_new_tokens=NEW)
        await anext(generation)
        await vanish(peers[0])
        with pytest.raises(PeerLostError, match=r"the peer a at .* went away"):
            async for _ in generation:
                pass


async def test_a_peer_that_is_slow_to_answer_is_asked_once_more(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No handshake is done in so short a time."""
    monkeypatch.setattr(limits, "CLIENT_MOVE_S", 1e-6)
    monkeypatch.setattr(limits, "CLIENT_SEARCH_S", 0.1)
    async with mesh_of(["a", "b"], models) as peers, Mesh(("127.0.0.1", peers[0].port)) as mesh:
        await goes_on_with_b(mesh, peers)


@pytest.mark.parametrize("kept", [True, False])
async def test_a_client_that_was_told_of_nobody_looks_for_others_by_itself(
    models: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    """Where they announce themselves, or where their devices were paired by address."""
    monkeypatch.setattr(Way, "look_around", lambda self: None)
    monkeypatch.setattr(Way, "learn", lambda self, planned: None)
    async with mesh_of(["a", "b"], models) as peers:
        places = [("127.0.0.1", 9), *(("127.0.0.1", peer.port) for peer in peers)]
        if kept:
            monkeypatch.setattr(MeetingPlaces, "of", lambda self, devices: places)
        monkeypatch.setattr(nearby, "search", partial(announced, [] if kept else [places]))
        async with Mesh(("127.0.0.1", peers[0].port)) as mesh:
            await goes_on_with_b(mesh, peers)


async def test_a_peer_that_dropped_a_client_is_not_found_again_for_the_same_request(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mesh_of(["a"], models) as (peer,), Mesh(("127.0.0.1", peer.port)) as mesh:
        elsewhere = [[("localhost", peer.port)]]
        monkeypatch.setattr(nearby, "search", partial(announced, elsewhere))
        generation = mesh.generate("words", PROMPT, max_new_tokens=NEW)
        await anext(generation)
        drop_links(peer)
        with pytest.raises(PeerLostError, match=r"the peer a at .* went away"):
            async for _ in generation:
                pass


async def test_whoever_announces_itself_and_says_nothing_hides_no_other_peer(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Way, "look_around", lambda self: None)
    monkeypatch.setattr(Way, "learn", lambda self, planned: None)
    async with AsyncExitStack() as stack:
        places = [[await stack.enter_async_context(silent())] for _ in range(8)]
        peers = await stack.enter_async_context(mesh_of(["a", "b"], models))
        places.append([("127.0.0.1", peers[1].port)])
        monkeypatch.setattr(nearby, "search", partial(announced, places))
        mesh = await stack.enter_async_context(Mesh(("127.0.0.1", peers[0].port)))
        await goes_on_with_b(mesh, peers)


async def announced(places: list[list[Address]]) -> AsyncGenerator[list[Address], None]:
    """Stands in for multicast."""
    for addresses in places:
        yield addresses


async def test_the_next_request_goes_elsewhere_or_to_the_peer_that_came_back(models: Path) -> None:
    async with mesh_of(["a", "b"], models) as peers, Mesh(("127.0.0.1", peers[0].port)) as mesh:
        first = [token.id async for token in mesh.generate("words", PROMPT, max_new_tokens=3)]
        await vanish(peers[0])
        await until(lambda: not mesh.is_open)
        second = [token.id async for token in mesh.generate("words", PROMPT, max_new_tokens=3)]
        assert len(second) == len(first)
        assert mesh.peer.name == "b"
        assert mesh.is_open


def test_skipped_draws_leave_the_same_random_numbers() -> None:
    sampling = Sampling(temperature=1.0, seed=11)
    logits = torch.randn(30, 64, generator=torch.Generator().manual_seed(0))
    whole = Sampler(sampling)
    drawn = [whole.choose(row) for row in logits]
    rest = Sampler(sampling)
    rest.skip(12, 64)
    assert [rest.choose(row) for row in logits[12:]] == drawn[12:]
