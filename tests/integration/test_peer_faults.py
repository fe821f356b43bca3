"""Participants that fail while a request runs, and errors of the program itself."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from astra_mesh import limits
from astra_mesh.engine.pipeline import Pipeline
from astra_mesh.mesh.link import Link
from astra_mesh.mesh.sockets import transport_of
from astra_mesh.peer.answer import Answer, new_request
from astra_mesh.peer.candidates import Candidates
from astra_mesh.peer.lessons import Lessons
from astra_mesh.peer.models import ModelHost
from astra_mesh.peer.participants import Participants
from astra_mesh.plan.alternatives import choose_among
from astra_mesh.plan.planner import Job
from astra_mesh.wire.messages import (
    Cancel,
    Event,
    Fail,
    Late,
    Options,
    Planned,
    Propose,
    Reason,
    Refuse,
    Subscribe,
    Use,
)
from tests.bundles import GPT2
from tests.integration.asking import Gate, all_idle, ask_words, ignore, only, warm
from tests.integration.hostile import Hostile, Script, hostile
from tests.integration.mesh_fixtures import (
    client_of,
    mesh_of,
    until,
)
from tests.timings import patient

LOST_S = 0.5  # until a participant that says nothing is given up

# --- participants that fail -----------------------------------------------------------------------


def refuse(one: Hostile, propose: Propose) -> None:
    one.link.send(Refuse(request=propose.request, reason=Reason.BUSY))


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
            monkeypatch.setattr(Candidates, "others", only(original, one.id))
            reply = await client.reply(ask_words(client))
            assert reply.ids == alone
            assert len(reply.planned) == 2
            assert [s.peer for s in reply.done().report.plan.shards] == [peers[0].id]
            (note,) = reply.done().report.notes
            assert note.startswith("planned again without mallory: "), reply.result
            assert says in note
            monkeypatch.setattr(Candidates, "others", only(original, other))
            reply = await client.reply(ask_words(client))
            assert reply.ids == alone
            assert len(reply.done().report.plan.shards) == 2
            await all_idle(peers)


async def test_the_report_says_what_a_lost_peer_cost(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Predictions go by the time of the plan that answered, people by the whole."""
    monkeypatch.setattr(limits, "ACCEPT_TIMEOUT_S", LOST_S)
    learned: list[float] = []
    monkeypatch.setattr(
        Lessons, "learn_total", lambda self, choice, took, now: learned.append(took)
    )
    async with mesh_of(["a"], models) as (peer,):
        await warm(peer)
        async with hostile(peer, ignore), client_of(peer) as client:
            report = (await client.reply(ask_words(client))).done().report
        assert LOST_S <= report.lost_s <= report.took_s - report.total_s
        assert report.actual_s < LOST_S
        assert learned == [report.actual_s]


async def test_an_automatic_answer_says_who_was_left_out(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def two(jobs: list[Job], *args: Any) -> Any:
        return choose_among([replace(job, use=Use.ALL, max_peers=2) for job in jobs], *args)

    monkeypatch.setattr("astra_mesh.peer.planning.choose_among", two)
    async with (
        mesh_of(["a", "b", "c", "bare"], [models, models, models, tmp_path]) as peers,
        client_of(peers[0]) as client,
    ):
        automatic = await client.reply(ask_words(client, options=Options(codec="fp32")))
        everybody = await client.reply(ask_words(client))
    report = automatic.done().report
    assert len(report.plan.shards) == 2
    out = "c" if peers[1].id in {shard.peer for shard in report.plan.shards} else "b"
    (note,) = report.notes
    assert note.startswith(f"left out: {out} (")
    assert note.endswith(" without); bare (without the model)")
    assert not any("left out" in note for note in everybody.done().report.notes)


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
            assert "mallory sent no report in time" in result.report.notes
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
            assert "mallory sent no report in time" in report.notes
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
                (note,) = [x for x in report.notes if x.startswith("degraded:")]
                late = sum(one.late_parts for one in report.peers)
                assert note.startswith(f"degraded: {late} parts (the codes of one shard for")
                assert "mallory sent no report in time" in report.notes
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
