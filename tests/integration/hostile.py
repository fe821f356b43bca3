"""A participant that does what a test wants instead of its shard, over real links."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp

from astra_mesh.mesh.link import Link
from astra_mesh.mesh.session import Session
from astra_mesh.peer import Peer
from astra_mesh.wire.codec import AnyMessage
from astra_mesh.wire.messages import (
    MAGIC,
    PROTOCOL_VERSION,
    Accept,
    Codes,
    Device,
    Hello,
    PeerId,
    Pooled,
    Propose,
    Role,
    Shard,
)
from tests.integration.secure import Caller

Script = Callable[["Hostile", Propose], None]

BLOCKS = 3  # of the models of tests/bundles.py
WIDTH = 32  # hidden size of them


@dataclass
class Hostile:
    """A peer named "mallory" with the models of ``peer``, linked to it alone."""

    id: PeerId
    link: Link
    script: Script
    seen: list[AnyMessage] = field(default_factory=list)
    greeted: asyncio.Event = field(default_factory=asyncio.Event)

    def on_message(self, message: AnyMessage) -> None:
        self.seen.append(message)
        if isinstance(message, Hello):
            self.greeted.set()
        elif isinstance(message, Codes | Pooled):
            self.link.consumed(message)
        elif isinstance(message, Propose):
            self.script(self, message)

    def shard(self, propose: Propose) -> Shard:
        return next(shard for shard in propose.plan.shards if shard.peer == self.id)

    def accept(self, propose: Propose) -> None:
        self.link.send(Accept(request=propose.request))

    def send_codes(self, propose: Propose) -> None:
        """All codes of its shard in fp32: zeros. Without position 0, of which all have a copy."""
        shard = self.shard(propose)
        start = max(shard.start, 1) if propose.plan.class_token == "distributed" else shard.start
        count = shard.stop - start
        if not count:
            return
        data = bytes(4 * WIDTH * count)
        for block in range(1, BLOCKS):
            self.link.send(Codes(propose.request, block, 0, start, count, data))


@asynccontextmanager
async def hostile(peer: Peer, script: Script) -> AsyncIterator[Hostile]:
    """Joins the mesh of ``peer``, which must have loaded its models."""
    caller = await Caller.new()
    name = caller.id
    hello = Hello(
        magic=MAGIC,
        version=PROTOCOL_VERSION,
        peer=name,
        name="mallory",
        role=Role.PEER,
        window_bytes=1 << 24,
        device=Device(host="elsewhere", cores=1.0, host_cores=1.0, threads=1),
        models=peer.models.offers(),
    )
    async with aiohttp.ClientSession() as http:
        link = Link(await caller.dial(http, peer.port), Session(hello), dialled=True)
        one = Hostile(name, link, script)
        task = asyncio.create_task(link.run(one.on_message))
        try:
            async with asyncio.timeout(10):
                await one.greeted.wait()
                while name not in peer.others():
                    await asyncio.sleep(0.01)
            yield one
        finally:
            await link.close()
            await task
