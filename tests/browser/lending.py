"""What the tests of a lent device share: slow coordinators, a slow line, and what must come out."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from msgspec.structs import asdict

from astra_mesh.bundle import open_bundle
from astra_mesh.engine.reference import decode, run_plan
from astra_mesh.families import ModelInput
from astra_mesh.peer import Peer
from astra_mesh.peer.answer import new_request
from astra_mesh.peer.candidates import Candidates
from astra_mesh.peer.choice import stages_of
from astra_mesh.peer.loaded import Loaded
from astra_mesh.peer.loading import load
from astra_mesh.plan.check import layout_of
from astra_mesh.plan.cost import Candidate
from astra_mesh.wire.messages import ModelOffer, PeerId, Plan, Prepare, Sampling, Task, Timing
from tests.browser.chrome import Tab
from tests.browser.pages import Shown
from tests.integration.mesh_fixtures import Reply, until

JOIN_S = 60.0


async def lend(tab: Tab, on: Shown, *models: str, url: str = "") -> PeerId:
    """Join with the browser; the id of its peer, once all others have a link to it and it has
    loaded these models.
    """
    await tab.open(f"{url or on.url}#lend")
    await tab.until("document.getElementById('lend-asked')?.hidden === false")
    await tab.click("#lend-join")
    phone = await listed(tab, on)
    await ready(on, phone, *models)
    return phone


async def ready(on: Shown, phone: PeerId, *models: str) -> None:
    """Let a tab load models: coordinators wait for that only a little."""

    def offers(peer: Peer) -> list[ModelOffer]:
        return [one for one in peer.others()[phone].models if one.name in models]

    link = on.peers[0].link(phone)
    assert link is not None
    for offer in offers(on.peers[0]):
        link.send(Prepare(request=new_request(), model=offer.id))
    await until(
        lambda: all(one.timing is not None for peer in on.peers for one in offers(peer)), JOIN_S
    )


async def listed(tab: Tab, on: Shown, count: int = 1) -> PeerId:
    """The newest tab that all peers have a link to, with its models."""
    await tab.until(
        "document.getElementById('lend-state')?.textContent.startsWith('Joined')", JOIN_S
    )
    await until(lambda: all(len(tabs_of(on, i)) == count for i in range(len(on.peers))), JOIN_S)
    return tabs_of(on, 0)[-1]


def tabs_of(on: Shown, i: int) -> list[PeerId]:
    """Tabs that peer ``i`` has a link to, and that offer models."""
    return [peer for peer, hello in on.peers[i].others().items() if hello.via and hello.models]


def owners(reply: Reply) -> list[str]:
    """Who held a shard."""
    return [shard.peer for shard in reply.done().report.plan.shards]


def share(reply: Reply, peer: PeerId) -> int:
    """Tokens of one peer."""
    return next(s.stop - s.start for s in reply.done().report.plan.shards if s.peer == peer)


@pytest.fixture
def slow_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers think that they are slow, so that a tab gets most of the tokens."""
    slow_down(monkeypatch, 50)


def slow_down(monkeypatch: pytest.MonkeyPatch, times: float) -> None:
    """Let peers think that they are so many times slower than they are."""
    original = Candidates.me

    def me(self: Candidates, loaded: Loaded) -> Candidate:
        found = original(self, loaded)
        return replace(found, timing=slowed(found.timing, times))

    monkeypatch.setattr(Candidates, "me", me)


def slowed(timing: Timing, times: float) -> Timing:
    """So many times slower."""
    return Timing(**{name: times * value for name, value in asdict(timing).items()})


def tokens_of(bundle: Path, plan: Plan, tokens: list[int], sampling: Sampling) -> list[int]:
    """What the same plan gives in one process, by torch alone."""
    loaded = load(open_bundle(bundle))
    codec = loaded.codec(plan.codec, plan.codebook, stages_of(plan))
    layout = layout_of(plan, loaded.spec, Task.GENERATE, len(tokens), codec.first_block, codec.able)
    inputs = ModelInput(tokens=torch.tensor(tokens))
    runs = run_plan(loaded.model, layout, codec, inputs, spare=sampling.max_new_tokens)
    return decode(runs, sampling, loaded.stop_ids)


@dataclass
class Line:
    """A line that a proxy stands for; its rate may change while it is in use."""

    bps: float  # each way
    delay_s: float = 0.0
    spare_bytes: float = math.inf  # that the browser's peer may send before the rate falls
    later_bps: float = math.inf  # to which it then falls

    def took_s(self, sent: int, by_peer: bool) -> float:
        """Seconds that so many bytes take."""
        if by_peer:
            self.spare_bytes -= sent
        if self.spare_bytes < 0:
            self.bps, self.spare_bytes = self.later_bps, math.inf
        return 8 * sent / self.bps


@asynccontextmanager
async def slow_line(port: int, line: Line) -> AsyncIterator[str]:
    """The address of a proxy to a port of this machine, as fast and as late as the line."""
    tasks: set[asyncio.Task[None]] = set()
    ends: list[asyncio.StreamWriter] = []

    async def carry(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        free = 0.0  # when the line has sent all that came before
        by_peer = False
        loop = asyncio.get_running_loop()
        try:
            while data := await source.read(1500):
                by_peer = by_peer or data.startswith(b"GET /tab ")
                free = max(free, loop.time()) + line.took_s(len(data), by_peer)
                await asyncio.sleep(max(0.0, free - loop.time()))
                loop.call_later(line.delay_s, target.write, data)
        except ConnectionError:
            pass
        loop.call_later(2 * line.delay_s, target.close)

    async def serve(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        back, there = await asyncio.open_connection("127.0.0.1", port)
        ends.extend((target, there))
        for work in (carry(source, there), carry(back, target)):
            task = asyncio.create_task(work)
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for end in ends:
            end.transport.abort()
        await asyncio.sleep(2 * line.delay_s)
