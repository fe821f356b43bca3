"""One running peer: links, models and requests put together."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

import platformdirs
import torch

from astra_mesh import limits
from astra_mesh.engine.compute import ComputeThread
from astra_mesh.errors import MeshError, PeerLostError
from astra_mesh.mesh.identity import Identity, ephemeral_identity, load_identity
from astra_mesh.mesh.link import Link
from astra_mesh.peer.config import PeerConfig
from astra_mesh.peer.device import this_device
from astra_mesh.peer.links import LinkKeeper
from astra_mesh.peer.local import LocalPeer, write_record
from astra_mesh.peer.models import ModelHost
from astra_mesh.peer.requests import Requests
from astra_mesh.wire.codec import AnyMessage, sanitise
from astra_mesh.wire.messages import (
    MAGIC,
    PROTOCOL_VERSION,
    Device,
    Event,
    Hello,
    ListPeers,
    PeerId,
    PeerInfo,
    Peers,
    RequestId,
    Role,
    Status,
    Subscribe,
)

log = logging.getLogger(__name__)

OnEvent = Callable[[Event], None]


class Peer:
    """A peer of the mesh. ``start`` and ``stop``, or ``async with``, or ``run`` until cancelled.

    Args:
        config: what a person may choose.
        on_event: called with what happens (peers that come and go, requests), for a log or page.
    """

    def __init__(self, config: PeerConfig, on_event: OnEvent = lambda event: None) -> None:
        self.config = config
        self.name = sanitise(config.name or platform.node() or "peer", limits.NAME_CHARS)
        self.id = PeerId("")
        self.device = Device(host="", cores=1, host_cores=1, threads=1)  # until started
        self._on_event = on_event
        self._compute = ComputeThread()
        self.models = ModelHost(config.models, self._compute, self._models_changed)
        self._hellos: dict[PeerId, Hello] = {}
        self._subscribers: dict[tuple[Link, RequestId], None] = {}
        self._links: LinkKeeper | None = None
        self._requests: Requests | None = None
        self._main: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()  # another peer's models, or the peers themselves

    # --- life -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Be ready for links and requests.

        Raises:
            PortInUseError, IdentityError, UnknownModelError: with what to do.
        """
        identity = await asyncio.to_thread(self._identity)
        self.id = identity.peer_id
        self.device = await asyncio.to_thread(this_device, self.config.threads)
        await self._compute(torch.set_num_threads, self.device.threads)
        await self.models.start()
        self._links = LinkKeeper(
            self.config, self.id, self._hello, self._on_message, self._on_closed
        )
        self._requests = Requests(self)
        await self._links.listen()
        self._main = asyncio.create_task(self._serve(), name="astra-mesh-peer")

    def _identity(self) -> Identity:
        if self.config.ephemeral:
            return ephemeral_identity()
        folder = self.config.state_dir or platformdirs.user_state_path("astra-mesh")
        return load_identity(folder)

    async def _serve(self) -> None:
        assert self._links is not None
        assert self._requests is not None
        record = None
        if not self.config.ephemeral:
            mine = LocalPeer(os.getpid(), self._links.port, self.id, self.name)
            record = await asyncio.to_thread(write_record, mine)
        try:
            async with asyncio.TaskGroup() as group:
                self._requests.group = group
                try:
                    await self._links.run()
                finally:
                    self._requests.close()
        finally:
            if record is not None:
                record.unlink(missing_ok=True)

    async def stop(self) -> None:
        """Say goodbye, end all requests, free everything. Safe to call twice."""
        if self._main is not None:
            self._main.cancel()
            with suppress(asyncio.CancelledError):
                await self._main
            self._main = None
        elif self._links is not None:
            await self._links.close_port()
        self._links = None
        await asyncio.to_thread(self._compute.close)

    async def run(self) -> None:
        """Start, serve until cancelled, stop."""
        async with self:
            assert self._main is not None
            await self._main

    async def __aenter__(self) -> Self:
        """As :meth:`start`."""
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """As :meth:`stop`."""
        await self.stop()

    # --- what others may know ---------------------------------------------------------------------

    @property
    def port(self) -> int:
        """Where this peer listens."""
        return self._links.port if self._links is not None else 0

    @property
    def discovery_problem(self) -> str | None:
        """Why peers are not found by themselves, for people; None if they are."""
        discovery = self._links.discovery if self._links is not None else None
        return discovery.problem if discovery is not None else None

    @property
    def compute(self) -> ComputeThread:
        """The thread for torch."""
        return self._compute

    def link(self, peer: PeerId) -> Link | None:
        """The open link to a peer."""
        return self._links.link(peer) if self._links is not None else None

    def others(self) -> dict[PeerId, Hello]:
        """Peers with an open link, and what they last told."""
        return {peer: hello for peer, hello in self._hellos.items() if self.link(peer)}

    async def others_changed(self) -> None:
        """Return when another peer came, went or told something new."""
        self._changed.clear()
        await self._changed.wait()

    def _hello(self) -> Hello:
        return Hello(
            magic=MAGIC,
            version=PROTOCOL_VERSION,
            peer=self.id,
            name=self.name,
            role=Role.PEER,
            window_bytes=limits.WINDOW_BYTES,
            device=self.device,
            models=self.models.offers(),
        )

    def _models_changed(self) -> None:
        for peer in list(self._hellos):
            link = self.link(peer)
            if link is not None:
                link.send(Status(models=self.models.offers()))

    # --- links ------------------------------------------------------------------------------------

    def _on_message(self, link: Link, message: AnyMessage) -> None:
        hello = link.peer
        assert hello is not None
        assert self._requests is not None
        if isinstance(message, Hello):
            if message.role is Role.PEER:
                known = message.peer in self._hellos
                self._hellos[message.peer] = message
                if not known:
                    self.tell("peer-joined", message.peer, message.name, link.address)
                self._changed.set()
        elif isinstance(message, Status):
            known_hello = self._hellos.get(hello.peer)
            if known_hello is not None:
                self._hellos[hello.peer] = _with_models(known_hello, message)
                self._changed.set()
        elif isinstance(message, ListPeers):
            link.send(Peers(request=message.request, peers=self.peer_list()))
        elif isinstance(message, Subscribe):
            self._subscribers[link, message.request] = None
        else:
            self._requests.on_message(link, hello, message)

    def _on_closed(self, link: Link, error: MeshError | None, last: bool) -> None:
        hello = link.peer
        assert hello is not None
        assert self._requests is not None
        for key in [key for key in self._subscribers if key[0] is link]:
            del self._subscribers[key]
        if hello.role is Role.CLIENT:
            self._requests.client_gone(link)
        elif last:
            self._hellos.pop(hello.peer, None)
            why = error.message if error is not None else "it said goodbye"
            log.info("%s (%s) is gone: %s", sanitise(hello.name), hello.peer[:8], why)
            lost = error or PeerLostError(f"{sanitise(hello.name)} left the mesh")
            self._requests.peer_gone(hello.peer, lost)
            self.tell("peer-left", hello.peer, hello.name, why)
            self._changed.set()

    def tell(self, kind: str, peer: str = "", name: str = "", text: str = "") -> None:
        """Pass an event to subscribers and the owner of this peer."""
        event = Event(
            request=RequestId(0), kind=kind, peer=peer, name=sanitise(name), text=sanitise(text)
        )
        self._on_event(event)
        for link, request in list(self._subscribers):
            with suppress(MeshError):
                link.send(_for_request(event, request))

    def peer_list(self) -> list[PeerInfo]:
        """The mesh as this peer sees it, itself first."""
        mine = PeerInfo(
            peer=self.id,
            name=self.name,
            address=f"port {self.port}",
            self=True,
            device=self.device,
            models=self.models.offers(),
        )
        found = [mine]
        for peer, hello in self.others().items():
            link = self.link(peer)
            if link is None or hello.device is None:
                continue
            found.append(
                PeerInfo(
                    peer=peer,
                    name=hello.name,
                    address=link.address,
                    self=False,
                    device=hello.device,
                    models=hello.models,
                    round_trip_s=link.round_trip_s,
                    send_bps=link.send_bps,
                    receive_bps=link.receive_bps,
                )
            )
        return found


def _with_models(hello: Hello, status: Status) -> Hello:
    return Hello(
        magic=hello.magic,
        version=hello.version,
        peer=hello.peer,
        name=hello.name,
        role=hello.role,
        window_bytes=hello.window_bytes,
        device=hello.device,
        models=status.models,
    )


def _for_request(event: Event, request: RequestId) -> Event:
    return Event(
        request=request, kind=event.kind, peer=event.peer, name=event.name, text=event.text
    )
