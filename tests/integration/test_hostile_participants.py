"""Participants that send what no plan says, and codes that come before their proposal."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from astra_mesh import limits
from astra_mesh.engine.pipeline import Pipeline
from astra_mesh.engine.reference import decode, run_plan
from astra_mesh.mesh.link import Link
from astra_mesh.peer.early import EarlyCodes
from astra_mesh.peer.inputs import read_inputs
from astra_mesh.peer.models import Loaded
from astra_mesh.peer.requests import Requests
from astra_mesh.plan.check import layout_of
from astra_mesh.wire.messages import (
    Codes,
    Inputs,
    Options,
    Pooled,
    Propose,
    Reason,
    RequestId,
    Task,
    Use,
)
from tests.integration.asking import (
    ALL,
    PROMPT,
    SHORT,
    Gate,
    all_idle,
    ask_words,
    busy,
    ignore,
    warm,
)
from tests.integration.hostile import WIDTH, Hostile, Script, hostile
from tests.integration.mesh_fixtures import (
    Reply,
    TestClient,
    client_of,
    mesh_of,
    picture,
    until,
)

# --- hostile participants -------------------------------------------------------------------------


def codes(one: Hostile, propose: Propose, **changes: Any) -> Codes:
    """One valid message of its codes, changed."""
    shard = one.shard(propose)
    count = shard.stop - shard.start
    valid = Codes(propose.request, 1, 0, shard.start, count, bytes(4 * WIDTH * count))
    return replace(valid, **changes)


def numbers(one: Hostile, propose: Propose, value: float) -> bytes:
    shard = one.shard(propose)
    return np.full((shard.stop - shard.start) * WIDTH, value, "<f4").tobytes()


BAD_CODES: dict[str, Callable[[Hostile, Propose], list[Codes | Pooled]]] = {
    "not a number": lambda o, p: [codes(o, p, data=numbers(o, p, math.nan))],
    "infinite": lambda o, p: [codes(o, p, data=numbers(o, p, -math.inf))],
    "cut short": lambda o, p: [codes(o, p, data=b"123")],
    "too long": lambda o, p: [codes(o, p, data=numbers(o, p, 0) + b"1")],
    "twice": lambda o, p: [codes(o, p), codes(o, p)],
    "block 0": lambda o, p: [codes(o, p, block=0)],
    "block 9": lambda o, p: [codes(o, p, block=9)],
    "stage 1": lambda o, p: [codes(o, p, stage=1)],
    "tokens of another": lambda o, p: [codes(o, p, first=p.plan.shards[-1].start)],
    "pooled": lambda o, p: [Pooled(p.request, 1.0, bytes(4 * WIDTH))],
}


@pytest.mark.parametrize("when", ["in time", "before the request is open"])
@pytest.mark.parametrize("kind", BAD_CODES)
async def test_bad_codes_end_the_link_by_name_and_not_the_request(
    models: Path, alone: list[int], caplog: pytest.LogCaptureFixture, kind: str, when: str
) -> None:
    def attack(one: Hostile, propose: Propose) -> None:
        if when == "in time":
            one.accept(propose)
        for message in BAD_CODES[kind](one, propose):
            one.link.send(message)
        if when != "in time":
            one.accept(propose)

    await _attacked(models, caplog, attack, lambda client: ask_words(client), alone)


def _of_mallory(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if "mallory" in record.getMessage()]


async def _attacked(
    models: Path,
    caplog: pytest.LogCaptureFixture,
    attack: Script,
    ask: Callable[[TestClient], RequestId],
    ids: list[int] | None,
) -> Reply:
    async with mesh_of(["a"], models) as (peer,):
        await warm(peer)
        async with hostile(peer, attack) as one, client_of(peer) as client:
            caplog.clear()
            reply = await client.reply(ask(client))
            result = reply.done()
            assert [shard.peer for shard in result.report.plan.shards] == [peer.id]
            if ids is not None:
                assert reply.ids == ids
            await until(lambda: not one.link.is_open)
            assert one.link.session.close_reason is Reason.BAD_MESSAGE
            await all_idle([peer])
            await until(lambda: _of_mallory(caplog))
            named = _of_mallory(caplog)
            assert [record.levelno for record in named] == [logging.WARNING]
    return reply


BAD_POOLED: dict[str, Callable[[RequestId], Pooled]] = {
    "too short": lambda r: Pooled(r, 1.0, bytes(4)),
    "empty": lambda r: Pooled(r, 1.0, b""),
    "not a number": lambda r: Pooled(r, 1.0, np.full(WIDTH, np.nan, "<f4").tobytes()),
    "without weight": lambda r: Pooled(r, 0.0, bytes(4 * WIDTH)),
}


@pytest.mark.parametrize("kind", BAD_POOLED)
async def test_bad_pooled_vectors_end_the_link_by_name(
    models: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    def attack(one: Hostile, propose: Propose) -> None:
        one.accept(propose)
        one.send_codes(propose)
        one.link.send(BAD_POOLED[kind](propose.request))

    options = Options(use=Use.ALL, codec="fp32", class_token="distributed")

    def ask(client: TestClient) -> RequestId:
        return client.send(Task.CLASSIFY, "pictures", image=picture(), options=options)

    reply = await _attacked(models, caplog, attack, ask, None)
    assert sum(x.probability for x in reply.done().labels) == pytest.approx(1.0, abs=1e-4)


async def test_codes_of_a_peer_without_a_shard(
    models: Path, alone: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch, Pipeline, "prefill")
    async with mesh_of(["a"], models) as (peer,):
        await warm(peer)
        async with hostile(peer, ignore) as one, client_of(peer) as client:
            request = ask_words(client, options=Options(use=Use.SOLO))
            await asyncio.wait_for(gate.reached.wait(), 10)
            assert peer._requests is not None
            (running,) = peer._requests._exchanges
            one.link.send(Codes(running, 1, 0, 0, 1, bytes(4 * WIDTH)))
            await until(lambda: not one.link.is_open)
            assert one.link.session.close_reason is Reason.BAD_MESSAGE
            gate.opened.set()
            assert (await client.reply(request)).ids == alone


async def test_numbers_too_large_to_compute_with(models: Path) -> None:
    """Finite, and so no error of the protocol: the caller gets an answer or a named error."""

    def attack(one: Hostile, propose: Propose) -> None:
        one.accept(propose)
        for block in (1, 2):
            huge = numbers(one, propose, 3e38)
            one.link.send(codes(one, propose, block=block, data=huge))

    async with mesh_of(["a"], models) as (peer,):
        await warm(peer)
        async with hostile(peer, attack), client_of(peer) as client:
            reply = await client.reply(ask_words(client))
            assert reply.result is not None or reply.failure is not None
            request = client.send(Task.CLASSIFY, "pictures", image=picture(), options=ALL)
            reply = await client.reply(request)
            assert reply.result is not None or reply.failure is not None
            await all_idle([peer])


# --- codes before their proposal ------------------------------------------------------------------


async def test_codes_that_overtake_their_proposal_are_used(
    models: Path, words: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    original, take = Requests._propose, EarlyCodes.take

    def late(self: Requests, link: Link, propose: Propose) -> None:
        delay = 0.3 if propose.plan.shards[1].peer == self._peer.id else 0.0
        asyncio.get_running_loop().call_later(delay, original, self, link, propose)

    def spied(self: EarlyCodes, request: RequestId) -> Any:
        found = take(self, request)
        taken.append(len(found))
        return found

    monkeypatch.setattr(Requests, "_propose", late)
    monkeypatch.setattr(EarlyCodes, "take", spied)
    async with mesh_of(["a", "b", "c"], models) as peers, client_of(peers[2]) as client:
        reply = await client.reply(ask_words(client, options=Options(use=Use.ALL)))
        plan = reply.done().report.plan
        await all_idle(peers)
    assert max(taken) > 0
    assert len(reply.planned) == 1
    codec = words.codec(plan.codec, plan.codebook)
    given, tokens = read_inputs(words, Inputs(tokens=PROMPT))
    layout = layout_of(plan, words.spec, Task.GENERATE, tokens, codec.first_block, codec.able)
    runs = run_plan(words.model, layout, codec, given, spare=64)
    assert reply.ids == decode(runs, SHORT, words.stop_ids)


async def test_codes_of_unknown_requests_are_dropped_after_a_while(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "EARLY_CODES_S", 0.1)
    async with mesh_of(["a"], models) as (peer,), hostile(peer, ignore) as one:
        for request in range(1, 5):
            one.link.send(Codes(RequestId(request), 1, 0, 0, 1, bytes(1000)))
            one.link.send(Pooled(RequestId(request), 1.0, b""))
        link = peer.link(one.id)
        assert link is not None
        await until(lambda: link.session.unconsumed_bytes > 4000)
        await until(lambda: link.session.unconsumed_bytes == 0)
        assert not busy(peer)
        assert link.is_open


async def test_too_many_codes_of_unknown_requests_end_the_link(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "EARLY_CODES_BYTES", 10_000)
    async with mesh_of(["a"], models) as (peer,), hostile(peer, ignore) as one:
        for request in range(1, 12):
            one.link.send(Codes(RequestId(request), 1, 0, 0, 1, bytes(1000)))
        await until(lambda: not one.link.is_open)
        assert one.link.session.close_reason is Reason.BAD_MESSAGE
        await all_idle([peer])
