"""The requests that run on a peer: those it answers, and those it takes part in."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING

from astra_mesh import limits
from astra_mesh.engine.timeline import Timeline
from astra_mesh.errors import AstraMeshError, BusyError, InternalError, MeshError, ProtocolError
from astra_mesh.mesh.link import Link
from astra_mesh.peer import tasks
from astra_mesh.peer.answer import Answer, new_request
from astra_mesh.peer.candidates import Candidates
from astra_mesh.peer.early import EarlyCodes
from astra_mesh.peer.exchange import MeshExchange
from astra_mesh.peer.part import Participation
from astra_mesh.peer.participants import Participants
from astra_mesh.peer.recorder import Recorder
from astra_mesh.peer.sending import send_if_open
from astra_mesh.peer.spot_check import SpotChecks
from astra_mesh.peer.surroundings import Surroundings
from astra_mesh.peer.turns import Turns
from astra_mesh.peer.watch import Shown, Watch
from astra_mesh.wire.codec import AnyMessage, sanitise
from astra_mesh.wire.messages import (
    Accept,
    Ask,
    Cancel,
    Codes,
    Done,
    Fail,
    Hello,
    ModelId,
    PeerId,
    Plan,
    Planned,
    Pooled,
    Prepare,
    Progress,
    Propose,
    Reason,
    Refer,
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

    def __init__(
        self, peer: Peer, group: asyncio.TaskGroup, recorder: Recorder | None = None
    ) -> None:
        self._peer, self._group = peer, group
        self._candidates = Candidates(peer)
        self._tasks: set[asyncio.Task[None]] = set()
        self._answers: dict[tuple[Link, RequestId], asyncio.Task[None]] = {}
        self._running: dict[RequestId, Participants] = {}  # by the id that the mesh knows
        self._parts: dict[RequestId, tuple[Participation, asyncio.Task[None]]] = {}
        self._exchanges: dict[RequestId, MeshExchange] = {}
        self._early = EarlyCodes()
        self._recorder = recorder
        self._turns = Turns(limits.ANSWERS_AT_ONCE)
        self._watch: Watch = peer.watch
        self._checks = SpotChecks(peer.config.spot_check)
        self._timers: list[asyncio.TimerHandle] = []  # once nothing runs for a while
        self._gave_back = asyncio.get_running_loop().time()  # when memory went back to the system
        self._closed = False

    @property
    def running(self) -> bool:
        """Whether this peer answers or takes part in any."""
        return bool(self._answers or self._parts)

    def close(self) -> None:
        """Cancel everything."""
        self._recorder, self._closed = None, True
        for timer in self._timers:
            timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        self._early.clear()

    def _note_end(self) -> None:
        """A request is over: see :meth:`_when_free` and :meth:`_when_idle`."""
        if self._closed:
            return
        for timer in self._timers:
            timer.cancel()
        self._candidates.doubt()
        loop = asyncio.get_running_loop()
        self._timers = [
            loop.call_later(limits.MAKE_TABLES_S, self._when_free),
            loop.call_later(limits.GIVE_BACK_S, self._when_idle),
        ]
        if loop.time() - self._gave_back > limits.GIVE_BACK_BUSY_S:
            self._give_back()

    def _when_free(self) -> None:
        """Until the next request: make the tables that requests went without, and compare figures
        of models that requests contradicted."""
        if self.running:
            return
        if self._peer.models.lacks_tables or self._peer.models.has_doubts:
            self._start("work between requests", self._tend)

    async def _tend(self) -> None:
        models = self._peer.models
        await models.make_tables(lambda: not self.running)
        await models.look_again(lambda: not self.running)
        if not self.running:  # measuring takes memory, and may have ended after the last look
            self._give_back()

    def _when_idle(self) -> None:
        """Memory goes back to the system."""
        if not self.running:
            self._give_back()

    def _give_back(self) -> None:
        self._gave_back = asyncio.get_running_loop().time()
        self._start("giving memory back", self._peer.compute, self._peer.models.give_back)

    def _start(self, name: str, work: tasks.Work[...], *args: object) -> asyncio.Task[None]:
        task = tasks.start(self._group, name, work, *args)
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
            self._start("prepare", self._candidates.prepare, link, message)
        elif isinstance(message, Accept | Refuse | Progress | Done | Fail):
            participants = self._running.get(message.request)
            if participants is not None:
                participants.on_message(hello.peer, message)
            elif isinstance(message, Fail):
                self._candidates.failed(hello.peer, message)
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

    def _cancel(self, link: Link, request: RequestId) -> None:
        task = self._answers.get((link, request))
        if task is not None:
            task.cancel()
        found = self._parts.get(request)
        if found is not None and found[0].link is link:
            found[1].cancel()

    def _open_exchange(self, exchange: MeshExchange, watched: bool = False) -> None:
        """Deliver codes of a request from now on, first those that came early."""
        self._exchanges[exchange.request] = exchange
        if self._recorder is not None or self._watch.active or watched:
            exchange.timeline = Timeline()
        for link, sender, message in self._early.take(exchange.request):
            try:
                exchange.take(sender, message)
            except ProtocolError as error:
                link.refuse(Reason.BAD_MESSAGE, error.message, error)
            link.consumed(message)

    def _close_exchange(self, request: RequestId) -> None:
        """Deliver no more codes of a request."""
        exchange = self._exchanges.pop(request, None)
        if exchange is not None:
            exchange.close()
            if self._recorder is not None:
                self._start("a record", self._recorder.write, request, exchange)
        self._running.pop(request, None)
        self._early.drop(request)
        self._note_end()

    # --- links that end ---------------------------------------------------------------------------

    def link_gone(self, link: Link, peer: PeerId, error: MeshError) -> None:
        """A link to a peer is over: what needs it ends or is planned again."""
        self._early.drop_link(link)
        self._candidates.peer_gone(peer)
        for participants in list(self._running.values()):
            participants.link_gone(link, error)
        for part, task in list(self._parts.values()):
            if part.link is link:
                task.cancel()
            else:
                part.link_gone(link, error)

    def client_gone(self, link: Link) -> None:
        """A client's link is over: cancel what it asked."""
        for (at, _), task in list(self._answers.items()):
            if at is link:
                task.cancel()

    # --- answering --------------------------------------------------------------------------------

    def _ask(self, link: Link, ask: Ask) -> None:
        if len(self._answers) >= limits.REQUESTS_PER_PEER:
            self._fail(link, ask.request, self._busy())
            return
        task = self._start("a request", self._answer, link, ask)
        self._answers[link, ask.request] = task
        task.add_done_callback(lambda _: self._answers.pop((link, ask.request), None))

    def retry_s(self, admitted: int) -> float:
        """After how many whole seconds it is worth asking again where so many were let in."""
        wait_s = math.ceil(self._turns.wait_s(admitted))
        return min(max(wait_s, limits.RETRY_LEAST_S), limits.RETRY_MOST_S)

    def _busy(self) -> BusyError:
        wait_s = self.retry_s(len(self._answers))
        error = BusyError(
            f"{self._peer.name} has as many requests as it takes; try again in {wait_s:.0f} s, or "
            "ask another peer"
        )
        error.retry_s = wait_s
        return error

    async def _answer(self, link: Link, ask: Ask) -> None:
        shown = self._watch.asked(ask.task, ask.model)

        answered = "answered"

        async def emit(message: Planned | Refer | Token | Result) -> None:
            nonlocal answered
            shown.told(message)
            if shown.is_due():
                self._peer.tell("request-news", about=shown.news())
            if isinstance(message, Refer):
                answered = f"referred to {message.name}"
            link.send(message)
            await link.drain()

        around = self._surroundings(shown)
        answer = Answer(ask, self._peer.models, self._peer.compute, around, emit)
        about = f"{ask.task.value} with {ask.model}"
        self._peer.tell("request-started", text=about, about=shown.news())
        outcome = "cancelled"
        try:
            async with self._turns.turn(link):
                await answer.run()
            outcome = answered
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
            shown.ended(outcome)
            self._peer.tell("request-ended", text=outcome, about=shown.news())

    def _fail(self, link: Link, request: RequestId, error: AstraMeshError) -> None:
        text = sanitise(error.message)
        retry_s = error.retry_s if isinstance(error, BusyError) else 0.0
        send_if_open(link, Fail(request=request, code=error.code, text=text, retry_s=retry_s))

    def _surroundings(self, shown: Shown) -> Surroundings:
        return Surroundings(
            me=self._candidates.me,
            candidates=self._candidates.others,
            wake=self._candidates.wake,
            left_out=self._candidates.left_out,
            loading=self._candidates.loading,
            strangers=self._strangers,
            links=self._candidates.links,
            find_link=self._peer.link,
            address=self._peer.address_of,
            elsewhere=self._peer.elsewhere,
            open=partial(self._open, shown),
            close=self._close_exchange,
            lessons=self._candidates.lessons,
            busy=lambda: len(self._answers) + len(self._parts) > 1,
            watched=lambda: self._watch.active,
            checks=self._checks,
            noted=self._peer.likelihoods.find,
            passed_over=self._pass_over,
        )

    def _strangers(self, model: ModelId) -> list[str]:
        """Names of peers that do not have a model; tabs are told themselves."""
        return [
            sanitise(hello.name)
            for hello in self._peer.others().values()
            if not hello.via and all(offer.id != model for offer in hello.models)
        ]

    def _pass_over(self, plan: Plan, why: str, lost: Collection[PeerId]) -> None:
        """Tell the tabs that have no shard: a person sits before each, and wonders.

        ``lost``: who failed the request or did not take it, and knows why.
        """
        shares = {one.peer for one in plan.shards}
        for peer, hello in self._peer.others().items():
            link = self._peer.link(peer)
            if hello.via and link is not None and peer not in shares and peer not in lost:
                own = self._candidates.why_without(peer, plan.model)
                send_if_open(link, Cancel(request=new_request(), text=sanitise(own or why)))

    def _open(self, shown: Shown, participants: Participants) -> None:
        exchange = participants.exchange
        self._running[exchange.request] = participants
        self._open_exchange(exchange)
        shown.started(self._peer.id, exchange)
        participants.onlooker = shown

    # --- taking part ------------------------------------------------------------------------------

    def _propose(self, link: Link, propose: Propose) -> None:
        peer, request = self._peer, propose.request
        models, compute = peer.models, peer.compute
        find_link, may_be_back = peer.link, peer.may_be_back
        part = Participation(propose, link, peer.id, models, compute, find_link, may_be_back)
        if request in self._parts or request in self._exchanges:
            part.refuse(Reason.BAD_PLAN, "another request has this id")
            return
        if len(self._parts) >= limits.REQUESTS_PER_PEER:
            part.refuse(Reason.BUSY)
            self._part_over(part)
            return
        open_exchange = partial(self._open_exchange, watched=propose.watch)
        task = self._start("a shard", part.run, open_exchange)
        self._parts[request] = (part, task)
        task.add_done_callback(lambda _: self._part_over(part))

    def _part_over(self, part: Participation) -> None:
        self._parts.pop(part.propose.request, None)
        self._close_exchange(part.propose.request)
        part.close()
