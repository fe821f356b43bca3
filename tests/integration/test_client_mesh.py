"""The client with real peers: linked ones, one of this machine, one inside this process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

import astra_mesh
from astra_mesh.errors import PromptTooLongError, UnknownModelError, WrongTaskError
from astra_mesh.peer import Peer
from astra_mesh.peer.local import LocalPeer, write_record
from astra_mesh.wire.messages import PeerId
from tests.integration.mesh_fixtures import mesh_of, picture, until

PROMPT = [(7 * i) % 64 for i in range(40)]


@pytest.fixture
async def two(models: Path) -> AsyncIterator[list[Peer]]:
    async with mesh_of(["left", "right"], models) as peers:
        yield peers


def to(peer: Peer) -> astra_mesh.Mesh:
    return astra_mesh.connect(("127.0.0.1", peer.port))


async def test_text_over_two_peers_equals_one_device(two: list[Peer]) -> None:
    async with to(two[1]) as mesh:
        both = mesh.generate("words", PROMPT, max_new_tokens=8, use="all", codec="fp32")
        alone = mesh.generate("words", PROMPT, max_new_tokens=8, use="solo")
        ids = [token.id async for token in both]
        assert ids == [token.id async for token in alone]
    assert len(ids) == 8
    assert both.report is not None
    assert sum(one.tokens for one in both.report.peers) == 40
    assert len(both.report.peers) == 2
    assert both.report.peers[0].sent_bytes[two[1].id] > 0
    assert both.planned is not None
    assert both.planned.names == {two[0].id: "left", two[1].id: "right"}


async def test_picture_and_text_over_two_peers(two: list[Peer]) -> None:
    async with to(two[1]) as mesh:
        labels = await mesh.classify("pictures", picture(), top=3, use="all")
        alone = await mesh.classify("pictures", picture(), top=3, use="solo", codec="fp32")
        with pytest.raises(WrongTaskError):
            await mesh.embed("words", "text")
    assert len(labels.labels) == 3
    assert sum(one.probability for one in labels.labels) <= 1.001
    assert len(labels.report.peers) == 2
    assert len(alone.report.peers) == 1


async def test_what_the_peer_cannot_do_is_named(two: list[Peer]) -> None:
    async with to(two[0]) as mesh:
        with pytest.raises(UnknownModelError, match="words"):
            await anext(mesh.generate("absent", PROMPT))
        with pytest.raises(PromptTooLongError):
            await anext(mesh.generate("words", [1] * 5000))


async def test_leaving_the_loop_ends_the_request_on_all_peers(two: list[Peer]) -> None:
    async with to(two[1]) as mesh:
        async for token in mesh.generate("words", PROMPT, max_new_tokens=20, use="all"):
            assert token.index == 0
            break
        await until(lambda: not any(peer._requests._tasks for peer in two if peer._requests))
        again = [t.id async for t in mesh.generate("words", PROMPT, max_new_tokens=2)]
    assert len(again) == 2


async def test_events_tell_of_requests(two: list[Peer]) -> None:
    async with to(two[1]) as watcher, to(two[1]) as mesh:
        events = watcher.events()
        first = asyncio.ensure_future(anext(events))
        await watcher.peers()  # the subscription is there
        asked = mesh.generate("words", PROMPT, max_new_tokens=2, use="all")
        async for _ in asked:
            pass
        told = [await first]
        while told[-1].kind != "request-ended":
            told.append(await anext(events))
        await events.aclose()
    kinds = [event.kind for event in told]
    assert (kinds[0], set(kinds[1:-1])) == ("request-started", {"request-news"})
    begun, planned, end = told[0].about, told[1].about, told[-1].about
    assert begun is not None
    assert planned is not None
    assert end is not None
    assert (begun.peers, begun.outcome) == ([], "")
    assert (sorted(planned.peers), planned.new_tokens) == (["left", "right"], 0)
    assert (end.key, end.model, end.new_tokens, end.outcome) == (begun.key, "words", 2, "answered")
    assert asked.report is not None
    sent = sum(size for one in asked.report.peers for size in one.sent_bytes.values())
    assert end.sent_bytes == sent > 0
    assert end.notes == asked.report.notes
    assert begun.took_s < planned.took_s < end.took_s


async def test_peers_and_models_of_a_mesh(two: list[Peer]) -> None:
    async with to(two[1]) as mesh:
        assert {info.name for info in await mesh.peers()} == {"left", "right"}
        found = {model.name: model for model in await mesh.models()}
    assert sorted(found) == ["feelings", "pictures", "plain", "words"]
    assert sorted(found["words"].peers) == ["left", "right"]


# --- without an address ---------------------------------------------------------------------------


async def test_a_peer_of_this_machine_is_found_past_dead_records(models: Path) -> None:
    async with mesh_of(["local"], models) as (peer,):
        for port, name in ((peer.port, "local"), (1, "gone")):  # the newer one is tried first
            record = LocalPeer(os.getpid(), port, PeerId("0" * 64), name)
            await asyncio.to_thread(write_record, record)
        async with astra_mesh.connect() as mesh:
            assert mesh.peer.name == "local"
            assert not mesh.embedded


async def test_without_any_peer_one_runs_inside(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASTRA_MESH_MODELS", str(models))
    async with astra_mesh.connect(wait_s=0) as mesh:
        assert mesh.embedded
        ids = [t.id async for t in mesh.generate("words", PROMPT, max_new_tokens=3, use="solo")]
    assert len(ids) == 3


async def test_the_peer_inside_works_with_typed_addresses(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASTRA_MESH_MODELS", str(models))
    async with (
        mesh_of(["other"], models) as (other,),
        astra_mesh.connect(peers=[f"127.0.0.1:{other.port}"], wait_s=10.0) as mesh,
    ):
        assert mesh.embedded
        assert "other" in {info.name for info in await mesh.peers()}
        answer = await mesh.classify("pictures", picture(), use="all")
    assert other.id in {one.peer for one in answer.report.peers}
    assert np.isfinite(answer.labels[0].probability)
