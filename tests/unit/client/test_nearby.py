"""What a search makes of announcements."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from astra_mesh.client import nearby
from astra_mesh.mesh.connect import Address
from astra_mesh.wire.messages import PeerId

ONE, OTHER = PeerId("1" * 64), PeerId("2" * 64)
NEAR, FAR, FORGED = ("192.0.2.1", 7475), ("198.51.100.1", 7475), ("203.0.113.6", 9)
HEARD: list[tuple[PeerId, list[Address]]] = [
    (ONE, [FORGED]),  # somebody announces it before it does so itself
    (ONE, [NEAR, FAR]),
    (OTHER, [NEAR]),
    (ONE, [NEAR, FORGED, FAR]),
]


class Announced:
    """Hears all at once, and nothing more."""

    def __init__(self, *_: Any, on_found: Any, **__: Any) -> None:
        self._on_found = on_found

    async def run(self) -> None:
        for peer, addresses in HEARD:
            self._on_found(peer, "", addresses)
        await asyncio.Event().wait()


async def test_a_forged_announcement_hides_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearby, "Discovery", Announced)
    monkeypatch.setattr(nearby, "SEARCH_S", 0.05)
    async with aclosing(nearby.search()) as found:
        assert [addresses async for addresses in found] == [[FORGED], [NEAR, FAR], [NEAR]]
