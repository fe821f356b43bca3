"""A browser tab without a browser: it joins ``/tab``, opens channels, and may be a whole peer."""

from __future__ import annotations

import asyncio
import json
import ssl
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import aiohttp
from aiohttp import WSMessage, WSMsgType
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec.structs import replace

from astra_mesh.errors import MeshError, ProtocolError
from astra_mesh.mesh.identity import Identity, peer_id
from astra_mesh.mesh.link import Link
from astra_mesh.mesh.sealed import Speaker
from astra_mesh.mesh.sealed_socket import SealedSocket, answer_sealed, open_sealed
from astra_mesh.mesh.session import Session
from astra_mesh.mesh.timings import Timings
from astra_mesh.mesh.trust import Known, Trust
from astra_mesh.peer import Peer, PeerConfig, tasks
from astra_mesh.peer.links import LinkKeeper
from astra_mesh.peer.security import Security
from astra_mesh.web import ApiServer
from astra_mesh.wire.messages import Hello, PeerId

WAIT_S = 20.0


class ChannelSocket:
    """One channel of a tab, as a socket."""

    def __init__(self, tab: TabClient, number: int, peer: PeerId) -> None:
        self._tab, self.number, self.peer = tab, number, peer
        self._came: asyncio.Queue[WSMessage] = asyncio.Queue()
        self.why: str | None = None  # once it was closed by the other side

    def put(self, data: bytes) -> None:
        self._came.put_nowait(WSMessage(WSMsgType.BINARY, data, None))

    def ended(self, why: str) -> None:
        self.why = why
        self._came.put_nowait(WSMessage(WSMsgType.CLOSED, None, None))

    async def receive(self) -> WSMessage:
        return await self._came.get()

    async def send_bytes(self, data: bytes) -> None:
        await self._tab.socket.send_bytes(self.number.to_bytes(4, "big") + data)

    async def close(self) -> bool:
        if self._tab.channels.pop(self.number, None) is not None:
            with suppress(ConnectionError):
                await self._tab.say(type="close", channel=self.number)
        return True


