"""A peer that answers clients from a script, over real sockets."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from aiohttp import web

from astra_mesh.errors import MeshError
from astra_mesh.mesh.connect import PATH, websocket_handler
from astra_mesh.mesh.link import Link
from astra_mesh.mesh.session import Session
from astra_mesh.mesh.timings import Timings
from astra_mesh.mesh.trust import Known
from astra_mesh.wire.codec import AnyMessage
from astra_mesh.wire.messages import (
    MAGIC,
    PROTOCOL_VERSION,
    Ask,
    Cancel,
    Device,
    Hello,
    ListPeers,
    ModelId,
    ModelOffer,
    PeerId,
    PeerInfo,
    PeerReport,
    Peers,
    Plan,
    Planned,
    Report,
    Role,
    Shard,
    Subscribe,
    Task,
)
from tests.integration.secure import Caller

ME = PeerId("a" * 64)
OTHER = PeerId("b" * 64)
MODEL = ModelId("c" * 64)
TIMINGS = Timings().scaled(0.2)

PLAN = Plan(
    model=MODEL,
    codec="vq",
    codebook="",  # type: ignore[arg-type]
    shards=[Shard(peer=OTHER, start=0, stop=3), Shard(peer=ME, start=3, stop=6)],
    rates=[],
    answering=ME,
    class_token="none",
    predicted_s=0.01,
)
DEVICE = Device(host="h", cores=2.0, host_cores=2.0, threads=1, system="Linux test")
OFFER = ModelOffer(id=MODEL, name="toy", family="gpt2", tasks=[Task.GENERATE])


def report(new_tokens: int = 0) -> Report:
    return Report(
        plan=PLAN,
        predicted_s=0.01,
        actual_s=0.02,
        total_s=0.05,
        bits_per_token=32.0,
        peers=[
            PeerReport(
                peer=peer,
                tokens=3,
                compute_s=0.004,
                encode_s=0.001,
                decode_s=0.001,
                wait_s=0.002,
                finished_s=0.01,
                sent_bytes={ME: 120} if peer == OTHER else {},
            )
            for peer in (OTHER, ME)
        ],
        new_tokens=new_tokens,
        finish="length" if new_tokens else "",
    )


def planned(ask: Ask) -> Planned:
    return Planned(
        request=ask.request,
        plan=PLAN,
        names={ME: "fake", OTHER: "other"},
        bits_per_token=32.0,
        solo_s=0.02,
        reason="a test",
        prompt_tokens=6,
    )


def infos(count: int = 1) -> list[PeerInfo]:
    return [
        PeerInfo(
            peer=peer,
            name=name,
            address="127.0.0.1:1",
            self=peer == ME,
            device=DEVICE,
            models=[OFFER],
            round_trip_s=None if peer == ME else 0.002,
            send_bps=None if peer == ME else 5e7,
        )
        for peer, name in ((ME, "fake"), (OTHER, "other"))
    ][:count]


Script = Callable[["FakePeer", Link, AnyMessage], None]


@dataclasses.dataclass
class FakePeer:
    """What a test looks at and steers."""

    script: Script
    port: int = 0
    seen: list[AnyMessage] = dataclasses.field(default_factory=list)
    links: list[Link] = dataclasses.field(default_factory=list)
    peers: int = 1
    news: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self.port)

    async def saw(self, kind: type, seconds: float = 5.0) -> AnyMessage:
        """The first message of a type that a client sent."""
        async with asyncio.timeout(seconds):
            while True:
                for message in self.seen:
                    if isinstance(message, kind):
                        return message
                self.news.clear()
                await self.news.wait()

    async def run_link(self, link: Link, known: Known | None) -> None:
        assert known is not None
        self.links.append(link)

        def on_message(message: AnyMessage) -> None:
            self.seen.append(message)
            self.news.set()
            if isinstance(message, ListPeers):
                link.send(Peers(request=message.request, peers=infos(self.peers)))
            elif isinstance(message, Ask | Subscribe | Cancel):
                self.script(self, link, message)

        with suppress(MeshError):
            await link.run(on_message)
        self.news.set()


def nothing(peer: FakePeer, link: Link, message: AnyMessage) -> None:
    """A script that never answers."""


@asynccontextmanager
async def fake_peer(
    script: Script = nothing, version: int = PROTOCOL_VERSION, timings: Timings = TIMINGS
) -> AsyncIterator[FakePeer]:
    caller = await Caller.new()
    hello = Hello(
        magic=MAGIC,
        version=version,
        peer=caller.id,
        name="fake",
        role=Role.PEER,
        window_bytes=1 << 20,
        device=DEVICE,
        models=[OFFER],
    )
    peer = FakePeer(script)
    app = web.Application()
    app.router.add_get(
        PATH,
        websocket_handler(
            lambda known: Session(hello, timings),
            peer.run_link,
            timings=timings,
            whose=caller.trust.whose_connection,
        ),
    )
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=caller.tls.server)
    await site.start()
    peer.port = runner.addresses[0][1]
    try:
        yield peer
    finally:
        for link in peer.links:
            await link.close()
        await runner.cleanup()
