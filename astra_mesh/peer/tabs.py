"""Browser tabs that take part through this peer: how channels from others reach them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from astra_mesh import limits
from astra_mesh.mesh.relay import Forward
from astra_mesh.wire.messages import Hello, PeerId


class Tabs:
    """The tabs that one peer serves."""

    def __init__(self) -> None:
        self._forwards: dict[PeerId, Forward] = {}
        self.dialling = asyncio.Semaphore(limits.TAB_DIALS)  # while a channel is being opened

    @contextmanager
    def hosting(self, tab: PeerId, forward: Forward) -> Iterator[None]:
        """Meanwhile channels for this tab are handed to ``forward``."""
        self._forwards[tab] = forward
        try:
            yield
        finally:
            del self._forwards[tab]

    def forward(self, tab: PeerId) -> Forward | None:
        """How to reach a tab; None if it is not served here."""
        return self._forwards.get(tab)


def host_of(peer: PeerId, hello: Hello | None) -> PeerId:
    """Whom to dial for a peer: itself, or who relays for it."""
    return hello.via if hello is not None and hello.via else peer
