"""Cancelling, clients that leave, limits, and several coordinators at once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from astra_mesh import limits
from astra_mesh.engine.pipeline import Pipeline
from astra_mesh.peer import Peer
from astra_mesh.peer.answer import Answer, new_request
from astra_mesh.peer.candidates import Candidates
from astra_mesh.peer.models import ModelHost
from astra_mesh.peer.part import Participation
from astra_mesh.peer.participants import Participants
from astra_mesh.wire.messages import (
    Cancel,
    Codes,
    Inputs,
    Prepare,
    Propose,
    Reason,
    Refuse,
    RequestId,
    Status,
    Task,
)
from tests.integration.asking import (
    ALL,
    PROMPT,
    Gate,
    all_idle,
    ask_words,
    busy,
    ignore,
    only,
    warm,
)
from tests.integration.hostile import Hostile, hostile
from tests.integration.mesh_fixtures import (
    TestClient,
    client_of,
    mesh_of,
    picture,
    until,
)
from tests.timings import patient

# --- cancelling, and clients that leave -----------------------------------------------------------

STAGES = {
    "loading": (ModelHost, "load"),
    "looking for others": (Candidates, "others"),
    "prefill": (Pipeline, "prefill"),
    "pooling": (Pipeline, "pool"),
    "answer": (Answer, "_decode"),
    "reports": (Participants, "reports"),
}


@pytest.mark.parametrize("leave", [False, True], ids=["cancel", "leave"])
@pytest.mark.parametrize("stage", STAGES)
async def test_cancelling_at_every_stage(
    models: Path, alone: list[int], stage: str, leave: bool
) -> None:
    async with mesh_of(["a", "b"], models) as peers:
        with pytest.MonkeyPatch.context() as patch:
            owner, name = STAGES[stage]
            # What another peer loads for this request it loads for all.
            gate = Gate(patch, peers[1].models if owner is ModelHost else owner, name)
            async with client_of(peers[1]) as client:
                if stage == "pooling":
                    client.send(Task.CLASSIFY, "pictures", image=picture(), options=ALL)
                else:
                    request = ask_words(client)
                await asyncio.wait_for(gate.reached.wait(), 10)
                if not leave and stage != "pooling":
                    client.cancel(request)
                    await all_idle(peers)
            await all_idle(peers)
        async with client_of(peers[1]) as client:
            reply = await client.reply(ask_words(client))
            assert reply.ids == alone
            assert len(reply.done().report.plan.shards) == 2
        await all_idle(peers)


async def test_a_cancelled_participant_drops_what_others_still_send(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Codes that are under way to it are no foreign codes: they cost nobody a link."""
    monkeypatch.setattr(limits, "EARLY_CODES_BYTES", 100)
    gate = Gate(monkeypatch, ModelHost, "load")
    gate.opened.set()
    async with mesh_of(["a"], models) as (peer,):
        await warm(peer)
        gate.opened.clear()
        gate.reached.clear()
        async with hostile(peer, ignore) as one:
            request = new_request()
            plan = _plan_for(peer, one)
            inputs = Inputs(tokens=PROMPT)
            one.link.send(Propose(request=request, task=Task.GENERATE, plan=plan, inputs=inputs))
            await asyncio.wait_for(gate.reached.wait(), 10)
            one.link.send(Cancel(request=request))
            await all_idle([peer])
            for _ in range(5):
                one.link.send(Codes(request, 1, 0, 0, 1, bytes(1000)))
            one.link.send(Prepare(request=new_request(), model=plan.model))
            gate.opened.set()
            await until(lambda: any(isinstance(message, Status) for message in one.seen))
            assert one.link.is_open
            assert not busy(peer)


def _plan_for(peer: Peer, one: Hostile) -> Any:
    from astra_mesh.wire.messages import CodebookId, LinkRate, Plan, Shard

    return Plan(
        model=peer.models.find("words"),
        codec="fp32",
        codebook=CodebookId(""),
        shards=[
            Shard(peer=peer.id, start=0, stop=20),
            Shard(peer=one.id, start=20, stop=len(PROMPT)),
        ],
        rates=[LinkRate(sender=peer.id, receiver=one.id, stages=1)],
        answering=one.id,
        class_token="none",
    )


