"""Who could take part: asking others to prepare, and being asked."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from astra_mesh import limits
from astra_mesh.errors import UnknownModelError
from astra_mesh.peer.candidates import Candidates
from astra_mesh.peer.figures import LinkFigures
from astra_mesh.plan.cost import Link as LinkProfile
from astra_mesh.wire.messages import (
    CodebookId,
    CodebookOffer,
    Device,
    Fail,
    Hello,
    LinkInfo,
    ModelId,
    ModelOffer,
    PeerId,
    Prepare,
    RequestId,
    Task,
    Timing,
)
from tests.unit.peer.fakes import A, B, C, D, FakeLink, hello_of

MODEL = ModelId("e" * 64)
E, F, G = (PeerId(letter * 64) for letter in "123")
BOOK, NO_BOOK = CodebookId("b" * 64), CodebookId("")
OFFER = ModelOffer(id=MODEL, name="words", family="gpt2", tasks=[Task.GENERATE])
TIMING = Timing(fixed_s=1e-3, per_token_s=1e-5, per_pair_s=1e-8)
DEVICE = Device(host="h", cores=1, host_cores=4, threads=1)
LOADING = "this tab has not loaded the model yet; requests can count on it once it has"
LOADED: Any = SimpleNamespace(bundle=SimpleNamespace(model_id=MODEL))


class FakePeer:
    """Peer A, with links to others whose hellos a test changes."""

    def __init__(self) -> None:
        self.id, self.name, self.device = A, "a", DEVICE
        self.hellos: dict[PeerId, Hello] = {}
        self.links: dict[PeerId, FakeLink] = {}
        self.models = self
        self.figures = LinkFigures()
        self.loading = asyncio.Event()
        self.error: Exception | None = None
        self.statuses: list[FakeLink] = []
        self._changed = asyncio.Event()

    def add(self, peer: PeerId, offer: ModelOffer, device: Device | None = DEVICE) -> FakeLink:
        self.hellos[peer] = replace(hello_of(peer), models=[offer], device=device)
        self.links[peer] = FakeLink(self.hellos[peer])
        self.note_change()
        return self.links[peer]

    def others(self) -> dict[PeerId, Hello]:
        return dict(self.hellos)

    def link(self, peer: PeerId) -> Any:
        return self.links.get(peer)

    async def others_changed(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def note_change(self) -> None:
        self._changed.set()

    async def load(self, model: ModelId) -> None:
        await self.loading.wait()
        if self.error is not None:
            raise self.error

    def send_status(self, link: FakeLink) -> None:
        self.statuses.append(link)


@pytest.fixture
def peer() -> FakePeer:
    return FakePeer()


@pytest.fixture
def candidates(peer: FakePeer) -> Candidates:
    return Candidates(peer)  # type: ignore[arg-type]


def ready(**timing: float) -> ModelOffer:
    return replace(OFFER, timing=replace(TIMING, **timing), loaded=True)


async def found(
    candidates: Candidates, book: CodebookId = NO_BOOK, patient: bool = False
) -> list[PeerId]:
    async with asyncio.timeout(10):
        return [one.peer for one in await candidates.others(LOADED, book, patient=patient)]


async def test_those_that_are_ready_are_not_asked(peer: FakePeer, candidates: Candidates) -> None:
    link = peer.add(B, ready())
    assert await found(candidates) == [B]
    assert link.sent == []


async def test_only_with_the_same_codebook(peer: FakePeer, candidates: Candidates) -> None:
    book = CodebookOffer(id=BOOK, codec="vq", rates=[8], default_rate=8)
    peer.add(B, replace(ready(), codebooks=[book]))
    peer.add(C, ready())
    assert await found(candidates, BOOK) == [B]


@pytest.mark.parametrize(
    "timing", [{"per_pair_s": 1e300}, {"fixed_s": 1e4}, {"head_s": 2000.0}, {"step_s": 1e18}]
)
async def test_claims_that_break_predictions(
    peer: FakePeer, candidates: Candidates, timing: dict[str, float]
) -> None:
    peer.add(B, ready(**timing))
    assert await found(candidates) == []


async def test_a_peer_without_a_device_is_left_out(peer: FakePeer, candidates: Candidates) -> None:
    peer.add(B, ready(), device=None)
    assert await found(candidates) == []


async def test_the_others_are_asked_once_and_waited_for(
    peer: FakePeer, candidates: Candidates
) -> None:
    link = peer.add(B, OFFER)
    waiting = asyncio.ensure_future(found(candidates))
    await asyncio.sleep(0)
    peer.note_change()
    await asyncio.sleep(0)
    assert [type(message) for message in link.sent] == [Prepare]
    peer.hellos[B] = replace(peer.hellos[B], models=[ready()])
    peer.note_change()
    assert await waiting == [B]
    assert candidates._asked == {}


async def test_a_peer_that_cannot_prepare_is_not_waited_for(
    peer: FakePeer, candidates: Candidates
) -> None:
    link = peer.add(B, OFFER)
    peer.add(C, ready())
    waiting = asyncio.ensure_future(found(candidates))
    await asyncio.sleep(0)
    fail = Fail(link.sent[0].request, "bad-bundle", "a file is damaged")  # type: ignore[union-attr]
    candidates.failed(C, fail)  # not its business
    await asyncio.sleep(0)
    assert not waiting.done()
    candidates.failed(B, fail)
    assert await waiting == [C]
    told = "planned without peer b: it could not load the model: a file is damaged"
    assert candidates.loading(LOADED, NO_BOOK) == [told]
    candidates.peer_gone(B)
    assert "has not loaded the model yet" in candidates.loading(LOADED, NO_BOOK)[0]


async def test_why_it_cannot_is_heard_also_when_nobody_waits_any_more(
    peer: FakePeer, candidates: Candidates
) -> None:
    """A tab finds a damaged file once it has fetched it; then it does not offer the model."""
    link = peer.add(B, OFFER)
    peer.hellos[B] = replace(peer.hellos[B], name="tab", via=C)
    assert await found(candidates) == []  # tabs are not waited for
    fail = Fail(link.sent[0].request, "model", "a file is damaged")  # type: ignore[union-attr]
    candidates.failed(C, fail)  # not its business
    peer.hellos[B] = replace(peer.hellos[B], models=[])
    assert candidates.left_out(LOADED, NO_BOOK) == []
    candidates.failed(B, fail)
    why = "it could not load the model: a file is damaged"
    assert candidates.left_out(LOADED, NO_BOOK) == [f"planned without tab: {why}"]
    assert candidates.why_without(B, MODEL) == why
    candidates.peer_gone(B)
    assert candidates.left_out(LOADED, NO_BOOK) == []


@pytest.mark.parametrize("back", [False, True])
async def test_a_peer_that_leaves_meanwhile_is_not_waited_for(
    peer: FakePeer, candidates: Candidates, back: bool
) -> None:
    peer.add(B, OFFER)
    waiting = asyncio.ensure_future(found(candidates))
    await asyncio.sleep(0)
    if not back:
        del peer.hellos[B], peer.links[B]
    candidates.peer_gone(B)
    peer.note_change()
    assert await waiting == []


async def test_the_wait_has_an_end(
    peer: FakePeer, candidates: Candidates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short for who did not ask for all peers: a slow board is not what the answer waits for."""
    monkeypatch.setattr(limits, "PREPARE_TIMEOUT_S", 0.2)
    monkeypatch.setattr(limits, "LOADING_S", 0.01)
    peer.add(B, OFFER)
    peer.add(C, ready())
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert await found(candidates) == [C]
    assert loop.time() - began < 0.15
    monkeypatch.setattr(limits, "LOADING_S", 60.0)
    assert await found(candidates) == [C]  # once only
    assert loop.time() - began < 0.15
    began = loop.time()
    assert await found(candidates, patient=True) == [C]
    assert loop.time() - began > 0.2
    assert candidates._asked == {}


