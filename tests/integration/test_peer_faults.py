"""What goes wrong around requests: participants, clients and programs that misbehave or leave."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from astra_mesh import limits
from astra_mesh.bundle import open_bundle
from astra_mesh.engine.pipeline import Pipeline
from astra_mesh.engine.reference import decode, run_plan, run_solo
from astra_mesh.families import ModelInput
from astra_mesh.mesh.link import Link
from astra_mesh.mesh.sockets import transport_of
from astra_mesh.peer import Peer
from astra_mesh.peer.answer import Answer, new_request
from astra_mesh.peer.candidates import Candidates
from astra_mesh.peer.early import EarlyCodes
from astra_mesh.peer.inputs import read_inputs
from astra_mesh.peer.loading import load
from astra_mesh.peer.models import Loaded, ModelHost
from astra_mesh.peer.part import Participation
from astra_mesh.peer.participants import Participants
from astra_mesh.peer.requests import Requests
from astra_mesh.plan.check import layout_of
from astra_mesh.wire.messages import (
    Cancel,
    Codes,
    Event,
    Fail,
    Inputs,
    Late,
    Options,
    Planned,
    Pooled,
    Prepare,
    Propose,
    Reason,
    Refuse,
    RequestId,
    Sampling,
    Status,
    Subscribe,
    Task,
    Use,
)
from tests.bundles import GPT2
from tests.integration.hostile import WIDTH, Hostile, Script, hostile
from tests.integration.mesh_fixtures import (
    Reply,
    TestClient,
    client_of,
    mesh_of,
    picture,
    until,
)
from tests.timings import patient

PROMPT = [(7 * i) % 64 for i in range(40)]
SHORT = Sampling(max_new_tokens=4)
ALL = Options(use=Use.ALL, codec="fp32")


@pytest.fixture(scope="module")
def words(models: Path) -> Loaded:
    return load(open_bundle(models / "words"))


@pytest.fixture(scope="module")
def alone(words: Loaded) -> list[int]:
    """What one device answers; fp32 over any plan gives the same."""
    run = run_solo(words.model, ModelInput(tokens=torch.tensor(PROMPT)), "last", spare=64)
    return decode([run], SHORT, words.stop_ids)


def ask_words(client: TestClient, **more: Any) -> RequestId:
    options = more.pop("options", ALL)
    given: dict[str, Any] = {"tokens": PROMPT, "sampling": SHORT} | more
    return client.send(Task.GENERATE, "words", options=options, **given)


def busy(peer: Peer) -> bool:
    requests = peer._requests
    assert requests is not None
    return bool(
        requests._answers
        or requests._parts
        or requests._exchanges
        or requests._running
        or requests._early._held
    )


async def all_idle(peers: list[Peer]) -> None:
    await until(lambda: not any(busy(peer) for peer in peers), wait_s=5.0)


async def warm(peer: Peer) -> None:
    """Load everything, so that a hostile peer can offer it too."""
    for offer in peer.models.offers():
        await peer.models.load(offer.id)


class Gate:
    """Replaces a coroutine function: those who come wait for ever, until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()
        original = getattr(owner, name)

        async def gated(*args: Any, **kwargs: Any) -> Any:
            self.reached.set()
            await self.opened.wait()
            return await original(*args, **kwargs)

        monkeypatch.setattr(owner, name, gated)


# --- participants that fail -----------------------------------------------------------------------


def refuse(one: Hostile, propose: Propose) -> None:
    one.link.send(Refuse(request=propose.request, reason=Reason.BUSY))


def ignore(one: Hostile, propose: Propose) -> None:
    """Says nothing at all."""


def fail(one: Hostile, propose: Propose) -> None:
    one.accept(propose)
    one.link.send(Fail(request=propose.request, code="internal", text="out of memory\x1b[31m"))


def blame(one: Hostile, propose: Propose) -> None:
    one.accept(propose)
    one.link.send(Fail(request=propose.request, code="peer-lost", text="lost another"))


