"""The other peers of an attempt: what each of them may do, and what that leads to."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from astra_mesh import limits
from astra_mesh.errors import MeshError, PeerLostError, ProtocolError
from astra_mesh.families import Model
from astra_mesh.peer import participants as module
from astra_mesh.peer.exchange import MeshExchange
from astra_mesh.peer.participants import LostDuringPrefillError, Participants
from astra_mesh.wire.messages import (
    Accept,
    Cancel,
    CodebookId,
    Codes,
    Done,
    Fail,
    Inputs,
    ModelId,
    PeerId,
    PeerReport,
    Plan,
    Propose,
    Reason,
    Refuse,
    Shard,
    Task,
)
from tests.unit.peer.fakes import REQUEST, A, B, C, D, exchange_of, layout_for, link_to, small_model

PROPOSE = Propose(
    request=REQUEST,
    task=Task.GENERATE,
    plan=Plan(
        model=ModelId("e" * 64),
        codec="fp32",
        codebook=CodebookId(""),
        shards=[Shard(peer=C, start=0, stop=1)],
        rates=[],
        answering=C,
        class_token="none",
    ),
    inputs=Inputs(tokens=[1]),
)


@pytest.fixture(scope="module")
def words() -> Model:
    return small_model("gpt2")


@pytest.fixture
async def group(words: Model) -> Any:
    exchange = exchange_of(words, layout_for(words, [(0, 10), (10, 25), (25, 40)], "generate"), 2)
    found = Participants(exchange)
    yield found
    found.close()


def report(peer: PeerId) -> PeerReport:
    return PeerReport(
        peer=peer, tokens=1, compute_s=0, encode_s=0, decode_s=0, wait_s=0, finished_s=0
    )


def done(peer: PeerId) -> Done:
    return Done(request=REQUEST, report=report(peer))


def fail(code: str) -> Fail:
    return Fail(request=REQUEST, code=code, text="why")


def link(group: Participants, peer: PeerId) -> Any:
    return group.exchange.links[peer]


def everything_of(peer: PeerId, exchange: MeshExchange) -> None:
    first, count = (0, 10) if peer == A else (10, 15)
    for block in (1, 2):
        exchange.take(peer, Codes(REQUEST, block, 0, first, count, bytes(count * 128)))


async def lost(group: Participants, patience_s: float = 0.0) -> PeerId | None:
    """Who is blamed, if somebody is."""
    await asyncio.sleep(patience_s or 0.001)
    try:
        async with asyncio.timeout(0.001):
            await group.exchange.receive_codes(2)
    except LostDuringPrefillError as error:
        return error.peer
    except TimeoutError:
        return None
    return None


async def test_all_get_the_proposal_and_report(group: Participants) -> None:
    group.propose(PROPOSE)
    assert link(group, A).sent == link(group, B).sent == [PROPOSE]
    for peer in (A, B):
        group.on_message(peer, Accept(request=REQUEST))
        group.on_message(peer, done(peer))
    reports, missing = await group.reports()
    assert {one.peer for one in reports} == {A, B}
    assert missing == []


async def test_who_cannot_get_the_proposal_is_named(group: Participants) -> None:
    link(group, B).error = ProtocolError("too many requests")
    with pytest.raises(LostDuringPrefillError) as caught:
        group.propose(PROPOSE)
    assert caught.value.peer == B


async def test_a_refusal_is_final(group: Participants) -> None:
    group.on_message(B, Refuse(request=REQUEST, reason=Reason.BUSY))
    assert await lost(group) == B


@pytest.mark.parametrize("peer", [C, D])
async def test_what_others_say_is_ignored(group: Participants, peer: PeerId) -> None:
    group.on_message(peer, Refuse(request=REQUEST, reason=Reason.BUSY))
    group.on_message(peer, fail("internal"))
    group.on_message(peer, done(peer))
    assert await lost(group, 0.01) is None


async def test_nobody_accepts(group: Participants, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ACCEPT_TIMEOUT_S", 0.01)
    group.propose(PROPOSE)
    group.on_message(A, Accept(request=REQUEST))
    assert await lost(group, 0.03) == B


async def test_done_counts_as_accepted(
    group: Participants, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ACCEPT_TIMEOUT_S", 0.01)
    group.propose(PROPOSE)
    group.on_message(A, done(A))
    group.on_message(B, done(B))
    assert await lost(group, 0.03) is None


async def test_a_report_is_of_its_sender(group: Participants) -> None:
    group.on_message(A, done(B))
    group.on_message(A, done(A))  # a second one changes nothing
    group.on_message(B, done(D))
    reports, _ = await group.reports()
    assert sorted(one.peer for one in reports) == [A, B]


async def test_reports_that_never_come(
    group: Participants, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SHUTDOWN_S", 0.01)
    group.on_message(A, done(A))
    reports, missing = await group.reports()
    assert [one.peer for one in reports] == [A]
    assert missing == [B]
    group.close()
    assert link(group, B).sent == [Cancel(request=REQUEST)]
    assert link(group, B).ended == [REQUEST]


async def test_a_failure_counts_at_once(group: Participants) -> None:
    group.on_message(A, fail("internal"))
    assert await lost(group) == A


@pytest.mark.parametrize("code", ["peer-lost", "protocol"])
async def test_who_lost_another_is_blamed_only_if_that_one_is_here(
    group: Participants, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    monkeypatch.setattr(module, "_BLAME_S", 0.03)
    group.on_message(B, fail(code))
    assert await lost(group) is None
    group.link_gone(link(group, A), PeerLostError("gone"))
    assert await lost(group, 0.06) == A


async def test_who_has_no_link_to_another_is_blamed_after_a_moment(
    group: Participants, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_UNLINKED_S", 0.02)
    group.on_message(B, Refuse(request=REQUEST, reason=Reason.NOT_LINKED))
    assert await lost(group) is None
    assert await lost(group, 0.04) == B


async def test_who_lost_another_that_is_here_is_left_out(
    group: Participants, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLAME_S", 0.01)
    group.on_message(B, fail("peer-lost"))
    assert await lost(group, 0.03) == B


async def test_a_peer_that_did_its_part_may_leave(group: Participants) -> None:
    everything_of(A, group.exchange)
    group.on_message(A, done(A))
    group.link_gone(link(group, A), PeerLostError("gone"))
    assert await lost(group) is None
    assert not group._all[A].report.cancelled()


async def test_a_peer_that_says_it_is_done_and_is_not(group: Participants) -> None:
    group.on_message(A, done(A))
    group.link_gone(link(group, A), PeerLostError("gone"))
    assert await lost(group) == A


async def test_a_peer_that_sent_all_but_its_report_is_lost(group: Participants) -> None:
    """Others may still wait for its codes."""
    everything_of(A, group.exchange)
    group.link_gone(link(group, A), PeerLostError("gone"))
    with pytest.raises(LostDuringPrefillError):
        await group.exchange.receive_codes(1)
    reports, missing = await asyncio.wait_for(_with_report_of_b(group), 1)
    assert [one.peer for one in reports] == [B]
    assert missing == [A]


async def _with_report_of_b(group: Participants) -> tuple[list[PeerReport], list[PeerId]]:
    group.on_message(B, done(B))
    return await group.reports()


async def test_another_link_to_the_same_peer_is_no_loss(group: Participants) -> None:
    group.link_gone(link_to(A), PeerLostError("a second link"))
    assert await lost(group) is None


async def test_an_error_of_a_link_that_is_over_names_its_peer(group: Participants) -> None:
    error = MeshError("writing failed")
    group.raise_lost(error)
    link(group, B).is_open = False
    with pytest.raises(LostDuringPrefillError) as caught:
        group.raise_lost(error)
    assert caught.value.peer == B


async def test_closing_cancels_what_runs_and_no_timer_fires(
    group: Participants, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ACCEPT_TIMEOUT_S", 0.01)
    group.propose(PROPOSE)
    link(group, A).is_open = False
    group.close()
    assert link(group, A).sent == [PROPOSE]
    assert link(group, B).sent == [PROPOSE, Cancel(request=REQUEST)]
    assert await lost(group, 0.03) is None


async def test_without_others_there_is_nothing_to_wait_for(words: Model) -> None:
    alone = Participants(exchange_of(words, layout_for(words, [(0, 40)], "generate"), 0))
    alone.propose(PROPOSE)
    assert await alone.reports() == ([], [])
    alone.close()
