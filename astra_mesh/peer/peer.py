"""One running peer: links, models and requests put together."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp
import platformdirs
import torch
from msgspec.structs import replace

from astra_mesh import limits
from astra_mesh.engine.compute import ComputeThread
from astra_mesh.errors import MeshError, NoPeerError, PeerLostError, ProtocolError
from astra_mesh.mesh.connect import Address
from astra_mesh.mesh.identity import load_identity
from astra_mesh.mesh.link import Link
from astra_mesh.mesh.trust import Trust
from astra_mesh.peer import tasks, view
from astra_mesh.peer.config import PeerConfig
from astra_mesh.peer.device import this_device
from astra_mesh.peer.figures import LinkFigures
from astra_mesh.peer.likelihoods import Likelihoods
from astra_mesh.peer.links import LinkKeeper
from astra_mesh.peer.local import (
    LocalPeer,
    follow_problem,
    local_peers,
    remove_record,
    write_record,
)
from astra_mesh.peer.measured import Measured
from astra_mesh.peer.models import ModelHost
from astra_mesh.peer.pace import follow_pace
from astra_mesh.peer.recorder import Recorder
from astra_mesh.peer.requests import Requests
from astra_mesh.peer.security import Security
from astra_mesh.peer.sending import send_if_open
from astra_mesh.peer.share import Share
from astra_mesh.peer.slots import Slot, claim
from astra_mesh.peer.tabs import Tabs
from astra_mesh.peer.watch import Watch
from astra_mesh.wire.codec import AnyMessage, sanitise
from astra_mesh.wire.messages import (
    MAGIC,
    PROTOCOL_VERSION,
    Cancel,
    Device,
    DeviceId,
    Event,
    Hello,
    ListPeers,
    ModelId,
    PeerId,
    PeerInfo,
    Peers,
    RequestId,
    RequestNews,
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
        self.name = sanitise(config.name or platform.node(), limits.NAME_CHARS) or "peer"
        self.id = PeerId("")
        self.device = Device(host="", cores=1, host_cores=1, threads=1)  # until started
        self._on_event = on_event
        self._compute = ComputeThread()
        self.models = ModelHost(
            config.models,
            self._compute,
            self._tell_status,
            config.precision,
            Measured(_measured_folder(config)),
            tables=not config.low_memory,
        )
        self.models.holders = partial(view.holders_of, self)
        self.watch = Watch()
        self.likelihoods = Likelihoods()
        self.tabs = Tabs()  # that take part through this peer
        self.figures = LinkFigures()
        self._hellos: dict[PeerId, Hello] = {}
        self._away: set[PeerId] = set()  # of those: nothing is heard of them
        self._subscribers: dict[tuple[Link, RequestId], None] = {}
        self._links: LinkKeeper | None = None
        self._requests: Requests | None = None  # from the moment on at which links can open
        self._main: asyncio.Task[None] | None = None
        self._slot: Slot | None = None
        self.trust: Trust | None = None  # once started
        self._record: LocalPeer | None = None
        self._life = asyncio.Lock()  # start and stop take turns
        self._used = False
        self._changed = asyncio.Event()  # another peer's models, or the peers themselves

    # --- life -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Be ready for links and requests; once. An error, or cancelling it, leaves nothing behind.

        Raises:
            PortInUseError, IdentityError, UnknownModelError: with what to do.
        """
        async with self._life:
            if self._used:
                raise RuntimeError("a peer starts once; make another")
            self._used = True
            try:
                await self._start()
            except BaseException:
                await self._end()
                raise

    async def _start(self) -> None:
        security = await self._compute(self._secured)
        self.id = security.identity.peer_id
        self.device = await asyncio.to_thread(this_device, self.config.threads)
        await self._compute(torch.set_num_threads, self.device.threads)
        await self.models.start()
        share = Share(self.models.bundle, self._is_busy)
        self._links = LinkKeeper(
            self.config,
            security,
            self._hello,
            self._on_message,
            self._on_closed,
            lambda peer, name: self.tell("unpaired-found", peer, name),
            self._on_silence,
            share.add_routes,
            self.tabs,
            self._is_busy,
        )
        await self._links.listen()
        if not self.config.ephemeral:
            assert self.trust is not None
            chosen = self.config.state_dir
            self._record = LocalPeer(
                os.getpid(),
                self._links.port,
                self.id,
                self.name,
                self.config.listen or "",
                device=self.trust.device.id,
                state=str(chosen.absolute()) if chosen else "",
            )
            await self._compute(_try_to_write, self._record)
        self._main = tasks.start_main("astra-mesh-peer", self._serve, self._links)

    def _state_folder(self) -> Path:
        return self.config.state_dir or platformdirs.user_state_path("astra-mesh")

    def _secured(self) -> Security:
        ephemeral = self.config.ephemeral  # its name goes with it: the device is not called so
        self.trust = trust = Trust.open(self.config.trust_dir, "" if ephemeral else self.name)
        if ephemeral:
            return Security(trust, trust.device.issue())
        self._slot = claim(self._state_folder())
        return Security(trust, load_identity(self._slot.folder, trust.device))

    async def _serve(self, links: LinkKeeper) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                folder = self.config.record
                recorder = None if folder is None else Recorder(folder, self.id, self.name)
                self._requests = requests = Requests(self, group, recorder)
                tasks.start(group, "new models", self.models.watch)
                tasks.start(group, "figures of links", self._tell_figures)
                if self.config.preload and not self.config.low_memory:
                    tasks.start(group, "models loaded ahead", self._preload)
                if self.config.pulse:
                    tasks.start(group, "the pulse", self._follow_pace)
                if self._record is not None:
                    args = (self._record, self._alone_because, self._compute)
                    tasks.start(group, "the record", follow_problem, *args)
                try:
                    await links.run()
                finally:
                    requests.close()
        except Exception:
            log.exception("the peer ended by an error of its own")
            raise

    async def _preload(self) -> None:
        await asyncio.sleep(limits.PRELOAD_AFTER_S)
        others = await asyncio.to_thread(local_peers)
        await self.models.preload(lambda: not self._is_busy(), len(others))

    async def _follow_pace(self) -> None:
        idle, wanted = (lambda: not self._is_busy()), (lambda: bool(self.others()))
        await follow_pace(self.models, idle, wanted)

    async def stop(self) -> None:
        """Say goodbye, end all requests, free everything. It waits for a start that is under way,
        and may be called twice. Cancelling it cuts the goodbyes short.
        """
        async with self._life:
            self._used = True
            await self._end()

    async def _end(self) -> None:
        try:
            if self._main is not None:
                self._main.cancel()
                await asyncio.wait([self._main])
                if not self._main.cancelled():
                    self._main.exception()  # it is in the log
        finally:
            self._main = None
            if self._links is not None:
                await self._links.close_port()
            self._links = None
            await asyncio.to_thread(self._compute.close)  # a start that was cut short ends there
            if self._slot is not None:
                self._slot.release()
            if self._record is not None:
                await asyncio.to_thread(remove_record, self._record)
            self._record = None

    async def run(self) -> None:
        """Start, serve until cancelled or stopped, stop."""
        async with self:
            main = self._main
            assert main is not None
            await asyncio.wait([main])
            if not main.cancelled():
                main.result()

    async def __aenter__(self) -> Self:
        """As :meth:`start`."""
        await self.start()
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

    def _alone_because(self) -> str | None:
        if not self.config.discovery:
            return "it was started with --no-discovery"
        discovery = self._links.discovery if self._links is not None else None
        return discovery.problem or "" if discovery is not None and discovery.has_tried else None

    @property
    def compute(self) -> ComputeThread:
        """The thread for torch."""
        return self._compute

    def link(self, peer: PeerId) -> Link | None:
        """The open link to a peer."""
        return self._links.link(peer) if self._links is not None else None

    def device_of(self, peer: PeerId) -> DeviceId | None:
        """The device of a linked peer, as its certificate proves; None of a tab."""
        return self._links.device_of(peer) if self._links is not None else None

    def may_be_back(self, peer: PeerId) -> bool:
        """Whether a link to a peer was lost, or fell silent, so lately that it may be a blip."""
        return self._links is not None and self._links.may_be_back(peer)

    async def open_relay(self, to: PeerId) -> aiohttp.ClientWebSocketResponse:
        """A WebSocket for a channel of a tab that this peer serves, to a linked peer or itself.

        Raises:
            NoPeerError, NotPairedError: It cannot be reached.
        """
        hello = self.others().get(to)
        if self._links is None or (hello is None and to != self.id):
            raise NoPeerError("there is no link to that peer")
        return await self._links.open_relay(to, hello)

    def others(self) -> dict[PeerId, Hello]:
        """Peers with an open link, and what they last told."""
        return {peer: hello for peer, hello in self._hellos.items() if self.link(peer)}

    async def others_changed(self) -> None:
        """Return when another peer came, went or told something new."""
        self._changed.clear()
        await self._changed.wait()

    def retry_s(self, admitted: int) -> float:
        """When it is worth asking again, seconds, where so many requests were let in."""
        return limits.RETRY_LEAST_S if self._requests is None else self._requests.retry_s(admitted)

    def _is_busy(self) -> bool:
        return self._requests is not None and self._requests.running

    def note_change(self) -> None:
        """Something that :meth:`others_changed` waits for happened."""
        self._changed.set()

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
            port=self.port,
        )

    def _tell_status(self) -> None:
        for peer in list(self._hellos):
            link = self.link(peer)
            if link is not None:
                self.send_status(link)

    def send_status(self, link: Link) -> None:
        """Tell another peer which models there are now, and how the links are."""
        send_if_open(link, Status(models=self.models.offers(), links=self.figures.own))

    async def _tell_figures(self) -> None:
        """Until cancelled: tell the others how the links of this peer are, when that changed."""
        while True:
            await asyncio.sleep(limits.LINKS_TELL_S)
            if self.figures.renew(view.own_links(self)):
                self._tell_status()

    # --- links ------------------------------------------------------------------------------------

    def _on_message(self, link: Link, message: AnyMessage) -> None:
        hello = link.peer
        assert hello is not None
        assert self._requests is not None
        if isinstance(message, Hello):
            if message.role is Role.PEER:
                known = message.peer in self._hellos
                self._hellos[message.peer] = message
                if known and message.peer in self._away:
                    self._back(message, link)
                if not known:
                    self.tell("peer-joined", message.peer, message.name, link.address)
                self.note_change()
        elif isinstance(message, Status):
            known_hello = self._hellos.get(hello.peer)
            if known_hello is not None:
                self._hellos[hello.peer] = replace(known_hello, models=message.models)
                place = view.place(self, link, known_hello)
                self.figures.take(hello.peer, message.links, place[0] if place else "")
                self._follow_figures()
                self.note_change()
        elif isinstance(message, ListPeers):
            strangers = self._links.strangers() if self._links is not None else []
            answer = Peers(message.request, self.peer_list(), strangers)
            send_if_open(link, answer)
        elif isinstance(message, Subscribe):
            self._subscribers[link, message.request] = None
        elif isinstance(message, Cancel) and (link, message.request) in self._subscribers:
            del self._subscribers[link, message.request]
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
            return
        name = sanitise(hello.name)
        lost = error or PeerLostError(f"{name} left the mesh")
        self._requests.link_gone(link, hello.peer, lost)
        if last:
            self._hellos.pop(hello.peer, None)
            self.figures.forget(hello.peer)
            self._follow_figures()
            why = error.message if error is not None else "it said goodbye"
            level = logging.WARNING if isinstance(error, ProtocolError) else logging.INFO
            log.log(level, "%s (%s) is gone: %s", name, hello.peer[:8], why)
            if hello.peer not in self._away:
                self.tell("peer-left", hello.peer, hello.name, why)
            self._away.discard(hello.peer)
        self.note_change()

    def _follow_figures(self) -> None:
        if self._links is not None:
            self._links.hear(self.figures.places())

    def _on_silence(self, link: Link) -> None:
        """Nothing is heard of a peer: it is listed and planned with no more until it is back."""
        hello = link.peer
        assert hello is not None
        away = self.link(hello.peer) is None
        if away and hello.peer not in self._away:
            self._away.add(hello.peer)
            self.tell(
                "peer-left",
                hello.peer,
                hello.name,
                f"lost {sanitise(hello.name)}: nothing is heard of it",
            )
        elif not away and hello.peer in self._away:
            self._back(hello, link)
        self.note_change()

    def _back(self, hello: Hello, link: Link) -> None:
        self._away.discard(hello.peer)
        self.tell("peer-joined", hello.peer, hello.name, link.address)

    def tell(
        self,
        kind: str,
        peer: str = "",
        name: str = "",
        text: str = "",
        about: RequestNews | None = None,
    ) -> None:
        """Pass an event to subscribers and the owner of this peer."""
        event = Event(
            request=RequestId(0),
            kind=kind,
            peer=peer,
            name=sanitise(name),
            text=sanitise(text),
            about=about,
        )
        try:
            self._on_event(event)
        except Exception:
            log.exception("the owner of this peer failed to take an event")
        for link, request in list(self._subscribers):
            send_if_open(link, replace(event, request=request))

    def elsewhere(self, model: ModelId) -> list[str]:
        """Addresses of other peers that hold a model and answer for it."""
        return view.elsewhere(self, model)

    def address_of(self, peer: PeerId) -> str:
        """Where a client can ask another peer; "" where it cannot."""
        return view.address_of(self, peer)

    def announced(self, peer: PeerId) -> Address | None:
        """Where a peer said that it can be dialled; None if it did not."""
        return self._links.place(peer) if self._links is not None else None

    def peer_list(self) -> list[PeerInfo]:
        """The mesh as this peer sees it, itself first."""
        return view.peer_list(self)


def _measured_folder(config: PeerConfig) -> Path:
    return (config.state_dir or platformdirs.user_cache_path("astra-mesh")) / "measured"


def _try_to_write(record: LocalPeer) -> None:
    try:
        write_record(record)
    except OSError as error:
        log.warning("clients on this machine will not find this peer by itself: %s", error)