def vanish(one: Hostile, propose: Propose) -> None:
    one.accept(propose)
    transport = transport_of(one.link._socket)
    assert transport is not None
    transport.abort()


FAILURES: dict[str, tuple[Script, str]] = {
    "refuses": (refuse, "refused: busy"),
    "never accepts": (ignore, "did not answer"),
    "fails": (fail, "failed: out of memory"),
    "says another is lost": (blame, "lost another"),
    "vanishes": (vanish, "lost mallory"),
}


@pytest.mark.parametrize("kind", FAILURES)
async def test_a_participant_that_fails_is_planned_around(
    models: Path, alone: list[int], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    script, says = FAILURES[kind]
    monkeypatch.setattr(limits, "ACCEPT_TIMEOUT_S", 0.5)
    monkeypatch.setattr("astra_mesh.peer.participants._BLAME_S", 0.2)
    async with mesh_of(["a", "b"], models) as peers:
        for peer in peers:
            await warm(peer)
        async with hostile(peers[0], script) as one, client_of(peers[0]) as client:
            # The other peer has no link to mallory, so it would refuse a plan with both.
            other, original = peers[1].id, Candidates.others
            monkeypatch.setattr(Candidates, "others", _only(original, one.id))
            reply = await client.reply(ask_words(client))
            assert reply.ids == alone
            assert len(reply.planned) == 2
            assert [s.peer for s in reply.done().report.plan.shards] == [peers[0].id]
            assert any(says in note for note in reply.done().report.notes), reply.result
            monkeypatch.setattr(Candidates, "others", _only(original, other))
            reply = await client.reply(ask_words(client))
            assert reply.ids == alone
            assert len(reply.done().report.plan.shards) == 2
            await all_idle(peers)


def _only(original: Any, peer: str) -> Any:
    async def others(self: Candidates, *args: Any, **kwargs: Any) -> Any:
        return [one for one in await original(self, *args, **kwargs) if one.peer == peer]

    return others


async def test_without_a_report_the_answer_comes_anyway(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lazy(one: Hostile, propose: Propose) -> None:
        one.accept(propose)
        one.send_codes(propose)

    monkeypatch.setattr(limits, "SHUTDOWN_S", 0.2)
    async with mesh_of(["a"], models) as (peer,):
        await warm(peer)
        async with hostile(peer, lazy) as one, client_of(peer) as client:
            reply = await client.reply(ask_words(client))
            result = reply.done()
            assert len(result.report.plan.shards) == 2
            assert [report.peer for report in result.report.peers] == [peer.id]
            assert "a peer sent no report in time" in result.report.notes
            await until(lambda: any(isinstance(message, Cancel) for message in one.seen))
            link = peer.link(one.id)
            assert link is not None
            assert not link.session._requests._ours
            await all_idle([peer])


async def test_a_peer_that_dies_after_its_part_costs_only_its_report(models: Path) -> None:
    def dies(one: Hostile, propose: Propose) -> None:
        one.accept(propose)
        one.send_codes(propose)
        asyncio.get_running_loop().call_later(0.3, _abort, one.link)  # its codes have arrived

    async with mesh_of(["a"], models) as (peer,):
        await warm(peer)
        async with hostile(peer, dies), client_of(peer) as client:
            reply = await client.reply(ask_words(client))
            report = reply.done().report
            assert len(report.plan.shards) == 2
            assert [one.peer for one in report.peers] == [peer.id]
            assert "a peer sent no report in time" in report.notes
            await all_idle([peer])


async def test_all_participants_may_fail(
    models: Path, alone: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop of planning again ends, with this peer alone at the latest."""

    async def broken(self: Pipeline) -> None:
        if self.run.shard != len(self.run.layout.bounds) - 1:
            raise RuntimeError("a bug")
        await original(self)

    original = Pipeline.prefill
    monkeypatch.setattr(Pipeline, "prefill", broken)
    async with mesh_of(["a", "b", "c", "d"], models) as peers, client_of(peers[0]) as client:
        reply = await client.reply(ask_words(client))
        assert reply.ids == alone
        assert len(reply.planned) == 4
        await all_idle(peers)


@pytest.mark.parametrize("stop_first", [True, False])
async def test_only_the_lost_peer_is_left_out(
    models: Path, alone: list[int], monkeypatch: pytest.MonkeyPatch, stop_first: bool
) -> None:
    """Others notice the loss too, perhaps before the coordinator; they are not to blame."""
    monkeypatch.setattr("astra_mesh.peer.participants._BLAME_S", patient(5.0))
    monkeypatch.setattr("astra_mesh.peer.participants._UNLINKED_S", patient(5.0))
    entered = asyncio.Event()
    original = Pipeline.prefill

    async def prefill(self: Pipeline) -> None:
        if self.run.shard == 0 and len(self.run.layout.bounds) == 3:
            entered.set()
            await asyncio.Event().wait()
        await original(self)

    monkeypatch.setattr(Pipeline, "prefill", prefill)
    async with mesh_of(["a", "b", "c"], models) as peers, client_of(peers[2]) as client:
        request = ask_words(client)
        await asyncio.wait_for(entered.wait(), 10)
        message = await client.next(request)
        assert isinstance(message, Planned)
        shards = message.plan.shards
        first, second = (next(p for p in peers if p.id == shards[i].peer) for i in (0, 1))
        if stop_first:
            await first.stop()
        else:  # the second peer notices before the coordinator does
            between = second.link(first.id)
            assert between is not None
            second_sees = asyncio.ensure_future(until(lambda: second.link(first.id) is None))
            _abort(between)
            await second_sees
            await asyncio.sleep(0.2)
            await first.stop()
        reply = await client.reply(request)
        assert reply.ids == alone
        assert {shard.peer for shard in reply.done().report.plan.shards} == {
            second.id,
            peers[2].id,
        }


def _abort(link: Link) -> None:
    transport = transport_of(link._socket)
    assert transport is not None
    transport.abort()


@pytest.mark.parametrize("goodbye", [True, False])
async def test_a_loss_after_the_answer_began_does_not_matter(
    models: Path, alone: list[int], monkeypatch: pytest.MonkeyPatch, goodbye: bool
) -> None:
    gate = Gate(monkeypatch, Answer, "_decode")
    async with mesh_of(["a", "b"], models) as peers, client_of(peers[1]) as client:
        request = ask_words(client)
        await asyncio.wait_for(gate.reached.wait(), 10)
        if goodbye:
            await peers[0].stop()
        else:
            link = peers[1].link(peers[0].id)
            assert link is not None
            _abort(link)
        await until(lambda: not peers[1].others() or not goodbye)
        gate.opened.set()
        reply = await client.reply(request)
        assert reply.ids == alone
        assert len(reply.planned) == 1


async def test_a_deadline_names_who_sent_nothing(
    models: Path, alone: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CODES_TIMEOUT_S", 0.3)
    async with mesh_of(["a"], models) as (peer,):
        await warm(peer)

        def accept(one: Hostile, propose: Propose) -> None:
            one.accept(propose)

        async with hostile(peer, accept) as one, client_of(peer) as client:
            reply = await client.reply(ask_words(client))
            assert reply.ids == alone
            assert len(reply.planned) == 2
            notes = reply.done().report.notes
            assert any(f"came from {one.id[:8]} within 0.3 s" in note for note in notes), notes
            await all_idle([peer])


async def test_who_is_late_is_stood_in_for_if_the_caller_wants_that(models: Path) -> None:
    """It accepts and sends nothing: the first block is known, the others are predicted."""
    async with mesh_of(["a"], models) as (peer,):
        await warm(peer)

        def accept(one: Hostile, propose: Propose) -> None:
            assert propose.plan.late is Late.DEGRADE
            one.accept(propose)

        async with hostile(peer, accept), client_of(peer) as client:
            for codec in ("vq", "fp32"):
                options = Options(use=Use.ALL, codec=codec, late=Late.DEGRADE)
                reply = await client.reply(ask_words(client, options=options))
                report = reply.done().report
                assert len(reply.ids) == 4
                assert len(reply.planned) == 1
                assert any(note.startswith("degraded: the codes of ") for note in report.notes)
                (own,) = [one for one in report.peers if one.peer == peer.id]
                assert own.late_parts == int(str(GPT2["n_layer"])) - 1
            await all_idle([peer])


async def test_with_time_enough_nothing_is_degraded(models: Path) -> None:
    async with mesh_of(["a", "b"], models) as peers:
        for peer in peers:
            await warm(peer)
        async with client_of(peers[0]) as client:
            waits = await client.reply(ask_words(client, options=Options(use=Use.ALL, codec="vq")))
            options = Options(use=Use.ALL, codec="vq", late=Late.DEGRADE)
            goes_on = await client.reply(ask_words(client, options=options))
            notes = goes_on.done().report.notes
            if not any(note.startswith("degraded") for note in notes):  # a busy machine may be late
                assert goes_on.ids == waits.ids
                assert goes_on.done().report.peers[0].late_parts == 0


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
            monkeypatch.setattr(Candidates, "others", _only(Candidates.others, peers[0].id))
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


# --- errors of the program ------------------------------------------------------------------------


async def broken(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("a bug")


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (ModelHost, "load"),
        (Candidates, "others"),
        (Answer, "run"),
        (Answer, "_decode"),
        (Pipeline, "prefill"),
        (Participants, "reports"),
    ],
)
async def test_an_error_in_a_request_ends_only_that(
    models: Path, alone: list[int], owner: type, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with mesh_of(["a", "b"], models) as peers, client_of(peers[0]) as client:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, broken)
            reply = await client.reply(ask_words(client))
            assert reply.failure is not None
            assert reply.failure.code == "internal"
            assert "RuntimeError" in reply.failure.text
        assert any(record.exc_info for record in caplog.records)
        assert (await client.reply(ask_words(client))).ids == alone
        await all_idle(peers)


async def test_an_error_while_preparing_ends_only_that(models: Path, alone: list[int]) -> None:
    """The one that asks is told, and does not wait for it."""
    original = ModelHost.load

    async def load(self: ModelHost, model: Any) -> Any:
        if self is unable:
            raise RuntimeError("a bug")
        return await original(self, model)

    async with mesh_of(["a", "b"], models) as peers, client_of(peers[0]) as client:
        unable = peers[1].models
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ModelHost, "load", load)
            reply = await client.reply(ask_words(client))
            assert reply.ids == alone
            assert len(reply.done().report.plan.shards) == 1
        reply = await client.reply(ask_words(client))
        assert len(reply.done().report.plan.shards) == 2


async def test_a_word_that_is_no_class_token_is_the_callers_mistake(models: Path) -> None:
    async with mesh_of(["a"], models) as (peer,), client_of(peer) as client:
        reply = await client.reply(ask_words(client, options=Options(class_token="odd")))
        assert reply.failure is not None
        assert reply.failure.code == "bad-input"
        assert "odd" in reply.failure.text


async def test_one_device_waits_for_nobody(
    models: Path, alone: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Candidates, "others", broken)
    async with mesh_of(["a", "b"], models) as peers, client_of(peers[0]) as client:
        reply = await client.reply(ask_words(client, options=Options(use=Use.SOLO)))
        assert reply.ids == alone
        assert "one device was asked for" in reply.planned[0].reason


async def test_a_cancelled_subscription_ends(models: Path) -> None:
    async with mesh_of(["a"], models) as (peer,), client_of(peer) as client:
        for _ in range(3):
            request = new_request()
            client._queues[request] = asyncio.Queue()
            client.link.send(Subscribe(request=request))
            await until(lambda: len(peer._subscribers) == 1)
            peer.tell("peer-joined", text="x")
            assert isinstance(await client.next(request), Event)
            client.cancel(request)
            await until(lambda: not peer._subscribers)
