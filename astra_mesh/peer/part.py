"""Taking part in a request that another peer planned: check, accept, run the shard, report."""

from __future__ import annotations

import logging

from astra_mesh.engine.compute import ComputeThread
from astra_mesh.engine.pipeline import Pipeline, Spent
from astra_mesh.engine.shard import ShardRun
from astra_mesh.errors import AstraMeshError, MeshError, ModelError
from astra_mesh.families import ModelInput
from astra_mesh.mesh.link import Link
from astra_mesh.peer.exchange import FindLink, MeshExchange
from astra_mesh.peer.inputs import read_inputs
from astra_mesh.peer.models import AnyCodec, Loaded, ModelHost
from astra_mesh.plan.check import BadPlanError, layout_of
from astra_mesh.wire.codec import sanitise
from astra_mesh.wire.messages import (
    Accept,
    Done,
    Fail,
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
        codec = loaded.codec(plan.codec, plan.codebook)
    except AstraMeshError as error:
        raise NotTakingPartError(Reason.UNKNOWN_CODEBOOK, error.message) from error
    peers = [shard.peer for shard in plan.shards]
    if me not in peers:
        raise NotTakingPartError(Reason.BAD_PLAN, "the plan has no shard for this peer")
    try:
        layout = layout_of(plan, loaded.spec, task, tokens, codec.first_block, codec.stages)
    except BadPlanError as error:
        raise NotTakingPartError(Reason.BAD_PLAN, str(error)) from error
    exchange = MeshExchange(request, layout, peers, peers.index(me), codec, find_link)
    missing = exchange.missing_link()
    if missing is not None:
        raise NotTakingPartError(Reason.NOT_LINKED, f"no link to peer {missing[:8]}", missing)
    return exchange, codec


def report_of(
    peer: PeerId, exchange: MeshExchange | None, spent: Spent, tokens: int, steps: int = 0
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
        sent_bytes=dict(exchange.sent_bytes) if exchange is not None else {},
        decode_steps=steps,
    )


class Participation:
    """One proposal from the link ``link``; :meth:`run` is its whole life.

    Cancelling :meth:`run` stops the shard and frees it; the coordinator is not told.
    """

    def __init__(
        self, propose: Propose, link: Link, me: PeerId, models: ModelHost, compute: ComputeThread
    ) -> None:
        self.propose, self.link = propose, link
        self._me, self._models, self._compute = me, models, compute
        self.exchange: MeshExchange | None = None

    async def prepare(self, find_link: FindLink) -> Pipeline:
        """Check the proposal; NotTakingPartError if it is refused."""
        plan, propose = self.propose.plan, self.propose
        if plan.answering == self._me:
            raise NotTakingPartError(Reason.BAD_PLAN, "the peer that plans has to answer itself")
        if self._models.offer(plan.model) is None:
            raise NotTakingPartError(Reason.UNKNOWN_MODEL, f"no model {plan.model[:12]} here")
        try:
            loaded = await self._models.load(plan.model)
            inputs, tokens = await self._compute(read_inputs, loaded, propose.inputs)
            loaded.model.require(propose.task.value)
        except ModelError as error:
            raise NotTakingPartError(Reason.UNKNOWN_MODEL, error.message) from error
        except AstraMeshError as error:
            raise NotTakingPartError(Reason.BAD_PLAN, error.message) from error
        exchange, codec = make_exchange(
            propose.request, propose.task, plan, self._me, loaded, tokens, find_link
        )
        self.exchange = exchange
        run = await self._compute(_make_run, loaded, exchange, codec, inputs)
        return Pipeline(run, exchange, self._compute)

    async def run(self, pipeline: Pipeline) -> bool:
        """Run the accepted shard and report; errors go to the coordinator as :class:`Fail`.

        Returns:
            Whether the shard was completed.
        """
        request = self.propose.request
        try:
            await pipeline.prefill()
            await pipeline.pool()
            run = pipeline.run
            report = report_of(self._me, self.exchange, pipeline.spent, run.stop - run.start)
            self.link.send(Done(request=request, report=report))
            return True
        except AstraMeshError as error:
            self._tell(Fail(request=request, code=error.code, text=sanitise(error.message)))
        except Exception:
            log.exception("request %x failed on this peer", request)
            text = "a peer met an error of its own; its log has the details"
            self._tell(Fail(request=request, code="internal", text=text))
        return False

    def accept(self) -> None:
        """Tell the coordinator that this peer takes its shard."""
        self._tell(Accept(request=self.propose.request))

    def refuse(self, reason: Reason, text: str) -> None:
        """Tell the coordinator that it does not."""
        self._tell(Refuse(request=self.propose.request, reason=reason, text=sanitise(text)))

    def _tell(self, message: Accept | Refuse | Fail) -> None:
        try:
            self.link.send(message)
        except MeshError as error:
            log.debug("the coordinator is gone: %s", error.message)

    def lost(self, peer: PeerId, error: AstraMeshError) -> None:
        """A peer of the plan is gone."""
        if self.exchange is not None and peer in self.exchange.peers:
            self.exchange.fail(error)


def _make_run(
    loaded: Loaded, exchange: MeshExchange, codec: AnyCodec, inputs: ModelInput
) -> ShardRun:
    return ShardRun(loaded.model, exchange.layout, exchange.shard, codec, inputs)
