"""Codes that overtook their proposal, which comes over another link: few, for a short time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import NamedTuple

from astra_mesh import limits
from astra_mesh.errors import ProtocolError
from astra_mesh.mesh.flow import cost
from astra_mesh.mesh.link import Link
from astra_mesh.wire.messages import Codes, PeerId, Pooled, RequestId


class Early(NamedTuple):
    """A message whose request is not known here yet."""

    link: Link
    sender: PeerId
    message: Codes | Pooled


@dataclass
class _Held:
    timer: asyncio.TimerHandle
    items: list[Early] = field(default_factory=list)


class EarlyCodes:
    """Holds messages until their request is known; credit goes back for those that are dropped."""

    def __init__(self) -> None:
        self._held: dict[RequestId, _Held] = {}
        self._sizes: dict[Link, int] = {}  # cost of what each link brought; never 0

    def put(self, link: Link, sender: PeerId, message: Codes | Pooled) -> None:
        """Hold a message; ProtocolError if its sender makes us hold too much."""
        size = self._sizes.get(link, 0) + cost(message)
        if size > limits.EARLY_CODES_BYTES:
            raise ProtocolError("too many codes for requests that are not known here")
        self._sizes[link] = size
        held = self._held.get(message.request)
        if held is None:
            loop = asyncio.get_running_loop()
            timer = loop.call_later(limits.EARLY_CODES_S, self.drop, message.request)
            held = self._held[message.request] = _Held(timer)
        held.items.append(Early(link, sender, message))

    def take(self, request: RequestId) -> list[Early]:
        """What came early for a request; the caller gives back the credit."""
        held = self._held.pop(request, None)
        if held is None:
            return []
        held.timer.cancel()
        for item in held.items:
            self._sizes[item.link] -= cost(item.message)
            if not self._sizes[item.link]:
                del self._sizes[item.link]
        return held.items

    def drop(self, request: RequestId) -> None:
        """Forget a request, and give back the credit."""
        for item in self.take(request):
            item.link.consumed(item.message)

    def drop_link(self, link: Link) -> None:
        """Forget what came over a link that is over."""
        if self._sizes.pop(link, None) is None:
            return
        for request, held in list(self._held.items()):
            held.items = [item for item in held.items if item.link is not link]
            if not held.items:
                held.timer.cancel()
                del self._held[request]

    def clear(self) -> None:
        """Forget everything."""
        for held in self._held.values():
            held.timer.cancel()
        self._held.clear()
        self._sizes.clear()
