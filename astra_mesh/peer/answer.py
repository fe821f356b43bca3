"""Answering a client: plan, propose, run the own shard, decode or classify, report."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from astra_mesh.engine.compute import ComputeThread
from astra_mesh.engine.decode import Decoder
from astra_mesh.engine.pipeline import Pipeline
from astra_mesh.engine.sampling import check_sampling
from astra_mesh.engine.shard import ShardRun
from astra_mesh.errors import (
    AstraMeshError,
    DeadlineError,
    MeshError,
    PeerLostError,
    RefusedError,
)
from astra_mesh.families import ModelInput
from astra_mesh.limits import ACCEPT_TIMEOUT_S, NEW_TOKENS, SHUTDOWN_S
from astra_mesh.mesh.link import Link
from astra_mesh.peer.exchange import MeshExchange
from astra_mesh.peer.inputs import inputs_of_ask, read_inputs
from astra_mesh.peer.models import AnyCodec, Loaded, ModelHost, choose_stages
from astra_mesh.peer.part import NotTakingPartError, make_exchange, report_of
from astra_mesh.plan.check import class_token_of
from astra_mesh.plan.cost import Candidate
from astra_mesh.plan.cost import Link as LinkProfile
from astra_mesh.plan.planner import Choice, Job, choose
from astra_mesh.wire.codec import sanitise
from astra_mesh.wire.messages import (
    Accept,
    Ask,
    Cancel,
    CodebookId,
    Done,
    Fail,
    Inputs,
    Label,
    PeerId,
    PeerReport,
    Planned,
    Propose,
    Refuse,
    Report,
    RequestId,
    Result,
    Sampling,
    Task,
    Token,
)

LABELS = 100  # classes in a result, the most likely first

Emit = Callable[[Planned | Token | Result], Awaitable[None]]
Candidates = Callable[[Loaded, CodebookId], Awaitable[list[Candidate]]]


def new_request() -> RequestId:
    """A fresh random id."""
    return RequestId(secrets.randbits(63))


@dataclass(frozen=True)
class Surroundings:
    """What an answer needs of the peer around it."""

    me: Callable[[Loaded], Candidate]
    candidates: Candidates
    links: Callable[[], Mapping[tuple[PeerId, PeerId], LinkProfile]]
    find_link: Callable[[PeerId], Link | None]
    open_exchange: Callable[[MeshExchange], None]  # codes for it are delivered from now on
    close_exchange: Callable[[RequestId], None]


class LostDuringPrefillError(Exception):
    """A participant failed before the answer began; the request can be planned again."""

    def __init__(self, peer: PeerId, error: AstraMeshError) -> None:
        super().__init__(error.message)
        self.peer, self.error = peer, error


class Answer:
    """One client's request; :meth:`run` is its whole life.

    Cancelling :meth:`run` cancels the request on all peers.
    """

    def __init__(
        self, ask: Ask, models: ModelHost, compute: ComputeThread, around: Surroundings, emit: Emit
    ) -> None:
        self.ask, self._models, self._compute = ask, models, compute
        self._around, self._emit = around, emit
        self._waiting: dict[PeerId, asyncio.Future[PeerReport]] = {}
        self._accepted: dict[PeerId, asyncio.Future[None]] = {}
        self._exchange: MeshExchange | None = None
        self._notes: list[str] = []
        self._began = 0.0

    async def run(self) -> None:
        """Answer the client.

        Raises:
            AstraMeshError: the request ended without an answer.
        """
        ask = self.ask
        loaded = await self._models.load(self._models.find(ask.model))
        inputs = await self._compute(inputs_of_ask, loaded, ask)
        given, tokens = await self._compute(read_inputs, loaded, inputs)
        if ask.sampling is not None:
            check_sampling(ask.sampling)
        codec, codebook = await self._compute(loaded.choose_codec, ask.options.codec)
        stages = choose_stages(codec, ask.options.rate)
        self._notes += [f"a codebook is left out: {problem}" for problem in loaded.problems]
        others = await self._around.candidates(loaded, codebook)
        while True:
            job = self._job(loaded, codec, codebook, stages, tokens)
            choice = choose(job, self._around.me(loaded), others, self._around.links())
            try:
                await self._attempt(choice, loaded, codec, inputs, given, others)
                return
            except LostDuringPrefillError as lost:
                others = [one for one in others if one.peer != lost.peer]
                self._notes.append(f"planned again without {lost.peer[:8]}: {lost.error.message}")

    def _job(
        self, loaded: Loaded, codec: AnyCodec, codebook: CodebookId, stages: int, tokens: int
    ) -> Job:
        options, spec = self.ask.options, loaded.spec
        return Job(
            spec=spec,
            model=loaded.bundle.model_id,
            codebook=codebook,
            codec=codec.name,
            token_bytes=codec.rate(stages) / 8 / stages,
            stages=stages,
            first_block=codec.first_block,
            class_token=class_token_of(options.class_token or "single"),
            pooling=spec.pooling(self.ask.task.value),
            tokens=tokens,
            use=options.use,
            max_peers=options.max_peers,
        )

    async def _attempt(
        self,
        choice: Choice,
        loaded: Loaded,
        codec: AnyCodec,
        inputs: Inputs,
        given: ModelInput,
        others: list[Candidate],
    ) -> None:
        plan = choice.plan
        names = {one.peer: one.name for one in [*others, self._around.me(loaded)]}
        bits = codec.rate(max((rate.stages for rate in plan.rates), default=0)) if plan.rates else 0
        await self._emit(
            Planned(
                request=self.ask.request,
                plan=plan,
                names={shard.peer: names[shard.peer] for shard in plan.shards},
                bits_per_token=bits,
                solo_s=choice.solo_s,
                reason=sanitise(choice.reason),
                prompt_tokens=choice.layout.tokens,
            )
        )
        self._began = time.perf_counter()
        request = new_request()
        exchange = self._open(request, choice, loaded)
        self._exchange = exchange
        self._around.open_exchange(exchange)
        try:
            self._propose(
                exchange,
                Propose(
                    request=request, task=self.ask.task, plan=plan, inputs=inputs, sampling=None
                ),
            )
            run = await self._compute(
                ShardRun, loaded.model, exchange.layout, exchange.shard, codec, given, self._spare()
            )
            pipeline = Pipeline(run, exchange, self._compute)
            await self._answer(choice, loaded, pipeline, bits)
        except BaseException:
            self._cancel(exchange)
            exchange.abandon()
            raise
        finally:
            self._around.close_exchange(request)

    def _open(self, request: RequestId, choice: Choice, loaded: Loaded) -> MeshExchange:
        """The own exchange of a plan; LostDuringPrefillError if a link went meanwhile."""
        me, count = self._around.me(loaded).peer, choice.layout.tokens
        find = self._around.find_link
        try:
            exchange, _ = make_exchange(
                request, self.ask.task, choice.plan, me, loaded, count, find
            )
        except NotTakingPartError as error:
            refused = RefusedError(f"this peer cannot run the plan: {error.text}")
            if error.peer is not None:
                raise LostDuringPrefillError(error.peer, refused) from error
            raise refused from error
        return exchange

    def _spare(self) -> int:
        return min(self._sampling().max_new_tokens, NEW_TOKENS)

    def _sampling(self) -> Sampling:
        return self.ask.sampling or Sampling()

    # --- the other peers --------------------------------------------------------------------------

    def _propose(self, exchange: MeshExchange, propose: Propose) -> None:
        loop = asyncio.get_running_loop()
        self._waiting, self._accepted = {}, {}
        for shard, peer in enumerate(exchange.peers):
            if shard == exchange.shard or not exchange.layout.holds(shard):
                continue
            link = self._around.find_link(peer)
            if link is None:
                raise LostDuringPrefillError(peer, PeerLostError(f"no link to {peer[:8]}"))
            self._waiting[peer], self._accepted[peer] = loop.create_future(), loop.create_future()
            link.send(propose)

    def on_message(self, peer: PeerId, message: Accept | Refuse | Done | Fail) -> None:
        """What a participant says about the plan that runs."""
        if isinstance(message, Accept):
            _resolve(self._accepted.get(peer))
        elif isinstance(message, Done):
            _resolve(self._accepted.get(peer))
            future = self._waiting.get(peer)
            if future is not None and not future.done():
                future.set_result(message.report)
        elif isinstance(message, Refuse):
            text = sanitise(message.text or message.reason.value)
            self.failed(peer, RefusedError(f"{peer[:8]} refused: {text}"))
        else:
            self.failed(peer, MeshError(f"{peer[:8]} failed: {sanitise(message.text)}"))

    def failed(self, peer: PeerId, error: AstraMeshError) -> None:
        """A participant is out; the prefill, if it still runs, is planned again without it."""
        future = self._waiting.get(peer)
        if future is None or future.done():
            return
        future.cancel()
        if self._exchange is not None:
            self._exchange.fail(LostDuringPrefillError(peer, error))

    def _cancel(self, exchange: MeshExchange) -> None:
        for peer in self._waiting:
            link = self._around.find_link(peer)
            if link is not None and link.is_open:
                link.send(Cancel(request=exchange.request))

    async def _reports(self) -> list[PeerReport]:
        """Reports of the others; who does not send one in time is left out."""
        if not self._waiting:
            return []
        done, pending = await asyncio.wait(self._waiting.values(), timeout=SHUTDOWN_S)
        if pending:
            self._notes.append("a peer sent no report in time")
        return [future.result() for future in done if not future.cancelled()]

    # --- the answer -------------------------------------------------------------------------------

    async def _prefill(self, pipeline: Pipeline) -> Tensor | None:
        watch = asyncio.get_running_loop().call_later(ACCEPT_TIMEOUT_S, self._overdue)
        try:
            await pipeline.prefill()
            return await pipeline.pool() if self.ask.task is not Task.GENERATE else None
        except MeshError as error:
            for peer in self._waiting:
                if self._around.find_link(peer) is None:
                    raise LostDuringPrefillError(peer, error) from error
            raise
        finally:
            watch.cancel()

    def _overdue(self) -> None:
        for peer, future in self._accepted.items():
            if not future.done():
                text = f"{peer[:8]} did not answer the proposal within {ACCEPT_TIMEOUT_S:g} s"
                self.failed(peer, DeadlineError(text))

    async def _answer(
        self, choice: Choice, loaded: Loaded, pipeline: Pipeline, bits: float
    ) -> None:
        pooled = await self._prefill(pipeline)
        steps, finish, labels, vector = 0, "", list[Label](), b""
        if self.ask.task is Task.GENERATE:
            decoder = await self._compute(Decoder, pipeline.run, self._sampling(), loaded.stop_ids)
            actual = time.perf_counter() - self._began
            steps, finish = await self._decode(decoder, loaded)
        elif self.ask.task is Task.CLASSIFY:
            assert pooled is not None
            labels = await self._compute(_labels, loaded, pooled)
            actual = time.perf_counter() - self._began
        else:
            assert pooled is not None
            vector = pooled.numpy().astype("<f4").tobytes()
            actual = time.perf_counter() - self._began
        run = pipeline.run
        me = choice.plan.answering
        own = report_of(me, self._exchange, pipeline.spent, run.stop - run.start, steps)
        total = time.perf_counter() - self._began
        reports = [*await self._reports(), own]
        order = {shard.peer: i for i, shard in enumerate(choice.plan.shards)}
        report = Report(
            plan=choice.plan,
            predicted_s=choice.prediction.total_s,
            actual_s=actual,
            total_s=total,
            bits_per_token=bits,
            peers=sorted(reports, key=lambda one: order.get(one.peer, len(order))),
            new_tokens=steps,
            finish=finish,
            notes=[sanitise(note) for note in self._notes],
        )
        await self._emit(
            Result(request=self.ask.request, report=report, labels=labels, vector=vector)
        )

    async def _decode(self, decoder: Decoder, loaded: Loaded) -> tuple[int, str]:
        stream = loaded.tokenizer.stream() if loaded.tokenizer is not None else None
        count = 0
        while (token := await self._compute(decoder.step)) is not None:
            text = stream.push(token) if stream is not None else ""
            if decoder.finish and stream is not None:
                text += stream.flush()
            await self._emit(Token(self.ask.request, count, token, text))
            count += 1
        return count, decoder.finish


def _resolve(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)


def _labels(loaded: Loaded, pooled: Tensor) -> list[Label]:
    row = pooled.to(next(loaded.model.parameters()).dtype)
    probabilities = torch.softmax(loaded.model.classify(row).float(), -1)
    best = probabilities.topk(min(LABELS, len(probabilities)))
    return [
        Label(label=sanitise(loaded.model.labels[int(i)]), probability=float(p))
        for p, i in zip(best.values, best.indices, strict=True)
    ]
