"""What tests of requests that go wrong share: what is asked, of whom, and whether all is over."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from astra_mesh.peer import Peer
from astra_mesh.peer.candidates import Candidates
from astra_mesh.wire.messages import (
    Options,
    Propose,
    RequestId,
    Sampling,
    Task,
    Use,
)
from tests.integration.hostile import Hostile
from tests.integration.mesh_fixtures import (
    TestClient,
    until,
)

PROMPT = [(7 * i) % 64 for i in range(40)]
SHORT = Sampling(max_new_tokens=4)
ALL = Options(use=Use.ALL, codec="fp32")


def ask_words(client: TestClient, **more: Any) -> RequestId:
    options = more.pop("options", ALL)
    given: dict[str, Any] = {"tokens": PROMPT, "sampling": SHORT} | more
    return client.send(Task.GENERATE, "words", options=options, **given)


def busy(peer: Peer) -> bool:
    requests = peer._requests
    assert requests is not None
    return bool(
        requests._answers
        or requests._parts
        or requests._exchanges
        or requests._running
        or requests._early._held
    )


async def all_idle(peers: list[Peer]) -> None:
    await until(lambda: not any(busy(peer) for peer in peers), wait_s=5.0)


async def warm(peer: Peer) -> None:
    """Load everything, so that a hostile peer can offer it too."""
    for offer in peer.models.offers():
        await peer.models.load(offer.id)


class Gate:
    """Replaces a coroutine function: those who come wait for ever, until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()
        original = getattr(owner, name)

        async def gated(*args: Any, **kwargs: Any) -> Any:
            self.reached.set()
            await self.opened.wait()
            return await original(*args, **kwargs)

        monkeypatch.setattr(owner, name, gated)


def ignore(one: Hostile, propose: Propose) -> None:
    """Says nothing at all."""


def only(original: Any, peer: str) -> Any:
    """Stands for a method that finds candidates; finds this one at most."""

    async def others(self: Candidates, *args: Any, **kwargs: Any) -> Any:
        return [one for one in await original(self, *args, **kwargs) if one.peer == peer]

    return others
