"""Planning one request: which codes would do, who could help, and who should answer."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Final, NamedTuple

from msgspec.structs import replace

from astra_mesh.engine.compute import ComputeThread
from astra_mesh.errors import InputError
from astra_mesh.naming import Names, listed
from astra_mesh.peer.choice import Code, choose_codes, made_for
from astra_mesh.peer.inputs import Read, input_bytes
from astra_mesh.peer.loaded import Loaded
from astra_mesh.peer.part import tables_serve
from astra_mesh.peer.surroundings import Surroundings
from astra_mesh.plan.alternatives import choose_among
from astra_mesh.plan.check import BadPlanError, class_token_of
from astra_mesh.plan.cost import Candidate, Link
from astra_mesh.plan.left_out import left_out
from astra_mesh.plan.planner import Choice, Job
from astra_mesh.plan.referral import better_placed
from astra_mesh.wire.codec import sanitise
from astra_mesh.wire.messages import Ask, Inputs, PeerId, Refer, Task, Use

_NO_WAIT_S: Final = 0.01  # who waits for nobody takes less


class _Chosen(NamedTuple):
    """A plan, and what it was chosen from."""

    choice: Choice
    me: Candidate
    others: list[Candidate]
    links: Mapping[tuple[PeerId, PeerId], Link]


class Planning:
    """The plans of one request; ``notes`` gets a sentence for what its caller should know."""

    def __init__(
        self,
        ask: Ask,
        loaded: Loaded,
        around: Surroundings,
        compute: ComputeThread,
        notes: list[str],
    ) -> None:
        self.others: list[Candidate] = []  # as they measured themselves
        self._ask, self._loaded = ask, loaded
        self._around, self._compute, self._notes = around, compute, notes
        self._jobs: list[Job] = []
        self._alone = ""  # why nobody else could be planned with, where that is known
        self.loading_s = 0.0  # that others were waited for
        self._chosen: _Chosen | None = None  # last
        self._refers = ask.may_refer and ask.options.use is Use.AUTO and not ask.answered

    async def look_around(self, read: Read) -> Inputs:
        """Find the codes that would do and the peers that could help; what those are told.

        Raises:
            InputError, CodebookError: what the caller named does not exist or fit.
        """
        ask, loaded = self._ask, self._loaded
        codes, notes = await self._compute(choose_codes, loaded, ask.options, ask.task.value)
        self._notes += notes
        self._notes += [f"a codebook is left out: {problem}" for problem in loaded.problems]
        if ask.options.use is not Use.SOLO:
            books = [code.codebook for code in codes]
            everybody = ask.options.use is Use.ALL
            began = time.monotonic()
            others = await self._around.candidates(loaded, *books, patient=everybody)
            waited_s = time.monotonic() - began
            self.loading_s = waited_s if waited_s >= _NO_WAIT_S else 0.0
            told = self._around.left_out if everybody else self._around.loading
            self._notes += told(loaded, *books)
            self.others = self._trusted(others)
            if not self.others:
                without = self._around.left_out(loaded, *books)
                self._alone = _why_alone(others, without)
        inputs = await self._compute(read.for_others) if self.others else read.inputs
        self._jobs = [self._job(code, inputs, read.tokens) for code in codes]
        return inputs

    async def choose(self) -> Choice:
        """The plan with this peer as the one that answers."""
        me, others = self._as_seen()
        links = self._around.links()
        plans = self._around.lessons.plans
        choice = await self._compute(choose_among, self._jobs, me, others, links, plans)
        self._chosen = _Chosen(choice, me, others, links)
        if len(choice.plan.shards) > 1:
            plan = replace(choice.plan, late=self._ask.options.late)
            choice = dataclasses.replace(choice, plan=plan)
        return choice

    async def left_out(self) -> str:
        """Who has no part of the last plan, if it was an automatic one of several devices, and why;
        "" if nobody. Some predictions, for which the answer need not wait."""
        if self._chosen is None or self._ask.options.use is not Use.AUTO:
            return ""
        choice = self._chosen.choice
        if len(choice.plan.shards) < 2:
            return ""
        found = await self._compute(left_out, self._jobs, *self._chosen)
        if strangers := self._around.strangers(choice.plan.model):
            found.append(f"{listed(strangers)} (without the model)")
        return f"left out: {'; '.join(found)}" if found else ""

    async def refer(self, choice: Choice) -> Refer | None:
        """Where the client should ask instead, if another peer would answer much sooner."""
        ask = self._ask
        if not self._refers or ask.task is not Task.GENERATE or ask.sampling is None:
            return None
        self._refers = False  # once: a plan made anew after a loss is this peer's
        me, others = self._as_seen()
        places = {one.peer: self._around.address(one.peer) for one in others}
        others = [one for one in others if places[one.peer]]
        tokens, links = ask.sampling.max_new_tokens, self._around.links()
        plans = self._around.lessons.plans
        found = await self._compute(
            better_placed, self._jobs, choice, me, others, links, tokens, plans
        )
        if found is None:
            return None
        name = sanitise(found.peer.name)
        text = (
            f"{tokens} new tokens are predicted to take {found.its_s:.1f} s there, "
            f"{found.own_s:.1f} s on {sanitise(me.name)}"
        )
        return Refer(ask.request, found.peer.peer, name, places[found.peer.peer], text)

    def lose(self, peer: PeerId) -> list[str]:
        """Plan without a peer, and without those that have gone; their names, that peer first."""
        find_link = self._around.find_link
        names = Names({one.peer: sanitise(one.name) for one in self.others})
        gone = [one.peer for one in self.others if one.peer != peer and not find_link(one.peer)]
        self.others = [one for one in self.others if one.peer not in (peer, *gone)]
        return [names(one) for one in (peer, *gone)]

    def _as_seen(self) -> tuple[Candidate, list[Candidate]]:
        """This peer and the others, with what finished requests taught of them."""
        known, model = self._around.lessons.experience, self._loaded.bundle.model_id
        now = time.monotonic()
        me = self._around.me(self._loaded).seen(known, model, now)
        return me, [one.seen(known, model, now) for one in self.others]

    def _trusted(self, others: list[Candidate]) -> list[Candidate]:
        """Without those that sent false codes not long ago."""
        found = []
        for one in others:
            if self._around.checks.shuns(one.peer):
                self._notes.append(f"planned without {one.name}, which sent false codes before")
            else:
                found.append(one)
        return found

    def _job(self, code: Code, inputs: Inputs, tokens: int) -> Job:
        options, loaded, codec = self._ask.options, self._loaded, code.codec
        try:
            class_token = class_token_of(options.class_token or made_for(loaded, code.codebook))
        except BadPlanError as error:
            raise InputError(str(error)) from error
        job = Job(
            spec=loaded.spec,
            model=loaded.bundle.model_id,
            codebook=code.codebook,
            codec=codec.name,
            token_bytes={able: codec.rate(able) / 8 for able in codec.able},
            stages=code.stages,
            first_block=codec.first_block,
            class_token=class_token,
            pooling=loaded.spec.pooling(self._ask.task.value),
            tokens=tokens,
            use=options.use,
            max_peers=options.max_peers,
            input_bytes=input_bytes(inputs),
            tables=tables_serve(options.late),
            label=code.label,
            alone=self._alone,
        )
        drifts = self._around.lessons.drifts.known(job.codes, time.monotonic())
        return dataclasses.replace(job, drifts=drifts)


def _why_alone(shunned: list[Candidate], without: list[str]) -> str:
    """Why nobody else can be planned with, though others have the model; "" if none has it."""
    if shunned:
        return "the other peers with this model sent false codes before"
    return "no other peer here is ready for this model and codebook" if without else ""
