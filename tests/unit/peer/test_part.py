"""Proposals: which are refused, why, and what is left of those that end early."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from astra_mesh import limits
from astra_mesh.engine.compute import ComputeThread
from astra_mesh.peer.exchange import MeshExchange
from astra_mesh.peer.models import ModelHost
from astra_mesh.peer.part import Participation
from astra_mesh.wire.messages import (
    Accept,
    CodebookId,
    Codes,
    Done,
    Fail,
    Inputs,
    LinkRate,
    ModelId,
    PeerId,
    Plan,
    Propose,
    Reason,
    Refuse,
    Shard,
    Task,
)
from tests.bundles import BERT, GPT2, VIT, bert_tensors, gpt2_tensors, vit_tensors, write_bundle
from tests.timings import patient
from tests.unit.peer.fakes import REQUEST, A, B, C, D, FakeLink, hello_of

TOKENS = list(range(20))


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_bundle(folder / "words", GPT2, gpt2_tensors(GPT2))
    write_bundle(folder / "pictures", VIT, vit_tensors(VIT))
    write_bundle(folder / "feelings", BERT, bert_tensors(BERT))
    return folder


class Room:
    """Peer A among B (the coordinator) and C."""

    def __init__(self, models: ModelHost, compute: ComputeThread) -> None:
        self.models, self.compute = models, compute
        self.links = {peer: FakeLink(hello_of(peer)) for peer in (B, C)}
        self.opened: list[MeshExchange] = []
        self.away: set[PeerId] = set()  # who may be back any moment

    def find_link(self, peer: PeerId) -> Any:
        return self.links.get(peer)

    def id_of(self, name: str) -> ModelId:
        return self.models.find(name)

    def part(self, propose: Propose) -> Participation:
        link: Any = self.links[B]
        back = self.away.__contains__
        return Participation(propose, link, A, self.models, self.compute, self.find_link, back)

    async def run(self, propose: Propose) -> list[Any]:
        """What the coordinator is told."""
        part = self.part(propose)
        await part.run(self.opened.append)
        part.close()
        return self.links[B].sent


@pytest.fixture
async def room(bundles: Path) -> Any:
    compute = ComputeThread()
    names = tuple(str(bundles / name) for name in ("words", "pictures", "feelings"))
    models = ModelHost(names, compute)
    await models.start()
    yield Room(models, compute)
    compute.close()


def plan_of(room: Room, **more: Any) -> Plan:
    """A and B share 20 tokens of a text; B answers."""
    plan = Plan(
        model=room.id_of("words"),
        codec="fp32",
        codebook=CodebookId(""),
        shards=[Shard(peer=A, start=0, stop=12), Shard(peer=B, start=12, stop=20)],
        rates=[LinkRate(sender=A, receiver=B, stages=1)],
        answering=B,
        class_token="none",
    )
    return replace(plan, **more)


def propose_of(room: Room, inputs: Inputs | None = None, **more: Any) -> Propose:
    return Propose(
        request=REQUEST,
        task=Task.GENERATE,
        plan=plan_of(room, **more),
        inputs=inputs or Inputs(tokens=TOKENS),
    )


async def test_an_accepted_shard_runs_and_reports(room: Room) -> None:
    accept, *codes, done = await room.run(propose_of(room))
    assert accept == Accept(request=REQUEST)
    assert [(x.block, x.first, x.count) for x in codes] == [(1, 0, 12), (2, 0, 12)]
    assert isinstance(done, Done)
    assert done.report.peer == A
    assert done.report.tokens == 12
    assert done.report.sent_bytes == {B: 2 * 12 * 128}
    assert [exchange.request for exchange in room.opened] == [REQUEST]
    assert room.links[B].ended == []  # nothing to drop


BAD_PLANS: dict[str, tuple[dict[str, Any], Reason, str]] = {
    "the peer would answer": ({"answering": A}, Reason.BAD_PLAN, "answer"),
    "another answers": ({"answering": C}, Reason.BAD_PLAN, "last tokens"),
    "unknown model": ({"model": ModelId("f" * 64)}, Reason.UNKNOWN_MODEL, "ffffffffffff"),
    "unknown codebook": (
        {"codec": "vq", "codebook": CodebookId("f" * 64)},
        Reason.UNKNOWN_CODEBOOK,
        "ffffffffffff",
    ),
    "unknown codec": ({"codec": "zip"}, Reason.UNKNOWN_CODEBOOK, "zip"),
    "a codebook that is not needed": (
        {"codebook": CodebookId("f" * 64)},
        Reason.UNKNOWN_CODEBOOK,
        "no codebook",
    ),
    "no shard for the peer": (
        {"shards": [Shard(peer=C, start=0, stop=12), Shard(peer=B, start=12, stop=20)]},
        Reason.BAD_PLAN,
        "no shard",
    ),
    "two shards for one peer": (
        {
            "shards": [
                Shard(peer=A, start=0, stop=6),
                Shard(peer=A, start=6, stop=12),
                Shard(peer=B, start=12, stop=20),
            ]
        },
        Reason.BAD_PLAN,
        "two shards",
    ),
    "a gap": (
        {"shards": [Shard(peer=A, start=0, stop=11), Shard(peer=B, start=12, stop=20)]},
        Reason.BAD_PLAN,
        "contiguous",
    ),
    "a late start": (
        {"shards": [Shard(peer=A, start=1, stop=12), Shard(peer=B, start=12, stop=20)]},
        Reason.BAD_PLAN,
        "contiguous",
    ),
    "too few tokens": (
        {"shards": [Shard(peer=A, start=0, stop=12), Shard(peer=B, start=12, stop=19)]},
        Reason.BAD_PLAN,
        "the input has 20",
    ),
    "too many tokens": (
        {"shards": [Shard(peer=A, start=0, stop=12), Shard(peer=B, start=12, stop=21)]},
        Reason.BAD_PLAN,
        "the input has 20",
    ),
    "no rate": ({"rates": []}, Reason.BAD_PLAN, "rate"),
    "a rate of nothing": (
        {"rates": [LinkRate(sender=A, receiver=B, stages=0)]},
        Reason.BAD_PLAN,
        "rate",
    ),
    "too high a rate": (
        {"rates": [LinkRate(sender=A, receiver=B, stages=2)]},
        Reason.BAD_PLAN,
        "rate",
    ),
    "a rate of a stranger": (
        {"rates": [LinkRate(sender=A, receiver=C, stages=1)]},
        Reason.BAD_PLAN,
        "rate",
    ),
    "unknown class token": ({"class_token": "odd"}, Reason.BAD_PLAN, "odd"),
    "a peer without a link": (
        {
            "shards": [
                Shard(peer=A, start=0, stop=6),
                Shard(peer=D, start=6, stop=12),
                Shard(peer=B, start=12, stop=20),
            ],
            "rates": [
                LinkRate(sender=A, receiver=D, stages=1),
                LinkRate(sender=A, receiver=B, stages=1),
                LinkRate(sender=D, receiver=B, stages=1),
            ],
        },
        Reason.NOT_LINKED,
        "dddddddd",
    ),
}


async def test_a_link_that_is_back_in_a_moment_is_waited_for(room: Room) -> None:
    """The proposal came through first when a network was back."""
    room.links[D] = late = FakeLink(hello_of(D))
    room.away.add(D)
    found = room.find_link
    looks = 0

    def find_link(peer: PeerId) -> Any:
        nonlocal looks
        looks += peer == D
        return None if peer == D and looks < 3 else found(peer)

    room.find_link = find_link  # type: ignore[method-assign]
    said = await room.run(propose_of(room, **BAD_PLANS["a peer without a link"][0]))
    assert looks >= 3
    assert isinstance(said[0], Accept)
    assert isinstance(said[-1], Done)
    assert any(isinstance(message, Codes) for message in late.sent)


async def test_a_link_that_does_not_come_back_is_waited_for_a_while(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BACK_S", 0.2)
    room.away.add(D)
    began = time.monotonic()
    (refusal,) = await room.run(propose_of(room, **BAD_PLANS["a peer without a link"][0]))
    assert 0.2 <= time.monotonic() - began < patient(10.0)
    assert refusal.reason is Reason.NOT_LINKED


@pytest.mark.parametrize("kind", BAD_PLANS)
async def test_plans_that_are_refused(room: Room, kind: str) -> None:
    changes, reason, says = BAD_PLANS[kind]
    (refusal,) = await room.run(propose_of(room, **changes))
    assert isinstance(refusal, Refuse)
    assert (refusal.request, refusal.reason) == (REQUEST, reason)
    assert says in refusal.text
    assert room.opened == []
    assert room.links[B].ended == [REQUEST]  # codes of others for it are dropped


@pytest.mark.parametrize(
    ("model", "task", "inputs", "says"),
    [
        ("words", Task.GENERATE, Inputs(), "empty"),
        ("words", Task.GENERATE, Inputs(tokens=[1, 64]), "0..63"),
        ("words", Task.GENERATE, Inputs(tokens=[1] * 97), "96"),
        ("words", Task.GENERATE, Inputs(image=b"x"), "text"),
        ("words", Task.CLASSIFY, Inputs(tokens=TOKENS), "classify"),
        ("pictures", Task.CLASSIFY, Inputs(image=b"no image"), "image"),
        ("pictures", Task.CLASSIFY, Inputs(tokens=TOKENS), "image"),
        ("feelings", Task.CLASSIFY, Inputs(tokens=TOKENS, token_types=[0]), "token types"),
        ("feelings", Task.CLASSIFY, Inputs(tokens=TOKENS, token_types=[2] * 20), "token types"),
        ("feelings", Task.CLASSIFY, Inputs(tokens=[1] * 65), "64"),
    ],
)
async def test_inputs_that_are_refused(
    room: Room, model: str, task: Task, inputs: Inputs, says: str
) -> None:
    propose = replace(propose_of(room, inputs, model=room.id_of(model)), task=task)
    (refusal,) = await room.run(propose)
    assert isinstance(refusal, Refuse)
    assert refusal.reason is Reason.BAD_PLAN
    assert says in refusal.text


async def test_an_empty_shard_is_done_at_once(room: Room) -> None:
    shards = [Shard(peer=A, start=0, stop=0), Shard(peer=B, start=0, stop=20)]
    accept, done = await room.run(propose_of(room, shards=shards, rates=[]))
    assert isinstance(accept, Accept)
    assert isinstance(done, Done)


async def test_hostile_plans_leave_no_codec_behind(room: Room) -> None:
    loaded = await room.models.load(room.id_of("words"))
    before = len(loaded._codecs)
    for i in range(10):
        await room.run(propose_of(room, codebook=CodebookId(f"{i:064x}")))
        await room.run(propose_of(room, codec="vq", codebook=CodebookId(f"{i:064x}")))
    assert len(loaded._codecs) <= before + 1


async def test_an_error_while_checking_is_a_refusal(
    room: Room, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("astra_mesh.peer.part.ShardRun", _broken)
    (refusal,) = await room.run(propose_of(room))
    assert isinstance(refusal, Refuse)
    assert refusal.reason is Reason.INTERNAL
    assert len(caplog.records) == 1


def _broken(*args: object) -> None:
    raise RuntimeError("a bug")


async def test_an_error_while_computing_is_a_failure(
    room: Room, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("astra_mesh.engine.shard.ShardRun.finish", _broken)
    accept, *_, failure = await room.run(propose_of(room))
    assert isinstance(accept, Accept)
    assert isinstance(failure, Fail)
    assert failure.code == "internal"
    assert "a bug" not in failure.text
    assert len(caplog.records) == 1
    assert room.links[B].ended.count(REQUEST) >= 1


@pytest.mark.parametrize("when", ["before", "accept", "codes"])
async def test_a_coordinator_that_is_gone_is_no_error(
    room: Room, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    link = room.links[B]

    def gone(_: object = None) -> None:
        link.is_open = False

    if when == "before":
        room.find_link = lambda peer: None  # type: ignore[method-assign]
        gone()
    part = room.part(propose_of(room))
    if when == "codes":
        original = FakeLink.send

        def send(self: FakeLink, message: Any, frame: bytes | None = None) -> None:
            original(self, message, frame)
            if isinstance(message, Codes):
                gone()

        monkeypatch.setattr(FakeLink, "send", send)
    await part.run(gone if when == "accept" else room.opened.append)
    part.close()
    assert not any(isinstance(message, Done) for message in link.sent)
