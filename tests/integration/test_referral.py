"""A weak device is asked for a long text: the client goes to the one that has it sooner."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from astra_mesh.client import Mesh
from astra_mesh.client.generation import Generation
from astra_mesh.errors import BusyError
from astra_mesh.peer import Peer
from astra_mesh.plan.cost import Candidate
from astra_mesh.wire.messages import Ask
from tests.integration.mesh_fixtures import mesh_of, picture
from tests.integration.test_failover import vanish
from tests.integration.web_fixtures import live
from tests.timings import patient

PROMPT = [(7 * i) % 64 for i in range(40)]
NEW = 20
WEAK_S = 1.0  # of a step, in the place of a millisecond


def set_step(peer: Peer, seconds: float) -> None:
    """As if it had measured so much for one new token."""
    assert peer._requests is not None
    known, me = peer._requests._candidates, peer._requests._candidates.me

    def slow(loaded: Any) -> Candidate:
        found = me(loaded)
        timing = msgspec.structs.replace(found.timing, step_s=seconds)
        elsewhere = msgspec.structs.replace(found.device, host="another machine")
        return replace(found, timing=timing, device=elsewhere)

    known.me = slow  # type: ignore[method-assign]


@asynccontextmanager
async def board_and_laptop(models: Path) -> AsyncIterator[tuple[Peer, Peer, Mesh]]:
    async with mesh_of(["board", "laptop"], models) as (board, laptop):
        for peer in (board, laptop):
            for offer in peer.models.offers():
                await peer.models.load(offer.id)
        set_step(board, WEAK_S)
        async with Mesh(("127.0.0.1", board.port)) as mesh:
            yield board, laptop, mesh


async def told(generation: Generation) -> list[int]:
    async with asyncio.timeout(patient(20.0)):
        return [token.id async for token in generation]


def notes_of(generation: Generation) -> str:
    assert generation.report is not None
    return "\n".join(generation.report.notes)


async def alone(mesh: Mesh) -> list[int]:
    return await told(mesh.generate("words", PROMPT, max_new_tokens=NEW, use="solo"))


async def test_the_faster_one_answers(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with board_and_laptop(models) as (board, laptop, mesh):
        wanted = await alone(mesh)
        lines = []
        told_events: list[str] = []
        monkeypatch.setattr(board, "tell", lambda *_, text="", **more: told_events.append(text))
        for _ in range(2):
            generation = mesh.generate("words", PROMPT, max_new_tokens=NEW, codec="fp32")
            assert await told(generation) == wanted
            assert generation.report is not None
            assert generation.report.plan.answering == laptop.id
            assert "answered by laptop: 20 new tokens are predicted to take" in notes_of(generation)
            lines.append(mesh._way._others[laptop.id])  # type: ignore[union-attr]
        assert told_events.count("referred to laptop") == 2
        assert lines[0] is lines[1]  # one link serves both
        assert mesh.peer.peer == board.id  # what else is asked goes to the first
        assert len(await mesh.peers()) == 2


@pytest.mark.parametrize("given", [{"stay": True}, {"use": "all"}, {"use": "solo"}])
async def test_it_stays_where_the_caller_says_so(models: Path, given: dict[str, Any]) -> None:
    async with board_and_laptop(models) as (board, _, mesh):
        generation = mesh.generate("words", PROMPT, max_new_tokens=NEW, **given)
        await told(generation)
        assert generation.report is not None
        assert generation.report.plan.answering == board.id
        assert "answered by" not in notes_of(generation)


async def test_a_label_is_the_asked_ones(models: Path) -> None:
    async with board_and_laptop(models) as (board, _, mesh):
        found = await mesh.classify("pictures", picture())
        assert found.report.plan.answering == board.id


async def test_one_that_cannot_be_reached_is_named(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with board_and_laptop(models) as (board, _, mesh):
        wanted = await alone(mesh)
        monkeypatch.setattr(board, "address_of", lambda peer: "127.0.0.1:9")
        generation = mesh.generate("words", PROMPT, max_new_tokens=NEW, codec="fp32")
        assert await told(generation) == wanted
        assert generation.report is not None
        assert generation.report.plan.answering == board.id
        assert "laptop would answer sooner, but cannot be asked:" in notes_of(generation)


async def test_another_one_at_its_address_is_not_asked(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with board_and_laptop(models) as (board, _, mesh):
        place = f"127.0.0.1:{board.port}"
        monkeypatch.setattr(board, "address_of", lambda peer: place)
        generation = mesh.generate("words", PROMPT, max_new_tokens=NEW)
        await told(generation)
        assert "laptop is not where it was said to be" in notes_of(generation)


@pytest.mark.parametrize("at", [0, 7])
async def test_if_it_is_lost_the_first_goes_on(models: Path, at: int) -> None:
    async with board_and_laptop(models) as (board, laptop, mesh):
        wanted, ids = await alone(mesh), []
        generation = mesh.generate("words", PROMPT, max_new_tokens=NEW, codec="fp32")
        async with asyncio.timeout(patient(20.0)):
            async for token in generation:
                ids.append(token.id)
                if token.index == at:
                    await vanish(laptop)
        assert ids == wanted
        assert generation.report is not None
        assert generation.report.plan.answering == board.id
        assert "continued by board after" in notes_of(generation)


async def test_if_it_refuses_the_first_answers(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with board_and_laptop(models) as (board, laptop, mesh):
        wanted, requests = await alone(mesh), laptop._requests
        assert requests is not None

        def busy(link: Any, ask: Ask) -> None:
            requests._fail(link, ask.request, BusyError("laptop has as many requests as it takes"))

        monkeypatch.setattr(requests, "_ask", busy)
        generation = mesh.generate("words", PROMPT, max_new_tokens=NEW, codec="fp32")
        assert await told(generation) == wanted
        assert generation.report is not None
        assert generation.report.plan.answering == board.id
        assert "laptop has as many requests as it takes" in notes_of(generation)


async def test_the_api_of_a_weak_device_answers_with_the_fast_one(models: Path) -> None:
    async with live(models, 2) as mesh:
        laptop, board = mesh.peers
        for peer in mesh.peers:
            await peer.models.load(peer.models.find("words"))
        set_step(board, WEAK_S)
        body = {"model": "words", "prompt": PROMPT, "max_tokens": NEW}
        async with mesh.http.post(f"{mesh.root}/v1/completions", json=body) as response:
            answer = await response.json()
        assert response.status == 200, answer
        assert answer["usage"]["completion_tokens"] == NEW
        told = json.dumps(answer["x_astra_mesh"])
        assert f"answered by {laptop.name}" in told
        # Log-probabilities are noted by the peer that serves them.
        async with mesh.http.post(
            f"{mesh.root}/v1/completions", json=body | {"logprobs": 1, "max_tokens": 3}
        ) as response:
            answer = await response.json()
        assert len(answer["choices"][0]["logprobs"]["token_logprobs"]) == 3
        assert "answered by" not in json.dumps(answer["x_astra_mesh"])
