"""Answering a client: plan, propose, run the own shard, decode or classify, report."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, Iterator

import torch
from msgspec.structs import replace
from torch import Tensor

from astra_mesh.engine.compute import ComputeThread
from astra_mesh.engine.decode import Decoder
from astra_mesh.engine.pipeline import Pipeline
from astra_mesh.engine.sampling import check_sampling
from astra_mesh.engine.shard import ShardRun
from astra_mesh.errors import MeshError, RefusedError
from astra_mesh.families import ModelInput
from astra_mesh.limits import LATE_REPORT_S, NEW_TOKENS, NOTES, SHUTDOWN_S
from astra_mesh.naming import Names, listed
from astra_mesh.peer.choice import expected_cost, stages_of
from astra_mesh.peer.exchange import MeshExchange
from astra_mesh.peer.inputs import read_ask
from astra_mesh.peer.loaded import AnyCodec, Loaded
from astra_mesh.peer.models import ModelHost
from astra_mesh.peer.part import NotTakingPartError, make_exchange, report_of
from astra_mesh.peer.participants import LostDuringPrefillError, Participants
from astra_mesh.peer.planning import Planning
from astra_mesh.peer.surroundings import Surroundings
from astra_mesh.plan.cost import Candidate
from astra_mesh.plan.planner import Choice
from astra_mesh.wire.codec import sanitise
from astra_mesh.wire.messages import (
    Ask,
    Inputs,
    Label,
    ModelId,
    PeerId,
    PeerReport,
    Planned,
    Propose,
    Refer,
    Report,
    RequestId,
    Result,
    Sampling,
    Task,
    Token,
    Use,
)

LABELS = 100  # classes in a result, the most likely first

Emit = Callable[[Planned | Refer | Token | Result], Awaitable[None]]


def new_request() -> RequestId:
    """A fresh random id."""
    return RequestId(secrets.randbits(63))


class Answer:
    """One client's request; :meth:`run` is its whole life.

    Cancelling :meth:`run` cancels the request on all peers.
    """

    def __init__(
        self, ask: Ask, models: ModelHost, compute: ComputeThread, around: Surroundings, emit: Emit
    ) -> None:
        self.ask, self._models, self._compute = ask, models, compute
        self._around, self._emit = around, emit
        self._notes: list[str] = []
        self._arrived, self._began = time.perf_counter(), 0.0
        self._lost_s = 0.0  # with plans that failed
        self._lost: list[PeerId] = []  # that they failed for
        self._planning: Planning | None = None
        self._beside = False  # whether other requests ran here at the same time
        self._names: dict[PeerId, str] = {}
        self._noted = around.noted(ask.request)
        self._loading_s = 0.0

    async def run(self) -> None:
        """Answer the client.

        Raises:
            AstraMeshError: the request ended without an answer.
        """
        ask = self.ask
        model = self._models.find(ask.model)
        # Before it is loaded, which takes seconds.
        self._models.require(model, ask.task, picture=ask.image is not None)
        if ask.tokens is not None:
            self._models.check_tokens(model, ask.tokens)
        if ask.options.use is not Use.SOLO:
            self._around.wake(model)
        loaded = await self._load(model)
        read = await self._compute(read_ask, loaded, ask)
        if ask.sampling is not None:
            check_sampling(ask.sampling)
        planning = Planning(ask, loaded, self._around, self._compute, self._notes)
        self._planning = planning
        inputs = await planning.look_around(read)
        self._loading_s += planning.loading_s
        while True:
            tried = time.perf_counter()
            choice = await planning.choose()
            if refer := await planning.refer(choice):
                await self._emit(refer)
                return
            try:
                await self._attempt(choice, loaded, inputs, read.given, planning.others)
                return
            except LostDuringPrefillError as lost:
                self._lost.append(lost.peer)
                gone = listed(planning.lose(lost.peer))
                self._notes.append(f"planned again without {gone}: {lost.error.message}")
                self._lost_s += time.perf_counter() - tried

    async def _load(self, model: ModelId) -> Loaded:
        """The model, which somebody else may load just now."""
        if self._models.is_loaded(model):
            return await self._models.load(model)
        began = time.perf_counter()
        loaded = await self._models.load(model)
        self._loading_s = time.perf_counter() - began
        return loaded

    async def _attempt(
        self,
        choice: Choice,
        loaded: Loaded,
        inputs: Inputs,
        given: ModelInput,
        others: list[Candidate],
    ) -> None:
        plan, stages = choice.plan, stages_of(choice.plan)
        codec = await self._compute(loaded.codec, plan.codec, plan.codebook, stages)
        bits = codec.rate(stages) if stages else 0
        expected = expected_cost(loaded, plan, self.ask.task.value)
        names = {one.peer: one.name for one in [*others, self._around.me(loaded)]}
        self._names = names
        await self._emit(
            Planned(
                request=self.ask.request,
                plan=plan,
                names={shard.peer: names[shard.peer] for shard in plan.shards},
                bits_per_token=bits,
                solo_s=choice.solo_s,
                reason=sanitise(choice.reason),
                prompt_tokens=choice.layout.tokens - len(self.ask.answered),
                expected=expected,
                elsewhere=self._around.elsewhere(plan.model),
            )
        )
        self._around.passed_over(plan, choice.reason, self._lost)
        self._began, self._beside = time.perf_counter(), self._around.busy()
        exchange, codec = self._exchange(choice, loaded)
        participants = Participants(exchange)
        self._around.checks.begin(exchange, plan)
        self._around.open(participants)
        try:
            request, task = exchange.request, self.ask.task
            watch = self._around.watched()
            participants.propose(
                Propose(request=request, task=task, plan=plan, inputs=inputs, watch=watch)
            )
            run = await self._compute(
                ShardRun, loaded.model, exchange.layout, exchange.shard, codec, given, self._spare()
            )
            pipeline = Pipeline(run, exchange, self._compute, exchange.timeline)
            await self._answer(choice, loaded, pipeline, participants, bits)
        finally:
            participants.close()
            self._around.checks.end(exchange)
            self._around.close(exchange.request)

    def _exchange(self, choice: Choice, loaded: Loaded) -> tuple[MeshExchange, AnyCodec]:
        """The own exchange of a plan; LostDuringPrefillError if a link went meanwhile."""
        plan, task, tokens = choice.plan, self.ask.task, choice.layout.tokens
        find_link = self._around.find_link
        try:
            return make_exchange(
                new_request(), task, plan, plan.answering, loaded, tokens, find_link
            )
        except NotTakingPartError as error:
            refused = RefusedError(f"this peer cannot run the plan: {error.text}")
            if error.peer is not None:
                raise LostDuringPrefillError(error.peer, refused) from error
            raise refused from error

    def _spare(self) -> int:
        """New tokens whose keys and values need room; the first one comes from the prefill."""
        count = self._sampling().max_new_tokens
        return min(count, NEW_TOKENS) if count > 1 else 0

    def _sampling(self) -> Sampling:
        """What is left to do of it, where another peer gave the first tokens."""
        sampling, done = self.ask.sampling or Sampling(), len(self.ask.answered)
        return replace(sampling, max_new_tokens=max(1, sampling.max_new_tokens - done))

    # --- the answer -------------------------------------------------------------------------------

    async def _answer(
        self,
        choice: Choice,
        loaded: Loaded,
        pipeline: Pipeline,
        participants: Participants,
        bits: float,
    ) -> None:
        pooled = await self._prefill(pipeline, participants)
        steps, finish, labels, vector = 0, "", list[Label](), b""
        if pooled is None:
            decoder = await self._compute(self._decoder, pipeline.run, loaded)
            actual = time.perf_counter() - self._began
            steps, finish = await self._decode(decoder, loaded)
        elif self.ask.task is Task.CLASSIFY:
            labels = await self._compute(_labels, loaded, pooled)
            actual = time.perf_counter() - self._began
        else:
            vector = pooled.numpy().astype("<f4").tobytes()
            actual = time.perf_counter() - self._began
        total = time.perf_counter() - self._began
        self._beside |= self._around.busy()
        await self._check(loaded, pipeline.run, participants.exchange)
        if self._planning is not None and (left_out := await self._planning.left_out()):
            self._notes.append(sanitise(left_out))
        peers = await self._reports(choice, loaded, pipeline, participants, steps, actual)
        report = Report(
            plan=choice.plan,
            predicted_s=choice.prediction.total_s,
            actual_s=actual,
            total_s=total,
            bits_per_token=bits,
            peers=peers,
            new_tokens=steps,
            finish=finish,
            notes=[sanitise(note) for note in self._notes[:NOTES]],
            expected=expected_cost(loaded, choice.plan, self.ask.task.value),
            loading_s=self._loading_s,
            took_s=time.perf_counter() - self._arrived,
            lost_s=self._lost_s,
        )
        await self._emit(
            Result(request=self.ask.request, report=report, labels=labels, vector=vector)
        )

    async def _prefill(self, pipeline: Pipeline, participants: Participants) -> Tensor | None:
        """The pooled row (D,); None where new tokens are asked for."""
        try:
            await pipeline.prefill()
            return await pipeline.pool() if self.ask.task is not Task.GENERATE else None
        except MeshError as error:
            participants.raise_lost(error)
            raise

    async def _check(self, loaded: Loaded, run: ShardRun, exchange: MeshExchange) -> None:
        """Compute a participant's part once more, where this request is one that is checked.

        A text is out by now, and gets a note; any other answer is not.

        Raises:
            LostDuringPrefillError: Its codes were false; the request is planned again without it.
        """
        checks, kept = self._around.checks, exchange.kept
        codec = run.codec
        assert isinstance(codec, AnyCodec)
        found = await checks.check(exchange, loaded, codec, run.inputs, self._compute)
        if found is None or kept is None:
            return
        peer = exchange.peers[kept.shard]
        name = sanitise(self._names[peer])
        wrong = checks.judge(peer, name, found)
        if wrong is None:
            self._notes.append(f"spot check: what {name} sent is what its share gives")
        elif self.ask.task is Task.GENERATE:
            self._notes.append(f"do not rely on this answer: {wrong}")
        else:
            raise LostDuringPrefillError(peer, MeshError(wrong))

    async def _reports(
        self,
        choice: Choice,
        loaded: Loaded,
        pipeline: Pipeline,
        participants: Participants,
        steps: int,
        actual_s: float,
    ) -> list[PeerReport]:
        """What each peer did, in the order of the plan."""
        run, plan = pipeline.run, choice.plan
        tokens, precision = run.stop - run.start, loaded.chosen.precision
        exchange, spent = participants.exchange, pipeline.spent
        own = report_of(plan.answering, exchange, spent, tokens, precision, steps)
        wait_s = LATE_REPORT_S if participants.exchange.late_parts else SHUTDOWN_S
        others, missing = await participants.reports(wait_s)
        if missing:
            names = listed(map(Names(self._names), missing))
            self._notes.append(f"{sanitise(names)} sent no report in time")
        late = own.late_parts + sum(one.late_parts for one in others)
        slower = [one for one in [*others, own] if one.rates]
        if not (missing or late or slower):
            now = time.monotonic()
            self._around.lessons.learn_paces(choice, [*others, own], now)
            if not self._beside:
                self._around.lessons.learn_total(choice, actual_s, now)
        self._notes += [note for one in slower for note in self._slower(one)]
        if late:
            parts = "1 part" if late == 1 else f"{late} parts"
            self._notes.append(
                f"degraded: {parts} (the codes of one shard for one block) came too late, and "
                "predictions from earlier blocks stood in"
            )
        order = {shard.peer: i for i, shard in enumerate(plan.shards)}
        return sorted([*others, own], key=lambda one: order[one.peer])

    def _slower(self, one: PeerReport) -> Iterator[str]:
        """Which links of a peer carried fewer bits than planned."""
        names = Names(self._names)
        for peer, changes in one.rates.items():
            pairs = zip(changes[::2], changes[1::2], strict=True)
            bits = [f"{rate} from block {at}" for at, rate in pairs]
            yield (
                f"degraded: {names(one.peer)} sent {names(peer)} fewer bits per token than "
                f"planned, because the link became slower: {', '.join(bits)}"
            )

    def _decoder(self, run: ShardRun, loaded: Loaded) -> Decoder:
        best = None if self._noted is None else self._noted.best
        decoder = Decoder(run, self._sampling(), loaded.stop_ids, best)
        decoder.skip(len(self.ask.answered))
        return decoder

    async def _decode(self, decoder: Decoder, loaded: Loaded) -> tuple[int, str]:
        """New tokens, all together, and why they ended."""
        stream = loaded.tokenizer.stream() if loaded.tokenizer is not None else None
        if stream is not None:
            for before in self.ask.answered:
                stream.push(before)
        count = len(self.ask.answered)
        while (token := await loaded.steps.step(self._compute, decoder)) is not None:
            text = stream.push(token) if stream is not None else ""
            if decoder.finish and stream is not None:
                text += stream.flush()
            if self._noted is not None and decoder.likely is not None:
                self._noted.put(count, decoder.likely)
            await self._emit(Token(self.ask.request, count, token, text))
            count += 1
        return count, decoder.finish


def _labels(loaded: Loaded, pooled: Tensor) -> list[Label]:
    row = pooled.to(next(loaded.model.parameters()).dtype)
    probabilities = torch.softmax(loaded.model.classify(row).float(), -1)
    best = probabilities.topk(min(LABELS, len(probabilities)))
    return [
        Label(label=sanitise(loaded.model.labels[int(i)]), probability=float(p))
        for p, i in zip(best.values, best.indices, strict=True)
    ]