# --- limits and several coordinators --------------------------------------------------------------


async def test_a_busy_peer_says_so(
    models: Path, alone: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch, Answer, "run")
    monkeypatch.setattr(limits, "REQUESTS_PER_PEER", 1)
    async with (
        mesh_of(["a", "b"], models) as peers,
        client_of(peers[0]) as first,
        client_of(peers[1]) as second,
    ):
        holding = ask_words(first)
        await asyncio.wait_for(gate.reached.wait(), 10)
        reply = await first.reply(ask_words(first))
        assert reply.failure is not None
        assert reply.failure.code == "busy"
        gate.opened.set()
        assert reply.failure.retry_s >= 1.0
        assert "try again in 1 s" in reply.failure.text
        first.cancel(holding)
        await all_idle(peers)
        monkeypatch.setattr(limits, "REQUESTS_PER_PEER", 64)
        monkeypatch.setattr(Participation, "run", _busy_participation)
        reply = await second.reply(ask_words(second))
        assert reply.ids == alone
        assert any("busy" in note for note in reply.done().report.notes)
        await all_idle(peers)


async def _busy_participation(self: Participation, open_exchange: object) -> None:
    self.refuse(Reason.BUSY)


async def test_those_who_wait_are_answered_in_turn(
    models: Path, alone: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One client's many requests do not hold up another's one."""
    monkeypatch.setattr(limits, "ANSWERS_AT_ONCE", 1)
    async with (
        mesh_of(["a"], models) as (peer,),
        client_of(peer) as many,
        client_of(peer) as one,
    ):
        await warm(peer)
        gate = Gate(monkeypatch, Answer, "run")
        first = [ask_words(many) for _ in range(6)]
        await asyncio.wait_for(gate.reached.wait(), patient(10.0))
        last = ask_words(one)
        await until(lambda: peer._requests is not None and peer._requests._turns.waiting == 6)
        many.cancel(first.pop())
        gate.opened.set()
        ended: list[str] = []

        async def note(name: str, client: TestClient, request: RequestId) -> None:
            assert (await client.reply(request)).ids == alone
            ended.append(name)

        async with asyncio.TaskGroup() as group:
            for request in first:
                group.create_task(note("many", many, request))
            group.create_task(note("one", one, last))
        assert ended.index("one") <= 2
        await all_idle([peer])


async def test_two_coordinators_at_once(models: Path, alone: list[int]) -> None:
    async with (
        mesh_of(["a", "b", "c"], models) as peers,
        client_of(peers[0]) as first,
        client_of(peers[1]) as second,
    ):
        asked = [(client, ask_words(client)) for client in (first, second) * 3]
        for client, request in asked:
            reply = await client.reply(request)
            assert reply.ids == alone
            assert len(reply.done().report.plan.shards) == 3
        await all_idle(peers)


async def test_a_proposal_cannot_take_over_a_request_that_runs(
    models: Path, alone: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch, Pipeline, "prefill")
    async with mesh_of(["a", "b"], models) as peers:
        for peer in peers:
            await warm(peer)
        async with client_of(peers[1]) as client, hostile(peers[0], ignore) as one:
            monkeypatch.setattr(Candidates, "others", only(Candidates.others, peers[0].id))
            request = ask_words(client)
            requests = peers[0]._requests
            assert requests is not None
            await until(lambda: bool(requests._exchanges))
            (running,) = requests._exchanges
            plan = _plan_for(peers[0], one)
            inputs = Inputs(tokens=PROMPT)
            one.link.send(Propose(request=running, task=Task.GENERATE, plan=plan, inputs=inputs))
            await until(lambda: any(isinstance(message, Refuse) for message in one.seen))
            one.link.send(Cancel(request=running))
            gate.opened.set()
            reply = await client.reply(request)
            assert reply.ids == alone
            assert len(reply.planned) == 1
            await all_idle(peers)
