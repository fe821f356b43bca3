"""Peers that send other codes than those of their shard, and one that computes them once more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from astra_mesh.peer import Peer
from astra_mesh.peer.exchange import MeshExchange
from astra_mesh.quant.codes import CodeArray
from astra_mesh.wire.messages import Options, Pooled, Sampling, Task, Use
from tests.integration.mesh_fixtures import Reply, client_of, mesh_of, picture

PROMPT = [5, 9, 2, 7, 1, 3, 8, 4, 6, 11, 10, 12]
CODES = ["", "fp16"]


def false(codes: CodeArray) -> CodeArray:
    """Valid ones of something else, also where there is one token: of 16 codewords, or fp16."""
    few = codes.shape[1] < 16
    return (codes + 5) % 16 if few else np.roll(codes, 8, axis=1)


def lie(monkeypatch: pytest.MonkeyPatch, liar: Peer, block: int | None = None) -> None:
    """The peer sends other codes than its own, of all blocks or of one."""
    send = MeshExchange.send_codes

    async def send_codes(
        self: MeshExchange, at: int, codes: Mapping[int, Sequence[CodeArray]]
    ) -> None:
        if self.peers[self.shard] == liar.id and block in (None, at):
            codes = {n: [false(x) for x in one] for n, one in codes.items()}
        await send(self, at, codes)

    monkeypatch.setattr(MeshExchange, "send_codes", send_codes)


async def text_of(asked: Peer, codec: str) -> Reply:
    async with client_of(asked) as client:
        return await client.reply(
            client.send(
                Task.GENERATE,
                "words",
                tokens=PROMPT,
                sampling=Sampling(max_new_tokens=3),
                options=Options(use=Use.ALL, codec=codec),
            )
        )


async def label_of(asked: Peer, codec: str) -> Reply:
    async with client_of(asked) as client:
        options = Options(use=Use.ALL, codec=codec)
        return await client.reply(
            client.send(Task.CLASSIFY, "pictures", image=picture(), options=options)
        )


def users(reply: Reply) -> list[set[str]]:
    """Who was in each plan."""
    return [{shard.peer for shard in planned.plan.shards} for planned in reply.planned]


@pytest.mark.parametrize("codec", CODES)
async def test_honest_peers_pass(models: Path, codec: str) -> None:
    async with mesh_of(["one", "two"], models, spot_check=1.0) as (one, two):
        for reply in (await text_of(one, codec), await label_of(one, codec)):
            assert users(reply) == [{one.id, two.id}]
            assert "spot check: what two sent is what its share gives" in reply.done().report.notes


@pytest.mark.parametrize("codec", CODES)
@pytest.mark.parametrize("block", [None, 2])
async def test_a_liar_is_named_with_the_text_and_in_no_plan_afterwards(
    models: Path, codec: str, block: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mesh_of(["one", "two"], models, spot_check=1.0) as (one, two):
        lie(monkeypatch, two, block)
        reply = await text_of(one, codec)
        note = next(x for x in reply.done().report.notes if x.startswith("do not rely"))
        assert f"the codes of block {block or 1} that two ({two.id[:8]}) sent" in note
        reply = await text_of(one, codec)
        assert users(reply) == [{one.id}]
        assert any("two, which sent false codes" in note for note in reply.done().report.notes)


@pytest.mark.parametrize("codec", CODES)
async def test_an_answer_of_false_codes_is_not_given(
    models: Path, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mesh_of(["one", "two"], models) as (one, _):
        wanted = (await label_of(one, "fp32")).done().labels[0]
    async with mesh_of(["one", "two"], models, spot_check=1.0) as (one, two):
        lie(monkeypatch, two)
        reply = await label_of(one, codec)
        assert users(reply) == [{one.id, two.id}, {one.id}]
        found = reply.done().labels[0]
        assert found.label == wanted.label
        assert found.probability == pytest.approx(wanted.probability, abs=1e-4)


async def test_a_false_result_is_not_given(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The class token's shard sends true codes, and another row in the end."""
    async with mesh_of(["one", "two", "three"], models, spot_check=1.0) as (one, two, three):
        send = MeshExchange._send

        def wrong(self: MeshExchange, link: object, message: object, *frame: object) -> None:
            if isinstance(message, Pooled) and self.peers[self.shard] != one.id:
                row = np.frombuffer(message.vector, "<f4")[::-1]
                message = Pooled(message.request, message.weight, row.tobytes())
            send(self, link, message, *frame)  # type: ignore[arg-type]

        monkeypatch.setattr(MeshExchange, "_send", wrong)
        monkeypatch.setattr(
            "astra_mesh.peer.spot_check.checkable",
            lambda layout, me: [i for i in (0,) if i != me],
        )
        reply = await label_of(one, "fp16")
        first = reply.planned[0].plan.shards[0].peer
        assert first in (two.id, three.id)
        assert all(first not in after for after in users(reply)[1:])
        assert len(reply.planned) > 1


async def test_nothing_is_checked_unless_asked_for(models: Path) -> None:
    async with mesh_of(["one", "two"], models) as (one, _):
        reply = await text_of(one, "fp16")
        assert not any("spot check" in note for note in reply.done().report.notes)