async def test_others_load_while_this_peer_does(peer: FakePeer, candidates: Candidates) -> None:
    cold, warm = peer.add(B, OFFER), peer.add(C, ready())
    other = peer.add(D, replace(OFFER, id=ModelId("d" * 64)))
    candidates.wake(MODEL)
    assert [type(message) for message in cold.sent] == [Prepare]
    assert warm.sent == other.sent == []


async def test_who_still_loads_is_named(peer: FakePeer, candidates: Candidates) -> None:
    for key in (B, C, D):
        peer.add(key, OFFER if key != D else ready())
    peer.hellos[C] = replace(peer.hellos[C], via=D)
    (told,) = candidates.loading(LOADED, NO_BOOK)
    assert told.startswith("planned without peer b: it has not loaded the model yet; requests")


async def test_a_tab_is_waited_for_once_and_a_little(
    peer: FakePeer, candidates: Candidates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has to fetch the model, which may take minutes; the request goes on without it."""
    monkeypatch.setattr(limits, "TAB_PREPARE_S", 0.5)
    link = peer.add(B, OFFER)
    peer.hellos[B] = replace(peer.hellos[B], via=C)
    peer.add(C, ready())
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert await found(candidates) == [C]
    assert loop.time() - began < 0.5  # not at all where nobody asked for everybody
    assert await found(candidates, patient=True) == [C]
    assert loop.time() - began >= 0.5
    monkeypatch.setattr(limits, "TAB_PREPARE_S", 60.0)
    assert await found(candidates, patient=True) == [C]
    assert [type(message) for message in link.sent] == [Prepare, Prepare, Prepare]
    peer.hellos[B] = replace(peer.hellos[B], models=[ready()])
    assert await found(candidates) == [B, C]
    candidates.peer_gone(B)
    assert not candidates._waited


async def test_a_tab_that_is_quick_is_in_the_first_plan(
    peer: FakePeer, candidates: Candidates
) -> None:
    peer.add(B, OFFER)
    peer.hellos[B] = replace(peer.hellos[B], via=C)
    waiting = asyncio.ensure_future(found(candidates, patient=True))
    await asyncio.sleep(0)
    peer.hellos[B] = replace(peer.hellos[B], models=[ready()])
    peer.note_change()
    assert await waiting == [B]


async def test_thin_links_do_not_make_predictions_infinite(
    peer: FakePeer, candidates: Candidates
) -> None:
    link: Any = peer.add(B, ready())
    link.round_trip_s, link.send_bps, link.receive_bps = 0.01, None, 1e-300
    profiles = candidates.links()
    assert profiles[B, A].bps == 1000
    assert profiles[A, B].bps > 1e6


async def test_links_between_others_are_those_that_they_tell(
    peer: FakePeer, candidates: Candidates
) -> None:
    for key in (B, C, D):
        link: Any = peer.add(key, ready())
        link.round_trip_s, link.send_bps, link.receive_bps = 0.02, 4e6, 4e6
    around = LinkProfile(0.02, 4e6)
    assert candidates.links()[B, C] == around
    peer.figures.take(B, [LinkInfo(C, 0.001, 9e8), LinkInfo(D, None, 1e-300)])
    profiles = candidates.links()
    assert profiles[B, C] == LinkProfile(0.001, 9e8)
    assert profiles[C, B] == LinkProfile(0.001, 4e6)  # the delay is that of both directions
    assert profiles[B, D] == LinkProfile(0.02, 1000)
    assert profiles[C, D] == around
    peer.figures.forget(B)
    assert candidates.links()[B, C] == around


async def test_who_is_left_out_is_named_with_the_reason(
    peer: FakePeer, candidates: Candidates
) -> None:
    other = CodebookOffer(id=CodebookId("f" * 64), codec="vq", rates=[8], default_rate=8)
    peer.add(B, replace(OFFER, codebooks=[other]))
    book = replace(other, id=BOOK)
    names = {B: "bare", C: "tab", D: "quick", E: "slow", F: "lazy"}
    peer.add(C, replace(OFFER, codebooks=[book]))
    peer.add(D, replace(ready(), codebooks=[book]))
    peer.add(E, replace(ready(step_s=1e18), codebooks=[book]))
    peer.add(F, replace(OFFER, codebooks=[book]))
    peer.add(G, replace(OFFER, id=ModelId("d" * 64)))
    for key, name in names.items():
        peer.hellos[key] = replace(peer.hellos[key], name=name, via=D if name == "tab" else "")
    assert candidates.left_out(LOADED, BOOK) == [
        "planned without bare: it has the model, but not the codebook",
        f"planned without tab: {LOADING}",
        "planned without slow: what it says of its own speed cannot be",
        f"planned without lazy: {LOADING.replace('this tab', 'it')}",
    ]
    model = LOADED.bundle.model_id
    assert candidates.why_without(C, model) == LOADING
    assert candidates.why_without(E, model) == "what it says of its own speed cannot be"
    assert candidates.why_without(D, model) == candidates.why_without(G, model) == ""
    peer.hellos[G] = replace(peer.hellos[G], via=D)  # one that refused its files, say
    assert candidates.why_without(G, model).startswith("this tab does not offer the model: it can")
    peer.hellos = {key: one for key, one in peer.hellos.items() if key == D}
    assert candidates.left_out(LOADED, BOOK) == []


# --- being asked ----------------------------------------------------------------------------------


def prepare(number: int) -> Prepare:
    return Prepare(request=RequestId(number), model=MODEL)


async def test_each_request_to_prepare_gets_a_status(
    peer: FakePeer, candidates: Candidates
) -> None:
    """Also when the model was loaded long ago and the asking peer did not hear of it."""
    link: Any = FakeLink(hello_of(B))
    peer.loading.set()
    await candidates.prepare(link, prepare(1))
    await candidates.prepare(link, prepare(2))
    assert peer.statuses == [link, link]


@pytest.mark.parametrize("error", [UnknownModelError("no such model"), OSError("disk")])
async def test_all_that_asked_meanwhile_hear_of_a_failure(
    peer: FakePeer, candidates: Candidates, error: Exception
) -> None:
    peer.error, link = error, FakeLink(hello_of(B))
    asked: list[Any] = [candidates.prepare(link, prepare(n)) for n in (1, 2, 3)]  # type: ignore[arg-type]
    running = asyncio.gather(*asked, return_exceptions=True)
    await asyncio.sleep(0)
    peer.loading.set()
    await running
    assert {x.request for x in link.sent if isinstance(x, Fail)} == {1, 2, 3}
    assert candidates._preparing == {}


async def test_a_flood_of_requests_is_held_to_a_limit(
    peer: FakePeer, candidates: Candidates, caplog: pytest.LogCaptureFixture
) -> None:
    link: Any = FakeLink(hello_of(B))
    peer.error = UnknownModelError("no")
    with caplog.at_level(logging.WARNING):
        running = asyncio.ensure_future(candidates.prepare(link, prepare(0)))
        await asyncio.sleep(0)
        for number in range(1, 1000):
            await candidates.prepare(link, prepare(number))
        peer.loading.set()
        await running
    assert len(link.sent) == limits.OPEN_REQUESTS_PER_LINK
    assert not caplog.records