class TabClient:
    """What a page does with the WebSocket of ``/tab``. Made by :func:`joined`."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.welcome: dict[str, Any] = {}
        self.peers: list[dict[str, Any]] = []
        self.refused: str | None = None
        self.channels: dict[int, ChannelSocket] = {}
        self.incoming: asyncio.Queue[ChannelSocket] = asyncio.Queue()
        self.news = asyncio.Event()
        self._next = 1

    @property
    def id(self) -> PeerId:
        return PeerId(self.welcome["peer"])

    @property
    def speaker(self) -> Speaker:
        return Speaker.with_key(b64decode(self.welcome["certificate"]), self.key)

    @property
    def identity(self) -> Identity:
        pem = self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        certificate = ssl.DER_cert_to_PEM_cert(self.speaker.certificate).encode()
        return Identity(self.id, certificate, pem)

    async def say(self, **message: object) -> None:
        await self.socket.send_str(json.dumps(message))

    @property
    def point(self) -> bytes:
        form = serialization.PublicFormat.UncompressedPoint
        return self.key.public_key().public_bytes(serialization.Encoding.X962, form)

    async def join(self, name: str = "tab") -> None:
        await self.say(type="join", key=b64encode(self.point).decode(), name=name)

    async def read(self) -> None:
        """Take what comes until the connection ends; then all channels are over."""
        async for message in self.socket:
            if message.type is WSMsgType.BINARY:
                number = int.from_bytes(message.data[:4], "big")
                if number in self.channels:
                    self.channels[number].put(message.data[4:])
            else:
                self._take(message.json())
            self.news.set()
        for channel in self.channels.values():
            channel.ended("the tab's connection ended")
        self.news.set()

    def _take(self, message: dict[str, Any]) -> None:
        kind = message.pop("type")
        if kind == "welcome":
            self.welcome = message
        elif kind == "peers":
            self.peers = message["peers"]
        elif kind == "refused":
            self.refused = message["why"]
        elif kind == "open":
            channel = ChannelSocket(self, message["channel"], PeerId(message["from"]))
            self.channels[channel.number] = channel
            self.incoming.put_nowait(channel)
        elif kind == "closed":
            closed = self.channels.pop(message["channel"], None)
            if closed is not None:
                closed.ended(message["why"])
        else:
            raise AssertionError(f"an unknown message {kind}")

    async def open(self, to: PeerId) -> ChannelSocket:
        channel = ChannelSocket(self, self._next, to)
        self.channels[self._next] = channel
        self._next += 2
        await self.say(type="open", channel=channel.number, to=to)
        return channel

    async def sealed(self, to: PeerId) -> SealedSocket:
        return await open_sealed(await self.open(to), self.speaker, to)


@asynccontextmanager
async def connected(server: ApiServer, **options: Any) -> AsyncIterator[TabClient]:
    """The WebSocket of a tab that has said nothing yet."""
    url = server.url.removesuffix("/v1") + "/tab"
    async with aiohttp.ClientSession() as http:
        socket = await http.ws_connect(url, max_msg_size=2**25, compress=0, **options)
        tab = TabClient(socket)
        reading = asyncio.create_task(tab.read())
        try:
            yield tab
        finally:
            await socket.close()
            reading.cancel()
            await asyncio.wait([reading])


@asynccontextmanager
async def joined(server: ApiServer, **options: Any) -> AsyncIterator[TabClient]:
    """A tab that was welcomed, and knows who is here."""
    async with connected(server, **options) as tab:
        await tab.join()
        async with asyncio.timeout(WAIT_S):
            while not tab.peers:
                tab.news.clear()
                await tab.news.wait()
        yield tab


# --- a whole peer in a tab ------------------------------------------------------------------------


class TabKeeper(LinkKeeper):
    """Links of a tab: over channels, to everybody whom its host names."""

    tab: TabClient

    async def listen(self) -> None:
        """A tab has no port."""

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                self._running.set()
                tasks.start(group, "channels that come in", self._answer)
                try:
                    await self._open_all(group)
                finally:
                    await self._say_goodbye()
        finally:
            self._group = None

    async def _open_all(self, group: asyncio.TaskGroup) -> None:
        opened: dict[PeerId, asyncio.Task[None]] = {}
        while True:
            self.tab.news.clear()
            for one in self.tab.peers:
                peer = PeerId(one["id"])
                mine = not one["tab"] or self._me < peer
                if mine and (peer not in opened or opened[peer].done()):
                    opened[peer] = tasks.start(group, "a channel", self._open, peer)
            await self.tab.news.wait()

    async def _open(self, peer: PeerId) -> None:
        with suppress(MeshError):
            await self._link(await self.tab.sealed(peer), peer, dialled=True)

    async def _answer(self) -> None:
        assert self._group is not None
        while True:
            channel = await self.tab.incoming.get()
            tasks.start(self._group, "a channel that came in", self._take_in, channel)

    async def _take_in(self, channel: ChannelSocket) -> None:
        def judge(certificate: bytes) -> Known:
            if peer_id(certificate) != channel.peer:
                raise ProtocolError("another one than the host named")
            return self._known(channel.peer)

        with suppress(MeshError):
            sealed, _ = await answer_sealed(channel, self.tab.speaker, judge)
            await self._link(sealed, channel.peer, dialled=False)

    async def _link(self, sealed: SealedSocket, peer: PeerId, *, dialled: bool) -> None:
        session = Session(self._make_hello(), self._config.timings, peer)
        link = Link(sealed, session, timings=self._config.timings, dialled=dialled, address="relay")
        await self._drive(link, self._known(peer), None)

    def _known(self, peer: PeerId) -> Known:
        return Known(peer, self._security.trust.device.id)


class TabPeer(Peer):
    """A peer whose links all go through another one."""

    def __init__(self, config: PeerConfig, tab: TabClient) -> None:
        super().__init__(config)
        self.tab = tab

    def _secured(self) -> Security:
        self.trust = Trust.open(self.config.trust_dir)
        return Security(self.trust, self.tab.identity)

    def _hello(self) -> Hello:
        device = replace(self.device, host=self.tab.welcome["machine"])
        return replace(super()._hello(), via=self.tab.welcome["host"]["id"], device=device)


@asynccontextmanager
async def tab_peer(
    server: ApiServer,
    name: str,
    models: Path,
    timings: Timings | None = None,
    *,
    loads: bool = True,
) -> AsyncIterator[TabPeer]:
    """A tab that computes, its models loaded; or one that has loaded none yet."""
    async with joined(server) as tab:
        config = PeerConfig(
            name=name,
            threads=1,
            discovery=False,
            ephemeral=True,
            models=tuple(str(path) for path in sorted(models.iterdir())),
            timings=timings or Timings(),
        )
        peer = TabPeer(config, tab)
        made = type("Keeper", (TabKeeper,), {"tab": tab})
        with patch("astra_mesh.peer.peer.LinkKeeper", made):
            await peer.start()
        try:
            for offer in peer.models.offers() if loads else ():
                await peer.models.load(offer.id)  # coordinators wait for tabs only a little
            yield peer
        finally:
            await peer.stop()
