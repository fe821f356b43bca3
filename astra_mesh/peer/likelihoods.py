"""Log-probabilities of new tokens, for programs in the peer's own process: its API.

They cross no link: whoever asks notes the id of its request here before it asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from astra_mesh.engine.sampling import Likely
from astra_mesh.wire.messages import RequestId


class Noted:
    """Of one request's tokens, until they are taken; ``best`` as :class:`Decoder` has it."""

    def __init__(self, best: int) -> None:
        self.best = best
        self._found: dict[int, Likely] = {}

    def put(self, index: int, likely: Likely) -> None:
        """Keep what is known of a token, before it is sent."""
        self._found[index] = likely

    def take(self, index: int) -> Likely:
        """Of a token that was sent; once."""
        return self._found.pop(index)


class Likelihoods:
    """The requests of which somebody wants to know."""

    def __init__(self) -> None:
        self._wanted: dict[RequestId, Noted] = {}

    @contextmanager
    def of(self, request: RequestId, best: int) -> Iterator[Noted]:
        """Note those of a request that starts within the ``with``."""
        noted = self._wanted[request] = Noted(best)
        try:
            yield noted
        finally:
            del self._wanted[request]

    def find(self, request: RequestId) -> Noted | None:
        """Where to note those of a request; None if nobody wants them."""
        return self._wanted.get(request)
