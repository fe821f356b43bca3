"""Taking part in a request that another peer planned: check, accept, run the shard, report."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from astra_mesh import limits
from astra_mesh.engine.compute import ComputeThread
from astra_mesh.engine.pipeline import Pipeline, Spent
from astra_mesh.engine.shard import ShardRun
from astra_mesh.errors import AstraMeshError, MeshError, ModelError
from astra_mesh.families import ModelInput
from astra_mesh.mesh.link import Link
from astra_mesh.peer.choice import stages_of
from astra_mesh.peer.exchange import MeshExchange, Patience, partners
from astra_mesh.peer.inputs import read_inputs
from astra_mesh.peer.loaded import AnyCodec, Loaded
from astra_mesh.peer.models import ModelHost
from astra_mesh.peer.progress import telling
from astra_mesh.peer.sending import send_if_open
from astra_mesh.plan.check import BadPlanError, layout_of
from astra_mesh.quant.codecs import VectorCodec
from astra_mesh.wire.codec import sanitise
from astra_mesh.wire.messages import (
    Accept,
    Done,
    Fail,
    Late,
    PeerId,
    PeerReport,
    Plan,
    Propose,
    Reason,
    Refuse,
    RequestId,
    Task,
)

log = logging.getLogger(__name__)

FindLink = Callable[[PeerId], Link | None]


class NotTakingPartError(Exception):
    """Why a proposal is refused."""

    def __init__(self, reason: Reason, text: str, peer: PeerId | None = None) -> None:
        super().__init__(text)
        self.reason, self.text, self.peer = reason, text, peer


def make_exchange(
    request: RequestId,
    task: Task,
    plan: Plan,
    me: PeerId,
    loaded: Loaded,
    tokens: int,
    find_link: FindLink,
) -> tuple[MeshExchange, AnyCodec]:
    """The exchange of one peer of a plan, the plan checked.

    Raises:
        NotTakingPartError: the plan cannot be run here.
    """
    try:
        codec = loaded.codec(plan.codec, plan.codebook, stages_of(plan))
    except AstraMeshError as error:
        raise NotTakingPartError(Reason.UNKNOWN_CODEBOOK, error.message) from error
    peers = [shard.peer for shard in plan.shards]
    if me not in peers:
        raise NotTakingPartError(Reason.BAD_PLAN, "the plan has no shard for this peer")
    try:
        layout = layout_of(plan, loaded.spec, task, tokens, codec.first_block, codec.able)
    except BadPlanError as error:
        raise NotTakingPartError(Reason.BAD_PLAN, str(error)) from error
    shard, links = peers.index(me), {}
    for peer in (peers[i] for i in partners(layout, shard)):
        link = find_link(peer)
        if link is None:
            raise NotTakingPartError(Reason.NOT_LINKED, f"no link to peer {peer[:8]}", peer)
        links[peer] = link
    adapt = not tables_serve(plan.late)
    patience = Patience(plan.predicted_s, layout.blocks, plan.late is Late.DEGRADE, adapt)
    if not adapt:
        codec = loaded.at_work(codec, [layout.stages[i, shard] for i in layout.sources(shard, 0)])
    elif isinstance(codec, VectorCodec):
        codec = codec.projecting()
    width = loaded.spec.hidden_size
    return MeshExchange(request, layout, peers, shard, codec, width, links, patience), codec


def tables_serve(late: Late) -> bool:
    """Whether tables can decode: they know one rate, and no input that could stand in."""
    return late is Late.WAIT


def report_of(
    peer: PeerId,
    exchange: MeshExchange,
    spent: Spent,
    tokens: int,
    precision: str,
    steps: int = 0,
) -> PeerReport:
    """What this peer did for a request."""
    return PeerReport(
        peer=peer,
        tokens=tokens,
        compute_s=spent.compute_s,
        encode_s=spent.encode_s,
        decode_s=spent.decode_s,
        wait_s=spent.wait_s,
        finished_s=spent.total_s,
        sent_bytes=dict(exchange.sent_bytes),
        decode_steps=steps,
        late_parts=exchange.late_parts,
        rates=exchange.rates,
        precision=precision,
    )


class Participation:
    """One proposal from the link ``link``; :meth:`run`, then :meth:`close`, are its whole life.

    Cancelling :meth:`run` stops the shard and frees it; the coordinator is not told.
    """

    def __init__(
        self,
        propose: Propose,
        link: Link,
        me: PeerId,
        models: ModelHost,
        compute: ComputeThread,
        find_link: FindLink,
        may_be_back: Callable[[PeerId], bool] = lambda peer: False,
    ) -> None:
        self.propose, self.link = propose, link
        self._me, self._models, self._compute = me, models, compute
        self._find_link, self._may_be_back = find_link, may_be_back
        self._exchange: MeshExchange | None = None
        self._precision = ""  # once it is prepared
        self._completed = False

    async def run(self, open_exchange: Callable[[MeshExchange], None]) -> None:
        """Check the proposal, accept it, run the shard and report; errors go to the coordinator.

        Args:
            open_exchange: Called before it is accepted: codes are delivered from then on.
        """
        try:
            pipeline, exchange = await self._prepare()
        except NotTakingPartError as error:
            self.refuse(error.reason, error.text)
            return
        except Exception:
            log.exception("a proposal could not be checked")
            self.refuse(Reason.INTERNAL)
            return
        open_exchange(exchange)
        pipeline.timeline = exchange.timeline
        request = self.propose.request
        send_if_open(self.link, Accept(request=request))
        try:
            await self._compute_shard(pipeline, exchange)
        except AstraMeshError as error:
            text = sanitise(error.message)
            send_if_open(self.link, Fail(request=request, code=error.code, text=text))
        except Exception:
            log.exception("a shard failed on this peer")
            text = "a peer met an error of its own; its log has the details"
            send_if_open(self.link, Fail(request=request, code="internal", text=text))

    async def _prepare(self) -> tuple[Pipeline, MeshExchange]:
        """Check the proposal; NotTakingPartError if it is refused."""
        plan, propose = self.propose.plan, self.propose
        if plan.answering == self._me:
            raise NotTakingPartError(Reason.BAD_PLAN, "the peer that plans has to answer itself")
        if self._models.offer(plan.model) is None:
            raise NotTakingPartError(Reason.UNKNOWN_MODEL, f"no model {plan.model[:12]} here")
        try:
            loaded = await self._models.load(plan.model)
            loaded.model.require(propose.task.value)
            inputs, tokens = await self._compute(read_inputs, loaded, propose.inputs)
        except ModelError as error:
            raise NotTakingPartError(Reason.UNKNOWN_MODEL, error.message) from error
        except AstraMeshError as error:
            raise NotTakingPartError(Reason.BAD_PLAN, error.message) from error
        exchange, codec = await self._linked(loaded, tokens)
        self._exchange = exchange
        self._precision = loaded.chosen.precision
        run = await self._compute(_make_run, loaded, exchange, codec, inputs)
        return Pipeline(run, exchange, self._compute), exchange

    async def _linked(self, loaded: Loaded, tokens: int) -> tuple[MeshExchange, AnyCodec]:
        """The exchange, once the links to its other peers are back: a proposal may come through
        before them when a network was away.

        Raises:
            NotTakingPartError: the plan cannot be run here.
        """
        one, loop = self.propose, asyncio.get_running_loop()
        end = loop.time() + limits.BACK_S
        while True:
            try:
                return make_exchange(
                    one.request, one.task, one.plan, self._me, loaded, tokens, self._find_link
                )
            except NotTakingPartError as error:
                gone = error.peer is None or not self._may_be_back(error.peer)
                if gone or loop.time() > end:
                    raise
            await asyncio.sleep(limits.BACK_LOOK_S)

    async def _compute_shard(self, pipeline: Pipeline, exchange: MeshExchange) -> None:
        timeline = exchange.timeline if self.propose.watch else None
        with telling(self.link, self.propose.request, timeline):
            await pipeline.prefill()
            await pipeline.pool()
        run = pipeline.run
        tokens = run.stop - run.start
        report = report_of(self._me, exchange, pipeline.spent, tokens, self._precision)
        self.link.send(Done(request=self.propose.request, report=report))
        self._completed = True

    def refuse(self, reason: Reason, text: str = "") -> None:
        """Tell the coordinator that this peer does not take its shard."""
        message = Refuse(request=self.propose.request, reason=reason, text=sanitise(text))
        send_if_open(self.link, message)

    def link_gone(self, link: Link, error: MeshError) -> None:
        """A link is over; before there is an exchange, checking the proposal finds that out."""
        if self._exchange is not None:
            self._exchange.link_gone(link, error)

    def close(self) -> None:
        """Once :meth:`run` is over: what others still send for the request is dropped."""
        if self._completed:
            return
        for shard in self.propose.plan.shards:
            link = self._find_link(shard.peer)
            if link is not None:
                link.end(self.propose.request)
        if self._exchange is not None:
            self._exchange.abandon()


def _make_run(
    loaded: Loaded, exchange: MeshExchange, codec: AnyCodec, inputs: ModelInput
) -> ShardRun:
    return ShardRun(loaded.model, exchange.layout, exchange.shard, codec, inputs)
