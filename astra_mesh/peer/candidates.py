"""What planning needs to know: who could take part, how fast each is, and the links."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from astra_mesh import limits
from astra_mesh.errors import AstraMeshError, InternalError
from astra_mesh.mesh.link import Link
from astra_mesh.peer.answer import new_request
from astra_mesh.peer.lessons import Lessons
from astra_mesh.peer.loaded import Loaded
from astra_mesh.peer.pace import differ
from astra_mesh.peer.sending import send_if_open
from astra_mesh.plan.cost import Books, Candidate, CodeCost
from astra_mesh.plan.cost import Link as LinkProfile
from astra_mesh.plan.experience import Conditions
from astra_mesh.wire.codec import sanitise
from astra_mesh.wire.messages import (
    CodebookId,
    Fail,
    Hello,
    ModelId,
    ModelOffer,
    PeerId,
    Prepare,
    RequestId,
    Timing,
)

if TYPE_CHECKING:
    from astra_mesh.peer.peer import Peer

_SLOWEST_S = 1000.0  # a peer that claims to need longer for anything is no candidate
_TYPICAL = 64  # tokens of a shard
_ALIKE = 1.25  # times: measurements of one device differ by as much
NO_CODEBOOK = CodebookId("")
_THINNEST_BPS = 1000.0  # nor does any other claim make a prediction infinite


class Candidates:
    """Collects candidates, and answers others that do."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self.lessons = Lessons()
        self._asked: dict[RequestId, tuple[PeerId, ModelId]] = {}  # to prepare, did not fail yet
        self._unanswered: dict[tuple[PeerId, ModelId], RequestId] = {}  # the last, not waited for
        self._failed: dict[tuple[PeerId, ModelId], str] = {}  # why it could not the last time
        self._waited: dict[tuple[PeerId, ModelId], float] = {}  # for which, until when
        self._timings: dict[tuple[PeerId, ModelId], Timing] = {}  # that paces were learned beside
        self._preparing: dict[tuple[Link, ModelId], set[RequestId]] = {}  # for others

    def me(self, loaded: Loaded) -> Candidate:
        """This peer."""
        offer = self._peer.models.offer(loaded.bundle.model_id)
        timing = offer.timing if offer is not None else None
        assert timing is not None  # it is loaded
        assert offer is not None
        self._follow(self._peer.id, offer.id, timing)
        return Candidate(self._peer.id, self._peer.name, self._peer.device, timing, _books(offer))

    async def others(
        self, loaded: Loaded, *codebooks: CodebookId, patient: bool = False
    ) -> list[Candidate]:
        """Other peers with this model and one of these codebooks, loaded and measured there.

        An empty id stands for codecs without a codebook, which every peer has. Those that still
        have to load the model are asked to, and waited for a little, or as long as a slow board
        takes if ``patient``; tabs, which have to fetch it, not at all or a little.
        """
        model = loaded.bundle.model_id
        asked: dict[PeerId, RequestId] = {}
        end = _now() + limits.PREPARE_TIMEOUT_S
        try:
            while (
                wait_s := self._unready(self._offers(model, codebooks), asked, end, patient)
            ) > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._peer.others_changed()
        finally:
            for request in asked.values():
                if (key := self._asked.pop(request, None)) is not None:
                    self._unanswered[key] = request
        hellos = self._peer.others()
        self.lessons.recognise(hellos)
        found = []
        for peer, offer in self._offers(model, codebooks).items():
            device, timing = hellos[peer].device, offer.timing
            if device is not None and timing is not None and not self._not_ready(peer, offer):
                self._follow(peer, model, timing)
                found.append(Candidate(peer, hellos[peer].name, device, timing, _books(offer)))
        return found

    def _follow(self, peer: PeerId, model: ModelId, timing: Timing) -> None:
        """Forget what was learned of a peer beside figures that it does not stand by any more."""
        before = self._timings.get((peer, model))
        if before is None or not _alike(before, timing):
            self._timings[peer, model] = timing
        if before is not None and not _alike(before, timing):
            self.lessons.experience.forget(peer, model)

    def doubt(self) -> None:
        """Tell others where this peer's own requests contradict its figures of a model, and let it
        compare them when there is time.
        """
        for offer in self._peer.models.offers():
            alone = Conditions(offer.id, alone=True)
            now = time.monotonic()
            pace = self.lessons.experience.pace(self._peer.id, alone, now).compute
            if differ(pace, 1.0):
                self._peer.models.doubt(offer.id)
                self._peer.models.took(offer.id, pace)
                self.lessons.experience.forget(self._peer.id, offer.id)

    def wake(self, model: ModelId) -> None:
        """Let others load a model while this peer does."""
        for peer, hello in self._peer.others().items():
            link = self._peer.link(peer)
            if link is not None and any(x.id == model and x.timing is None for x in hello.models):
                send_if_open(link, Prepare(request=new_request(), model=model))

    def loading(self, loaded: Loaded, *codebooks: CodebookId) -> list[str]:
        """A sentence for each other device that is no candidate because it still loads the model;
        of tabs only those who ask for all peers are told."""
        hellos = self._peer.others()
        return [
            _left_out(hellos[peer], self._not_ready(peer, offer))
            for peer, offer in self._offers(loaded.bundle.model_id, codebooks).items()
            if offer.timing is None and not hellos[peer].via
        ]

    def left_out(self, loaded: Loaded, *codebooks: CodebookId) -> list[str]:
        """A sentence for each other peer that has the model and is no candidate, and why."""
        offers = self._offers(loaded.bundle.model_id, codebooks)
        notes = []
        for peer, hello in self._peer.others().items():
            if peer in offers:
                why = self._not_ready(peer, offers[peer])
            elif any(offer.id == loaded.bundle.model_id for offer in hello.models):
                why = "it has the model, but not the codebook"
            else:
                why = self._could_not_load(peer, loaded.bundle.model_id)
            if why:
                notes.append(_left_out(hello, why))
        return notes

    def why_without(self, peer: PeerId, model: ModelId) -> str:
        """Why a peer cannot be planned with for a model; "" if it can."""
        hello = self._peer.others()[peer]
        for offer in hello.models:
            if offer.id == model:
                return self._not_ready(peer, offer)
        if not hello.via:
            return ""
        no_files = "this tab does not offer the model: it cannot use it, or has no files of it"
        return self._could_not_load(peer, model) or no_files

    def _not_ready(self, peer: PeerId, offer: ModelOffer) -> str:
        """Why a peer that has the model and the codebook cannot be planned with; "" if it can."""
        hello = self._peer.others()[peer]
        if offer.timing is None:
            what = "this tab" if hello.via else "it"
            not_yet = f"{what} has not loaded the model yet; requests can count on it once it has"
            return self._could_not_load(peer, offer.id) or not_yet
        if hello.device is None or not _credible(offer.timing):
            return "what it says of its own speed cannot be"
        return ""

    def _could_not_load(self, peer: PeerId, model: ModelId) -> str:
        """Why it could not the last time that it was asked to; a tab then offers it no more."""
        why = self._failed.get((peer, model))
        return f"it could not load the model: {sanitise(why)}" if why else ""

    def _offers(
        self, model: ModelId, codebooks: Collection[CodebookId]
    ) -> dict[PeerId, ModelOffer]:
        found = {}
        for peer, hello in self._peer.others().items():
            for offer in hello.models:
                held = {NO_CODEBOOK, *(book.id for book in offer.codebooks)}
                has_book = not held.isdisjoint(codebooks)
                if offer.id == model and has_book:
                    found[peer] = offer
        return found

    def _unready(
        self,
        offers: Mapping[PeerId, ModelOffer],
        asked: dict[PeerId, RequestId],
        end: float,
        patient: bool,
    ) -> float:
        """Ask those that have not loaded the model; how long they are still waited for, seconds."""
        ends = [0.0]
        for peer, offer in offers.items():
            if offer.timing is not None:
                continue
            if peer not in asked:
                asked[peer] = self._ask_to_prepare(peer, offer.id)
            if asked[peer] in self._asked:
                ends.append(min(end, self._patience_with(peer, offer.id, patient)))
        return max(ends) - _now()

    def _patience_with(self, peer: PeerId, model: ModelId, patient: bool) -> float:
        """Until when a peer is waited for: once a little, and when it is ready later requests count
        on it. Who asks for all waits as long as loading takes; for a tab, which has to fetch the
        model first, only that one waits at all.
        """
        if self._peer.others()[peer].via:
            return self._once(peer, model, limits.TAB_PREPARE_S) if patient else 0.0
        return math.inf if patient else self._once(peer, model, limits.LOADING_S)

    def _once(self, peer: PeerId, model: ModelId, seconds: float) -> float:
        return self._waited.setdefault((peer, model), _now() + seconds)

    def _ask_to_prepare(self, peer: PeerId, model: ModelId) -> RequestId:
        request, link = new_request(), self._peer.link(peer)
        if link is not None:
            self._asked[request] = peer, model
            send_if_open(link, Prepare(request=request, model=model))
        return request

    def failed(self, peer: PeerId, message: Fail) -> None:
        """A peer cannot prepare, whether or not it is still waited for."""
        late = {request: key for key, request in self._unanswered.items() if key[0] == peer}
        asked = self._asked.get(message.request) or late.get(message.request)
        if asked is not None and asked[0] == peer:
            self._asked.pop(message.request, None)
            self._unanswered.pop(asked, None)
            self._failed[asked] = message.text
            self._peer.note_change()

    def peer_gone(self, peer: PeerId) -> None:
        """It will not prepare either; if it comes back, it is not waited for."""
        self._asked = {one: asked for one, asked in self._asked.items() if asked[0] != peer}
        known: tuple[dict[tuple[PeerId, ModelId], Any], ...] = (
            self._unanswered,
            self._failed,
            self._waited,
            self._timings,
        )
        for kept in known:
            for key in [key for key in kept if key[0] == peer]:
                del kept[key]

    def links(self) -> Mapping[tuple[PeerId, PeerId], LinkProfile]:
        """Links of this peer, both ways, as measured, and those of others, as they tell them.

        What nobody tells of a link between two others is taken to be no better than the two links
        that lead from one to this peer and on to the other.
        """
        found: dict[tuple[PeerId, PeerId], LinkProfile] = {}
        default = LinkProfile()
        for peer in self._peer.others():
            link = self._peer.link(peer)
            if link is None:
                continue
            delay = link.round_trip_s if link.round_trip_s is not None else default.round_trip_s
            up, down = link.send_bps or default.bps, link.receive_bps or default.bps
            found[self._peer.id, peer] = LinkProfile(delay, max(up, _THINNEST_BPS))
            found[peer, self._peer.id] = LinkProfile(delay, max(down, _THINNEST_BPS))
        for one, other in itertools.permutations([peer for _, peer in list(found)[::2]], 2):
            first, second = found[one, self._peer.id], found[self._peer.id, other]
            told = self._peer.figures.between(one, other)
            around = max(first.round_trip_s, second.round_trip_s)
            bps = min(first.bps, second.bps) if told.send_bps is None else told.send_bps
            found[one, other] = LinkProfile(
                around if told.round_trip_s is None else told.round_trip_s,
                max(bps, _THINNEST_BPS),
            )
        return found

    async def prepare(self, link: Link, message: Prepare) -> None:
        """Load a model for another peer. It gets a status, also if there is nothing new."""
        key = (link, message.model)
        if key in self._preparing:
            if len(self._preparing[key]) < limits.OPEN_REQUESTS_PER_LINK:
                self._preparing[key].add(message.request)
            return
        self._preparing[key] = {message.request}
        try:
            await self._peer.models.load(message.model)
            self._peer.send_status(link)
        except AstraMeshError as error:
            self._cannot(link, self._preparing[key], error)
        except Exception as error:
            text = f"{self._peer.name} met an error of its own ({type(error).__name__})"
            self._cannot(link, self._preparing[key], InternalError(text))
            raise
        finally:
            del self._preparing[key]

    def _cannot(self, link: Link, requests: set[RequestId], error: AstraMeshError) -> None:
        for request in requests:
            text = sanitise(error.message)
            send_if_open(link, Fail(request=request, code=error.code, text=text))


def _now() -> float:
    return asyncio.get_running_loop().time()


def _books(offer: ModelOffer) -> Books:
    """The codebooks of an offer, with their costs where those are measured and credible."""
    found = {}
    for book in offer.codebooks:
        project = book.project_token_s or book.decode_token_s
        costs = itertools.starmap(
            CodeCost, zip(book.encode_token_s, book.decode_token_s, project, strict=True)
        )
        measured = zip(book.rates, costs, strict=False)
        found[book.id] = {bits: cost for bits, cost in measured if max(cost) <= _SLOWEST_S}
    return found


def _alike(one: Timing, other: Timing) -> bool:
    """Whether two measurements say about the same of a block."""
    first, second = (
        timing.fixed_s + timing.per_token_s * _TYPICAL + timing.per_pair_s * _TYPICAL**2
        for timing in (one, other)
    )
    return max(first, second) <= _ALIKE * min(first, second)


def _left_out(hello: Hello, why: str) -> str:
    return f"planned without {sanitise(hello.name)}: {why}"


def _credible(timing: Timing) -> bool:
    return all(value <= _SLOWEST_S for value in msgspec.structs.astuple(timing))
