"""A tab (in Python, tests/integration/tabs.py) that takes shards beside ordinary peers."""

from __future__ import annotations

from pathlib import Path

import pytest

from astra_mesh.wire.messages import Options, Sampling, Task, Use
from tests.integration.mesh_fixtures import client_of, make_models, until
from tests.integration.tabs import tab_peer
from tests.integration.web_fixtures import live

PROMPT = [7 * i % 64 for i in range(40)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_models(tmp_path_factory.mktemp("models"))


async def test_a_tab_takes_a_shard(models: Path) -> None:
    async with live(models, 2) as mesh, tab_peer(mesh.server, "phone", models) as phone:
        await until(lambda: all(phone.id in peer.others() for peer in mesh.peers))
        async with client_of(mesh.peers[0]) as client:
            solo = await client.reply(
                client.send(
                    Task.GENERATE,
                    "words",
                    tokens=PROMPT,
                    options=Options(use=Use.SOLO),
                    sampling=Sampling(max_new_tokens=8),
                )
            )
            request = client.send(
                Task.GENERATE,
                "words",
                tokens=PROMPT,
                options=Options(use=Use.ALL, codec="fp32"),
                sampling=Sampling(max_new_tokens=8),
            )
            reply = await client.reply(request)
        result = reply.done()
        assert phone.id in [shard.peer for shard in result.report.plan.shards]
        assert len(result.report.plan.shards) == 3
        assert result.report.plan.shards[-1].peer == mesh.peers[0].id
        assert reply.ids == solo.ids
