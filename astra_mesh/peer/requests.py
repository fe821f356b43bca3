"""The requests that run on a peer: those it answers, and those it takes part in."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from astra_mesh import limits
from astra_mesh.errors import (
    AstraMeshError,
    BusyError,
    InternalError,
    MeshError,
    ProtocolError,
)
from astra_mesh.mesh.link import Link
from astra_mesh.peer.answer import Answer, Surroundings, new_request
from astra_mesh.peer.exchange import MeshExchange
from astra_mesh.peer.models import Loaded
from astra_mesh.peer.part import NotTakingPartError, Participation
from astra_mesh.plan.cost import Candidate
from astra_mesh.plan.cost import Link as LinkProfile
from astra_mesh.wire.codec import AnyMessage, sanitise
from astra_mesh.wire.messages import (
    Accept,
    Ask,
    Cancel,
    CodebookId,
    Codes,
    Done,
    Fail,
    Hello,
    ModelId,
    ModelOffer,
    PeerId,
    Planned,
    Pooled,
    Prepare,
    Propose,
    Reason,
    Refuse,
    RequestId,
    Result,
    Token,
)

if TYPE_CHECKING:
    from astra_mesh.peer.peer import Peer

log = logging.getLogger(__name__)


class Requests:
    """All requests of one peer. Each runs as one task of ``group``."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self.group: asyncio.TaskGroup | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._answers: dict[tuple[Link, RequestId], asyncio.Task[None]] = {}
        self._running: dict[RequestId, Answer] = {}  # by the id that the mesh knows
        self._parts: dict[RequestId, tuple[Participation, asyncio.Task[None]]] = {}
        self._exchanges: dict[RequestId, MeshExchange] = {}
        self._early = EarlyCodes()

    def close(self) -> None:
        """Cancel everything."""
        for task in list(self._tasks):
            task.cancel()
        self._early.clear()

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        assert self.group is not None
        task = self.group.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- messages ---------------------------------------------------------------------------------

    def on_message(self, link: Link, hello: Hello, message: AnyMessage) -> None:
        """Handle a message of a request; ProtocolError ends the link."""
        if isinstance(message, Codes | Pooled):
            self._codes(link, hello.peer, message)
        elif isinstance(message, Token):
            link.consumed(message)
        elif isinstance(message, Ask):
            self._ask(link, message)
        elif isinstance(message, Propose):
            self._propose(link, message)
        elif isinstance(message, Prepare):
            self._spawn(self._prepare(link, message), "prepare")
        elif isinstance(message, Accept | Refuse | Done | Fail):
            answer = self._running.get(message.request)
            if answer is not None:
                answer.on_message(hello.peer, message)
        elif isinstance(message, Cancel):
            self._cancel(link, message.request)

    def _codes(self, link: Link, sender: PeerId, message: Codes | Pooled) -> None:
        exchange = self._exchanges.get(message.request)
        if exchange is None:
            self._early.put(link, sender, message)
            return
        try:
            exchange.take(sender, message)
        finally:
            link.consumed(message)

    def open_exchange(self, exchange: MeshExchange) -> None:
        """Deliver codes of a request from now on, first those that came early."""
        self._exchanges[exchange.request] = exchange
        for link, sender, message in self._early.take(exchange.request):
            try:
                exchange.take(sender, message)
            except ProtocolError as error:
                link.refuse(Reason.BAD_MESSAGE, sanitise(error.message))
            link.consumed(message)

    def close_exchange(self, request: RequestId) -> None:
        """Deliver no more codes of a request."""
        self._exchanges.pop(request, None)
        self._running.pop(request, None)
        for link, _, message in self._early.take(request):
            link.consumed(message)

    def peer_gone(self, peer: PeerId, error: MeshError) -> None:
        """A peer is lost: what waits for it ends or is planned again."""
        self._early.drop_peer(peer)
        for answer in list(self._running.values()):
            answer.failed(peer, error)
        for part, task in list(self._parts.values()):
            coordinator = part.link.peer
            if coordinator is not None and coordinator.peer == peer:
                task.cancel()
            else:
                part.lost(peer, error)

    # --- answering --------------------------------------------------------------------------------

    def _ask(self, link: Link, ask: Ask) -> None:
        if len(self._answers) + len(self._parts) >= limits.REQUESTS_PER_PEER:
            busy = BusyError(f"{self._peer.name} has as many requests as it takes; try again later")
            link.send(Fail(request=ask.request, code=busy.code, text=sanitise(busy.message)))
            return
        task = self._spawn(self._answer(link, ask), "answer")
        self._answers[link, ask.request] = task
        task.add_done_callback(lambda _: self._answers.pop((link, ask.request), None))

    async def _answer(self, link: Link, ask: Ask) -> None:
        async def emit(message: Planned | Token | Result) -> None:
            link.send(message)
            await link.drain()

        def open_exchange(exchange: MeshExchange) -> None:
            self._running[exchange.request] = answer
            self.open_exchange(exchange)

        around = Surroundings(
            me=self._candidate_me,
            candidates=self._candidates,
            links=self._profiles,
            find_link=self._peer.link,
            open_exchange=open_exchange,
            close_exchange=self.close_exchange,
        )
        answer = Answer(ask, self._peer.models, self._peer.compute, around, emit)
        self._peer.tell("request-started", text=f"{ask.task.value} with {ask.model}")
        outcome = "cancelled"
        try:
            await answer.run()
            outcome = "answered"
        except AstraMeshError as error:
            outcome = error.message
            self._fail(link, ask.request, error)
        except Exception as error:
            outcome = "an error of this peer"
            log.exception("a request failed")
            kind = type(error).__name__
            text = f"{self._peer.name} met an error of its own ({kind}); its log says more"
            self._fail(link, ask.request, InternalError(text))
        finally:
            self._peer.tell("request-ended", text=outcome)

    def _fail(self, link: Link, request: RequestId, error: AstraMeshError) -> None:
        with suppress(MeshError):
            link.send(Fail(request=request, code=error.code, text=sanitise(error.message)))

    def client_gone(self, link: Link) -> None:
        """A client's link is over: cancel what it asked."""
        for (at, _), task in list(self._answers.items()):
            if at is link:
                task.cancel()

    def _cancel(self, link: Link, request: RequestId) -> None:
        task = self._answers.get((link, request))
        if task is not None:
            task.cancel()
        found = self._parts.get(request)
        if found is not None and found[0].link is link:
            found[1].cancel()

    # --- what planning needs ----------------------------------------------------------------------

    def _candidate_me(self, loaded: Loaded) -> Candidate:
        offer = self._peer.models.offer(loaded.bundle.model_id)
        timing = offer.timing if offer is not None else None
        assert timing is not None  # it is loaded
        return Candidate(self._peer.id, self._peer.name, self._peer.device, timing)

    async def _candidates(self, loaded: Loaded, codebook: CodebookId) -> list[Candidate]:
        """Other peers with this model and codebook, loaded and measured there."""
        model = loaded.bundle.model_id
        asked: set[PeerId] = set()
        with suppress(TimeoutError):
            async with asyncio.timeout(limits.PREPARE_TIMEOUT_S):
                while True:
                    offers = self._offers(model, codebook)
                    for peer, offer in offers.items():
                        if offer.timing is None and peer not in asked:
                            asked.add(peer)
                            self._ask_to_prepare(peer, offer)
                    if all(offer.timing is not None for offer in offers.values()):
                        break
                    await self._peer.others_changed()
        hellos = self._peer.others()
        found = []
        for peer, offer in self._offers(model, codebook).items():
            device = hellos[peer].device
            if device is not None and offer.timing is not None:
                found.append(Candidate(peer, hellos[peer].name, device, offer.timing))
        return found

    def _offers(self, model: ModelId, codebook: CodebookId) -> dict[PeerId, ModelOffer]:
        found = {}
        for peer, hello in self._peer.others().items():
            for offer in hello.models:
                has_book = not codebook or any(book.id == codebook for book in offer.codebooks)
                if offer.id == model and has_book:
                    found[peer] = offer
        return found

    def _ask_to_prepare(self, peer: PeerId, offer: ModelOffer) -> None:
        link = self._peer.link(peer)
        if link is not None:
            link.send(Prepare(request=new_request(), model=offer.id))

    def _profiles(self) -> Mapping[tuple[PeerId, PeerId], LinkProfile]:
        """Links of this peer, both ways; of links between others nothing is known yet."""
        found: dict[tuple[PeerId, PeerId], LinkProfile] = {}
        default = LinkProfile()
        for peer in self._peer.others():
            link = self._peer.link(peer)
            if link is None:
                continue
            delay = link.round_trip_s if link.round_trip_s is not None else default.round_trip_s
            found[self._peer.id, peer] = LinkProfile(delay, link.send_bps or default.bps)
            found[peer, self._peer.id] = LinkProfile(delay, link.receive_bps or default.bps)
        return found

    async def _prepare(self, link: Link, message: Prepare) -> None:
        try:
            await self._peer.models.load(message.model)
        except AstraMeshError as error:
            self._fail(link, message.request, error)

    # --- taking part ------------------------------------------------------------------------------

    def _propose(self, link: Link, propose: Propose) -> None:
        part = Participation(propose, link, self._peer.id, self._peer.models, self._peer.compute)
        if len(self._answers) + len(self._parts) >= limits.REQUESTS_PER_PEER:
            part.refuse(Reason.BUSY, "")
            return
        task = self._spawn(self._take_part(part), "part")
        self._parts[propose.request] = (part, task)
        task.add_done_callback(lambda _: self._parts.pop(propose.request, None))

    async def _take_part(self, part: Participation) -> None:
        request = part.propose.request
        try:
            try:
                pipeline = await part.prepare(self._peer.link)
            except NotTakingPartError as error:
                part.refuse(error.reason, error.text)
                return
            assert part.exchange is not None
            self.open_exchange(part.exchange)
            part.accept()
            if not await part.run(pipeline):
                part.exchange.abandon()
        except asyncio.CancelledError:
            if part.exchange is not None:
                part.exchange.abandon()
            raise
        finally:
            self.close_exchange(request)


