"""How fast a device is now: looked at while nothing runs, and told once it is certain."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from pathlib import Path

import pytest

from astra_mesh.engine.compute import ComputeThread
from astra_mesh.peer import models as module
from astra_mesh.peer import pace
from astra_mesh.peer.models import ModelHost
from astra_mesh.wire.messages import CodebookId, CodebookOffer, ModelOffer, Timing
from tests.bundles import GPT2, gpt2_tensors, write_bundle


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_bundle(tmp_path / "words", GPT2, gpt2_tensors(GPT2))
    monkeypatch.setenv("ASTRA_MESH_MODELS", str(tmp_path))
    return tmp_path


@pytest.fixture
async def host(folder: Path) -> AsyncIterator[ModelHost]:
    compute = ComputeThread()
    host = ModelHost(("words",), compute)
    await host.start()
    await host.load(host.find("words"))
    yield host
    compute.close()


def offer_of(host: ModelHost) -> ModelOffer:
    (offer,) = host.offers()
    return offer


def looks(monkeypatch: pytest.MonkeyPatch, *ratios: float) -> None:
    """What each look will find."""
    found: Iterator[float] = iter(ratios)

    def comparing(*_: object) -> Generator[None, None, float]:
        yield
        return next(found)

    monkeypatch.setattr(module, "comparing", comparing)


async def test_a_change_is_told_once_two_looks_saw_it(
    host: ModelHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = offer_of(host).timing
    assert before is not None
    looks(monkeypatch, 1.1, 4.0, 4.2, 4.0, 1.0, 1.0)
    assert await host.feel(lambda: True)  # about the same
    assert not await host.feel(lambda: True)
    assert offer_of(host).timing == before
    assert await host.feel(lambda: True)
    slow = offer_of(host).timing
    assert slow is not None
    assert slow.per_token_s == pytest.approx(4.2 * before.per_token_s)
    assert slow.step_s == pytest.approx(4.2 * before.step_s)
    assert await host.feel(lambda: True)  # still so
    assert offer_of(host).timing == slow
    assert not await host.feel(lambda: True)
    assert await host.feel(lambda: True)
    assert offer_of(host).timing == before


async def test_two_looks_that_differ_say_nothing(
    host: ModelHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = offer_of(host).timing
    looks(monkeypatch, 9.0, 3.0, 1.0)
    for certain in (False, False, True):
        assert await host.feel(lambda: True) is certain
        assert offer_of(host).timing == before


async def test_a_request_ends_a_look(host: ModelHost, monkeypatch: pytest.MonkeyPatch) -> None:
    looks(monkeypatch, 9.0, 9.0)
    idle = iter([True, False, False])
    assert not await host.feel(lambda: next(idle))
    assert host._entries[offer_of(host).id].felt is None


async def test_what_own_answers_took_is_told_at_once(
    host: ModelHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = offer_of(host).timing
    assert before is not None
    host.took(offer_of(host).id, 3.0)
    host.took(offer_of(host).id, 2.0)
    slow = offer_of(host).timing
    assert slow is not None
    assert slow.step_s == pytest.approx(6.0 * before.step_s)
    host.took(offer_of(host).id, 1e9)
    most = offer_of(host).timing
    assert most is not None
    assert most.step_s == pytest.approx(pace.BOUND * before.step_s)
    looks(monkeypatch, 1.0, 1.0)  # it has recovered
    assert not await host.feel(lambda: True)
    assert await host.feel(lambda: True)
    assert offer_of(host).timing == before


def test_all_that_takes_time_is_slowed() -> None:
    slow = pace.slowed(Timing(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0), 2.0)
    assert slow == Timing(2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0)
    book = CodebookOffer(CodebookId("b"), "vq", [16, 32], 16, [1.0, 2.0], [3.0, 4.0])
    (found,) = pace.slowed_codes([book], 3.0)
    assert (found.encode_token_s, found.decode_token_s) == ([3.0, 6.0], [9.0, 12.0])
    assert (found.project_token_s, found.rates) == ([], [16, 32])


class Felt:
    """Certain but for the second look."""

    def __init__(self) -> None:
        self.at: list[float] = []

    async def feel(self, idle: Callable[[], bool]) -> bool:
        self.at.append(asyncio.get_running_loop().time())
        return len(self.at) != 2


async def test_it_looks_again_soon_where_it_is_not_certain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "PULSE_S", 0.3)
    monkeypatch.setattr(pace, "PULSE_AGAIN_S", 0.05)
    felt, anybody = Felt(), False
    looking = asyncio.ensure_future(pace.follow_pace(felt, lambda: True, lambda: anybody))
    await asyncio.sleep(0.4)
    assert felt.at == []  # nobody is there who wants to know
    anybody = True
    while len(felt.at) < 3:
        await asyncio.sleep(0.01)
    looking.cancel()
    first, second, third = felt.at[:3]
    assert third - second < second - first


async def test_it_takes_a_small_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much a look costs on a weak device; one that is held up meanwhile costs nothing."""
    monkeypatch.setattr(pace, "PULSE_S", 0.01)
    monkeypatch.setattr(pace, "PULSE_SHARE", 0.1)
    felt = Felt()

    async def long(idle: Callable[[], bool]) -> bool:
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass
        felt.at.append(0.0)
        return True

    monkeypatch.setattr(felt, "feel", long)
    looking = asyncio.ensure_future(pace.follow_pace(felt, lambda: True, lambda: True))
    await asyncio.sleep(0.4)
    looking.cancel()
    assert len(felt.at) == 1