class EarlyCodes:
    """Codes that overtook their proposal on another link: few, for a short time."""

    def __init__(self) -> None:
        self._held: dict[RequestId, list[tuple[Link, PeerId, Codes | Pooled]]] = {}
        self._sizes: dict[Link, int] = {}

    def put(self, link: Link, sender: PeerId, message: Codes | Pooled) -> None:
        """Hold a message; ProtocolError if its sender makes us hold too much."""
        size = len(message.data if isinstance(message, Codes) else message.vector)
        self._sizes[link] = self._sizes.get(link, 0) + size
        if self._sizes[link] > limits.EARLY_CODES_BYTES:
            raise ProtocolError("too many codes for requests that are not known here")
        if message.request not in self._held:
            loop = asyncio.get_running_loop()
            loop.call_later(limits.EARLY_CODES_S, self._expire, message.request)
        self._held.setdefault(message.request, []).append((link, sender, message))

    def take(self, request: RequestId) -> list[tuple[Link, PeerId, Codes | Pooled]]:
        """What came early for a request; the caller gives back the credit."""
        found = self._held.pop(request, [])
        for link, _, message in found:
            size = len(message.data if isinstance(message, Codes) else message.vector)
            self._sizes[link] -= size
            if not self._sizes[link]:
                del self._sizes[link]
        return found

    def _expire(self, request: RequestId) -> None:
        for link, _, message in self.take(request):
            link.consumed(message)

    def drop_peer(self, peer: PeerId) -> None:
        """Forget what a lost peer sent."""
        for request, held in list(self._held.items()):
            if any(sender == peer for _, sender, _ in held):
                kept = [item for item in self.take(request) if item[1] != peer]
                for link, sender, message in kept:
                    self.put(link, sender, message)

    def clear(self) -> None:
        """Forget everything."""
        self._held.clear()
        self._sizes.clear()
