"""What a stream says while its request waits: who loads the model, else that it is alive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from astra_mesh.limits import LOADING_TELL_S
from astra_mesh.peer import Peer, tasks
from astra_mesh.web.sse import EventStream, ReaderGoneError
from astra_mesh.wire.messages import ModelId

KEEP_ALIVE: Final = "keep-alive"


class Waiting:
    """One request for a model.

    Args:
        peer: that answers it.
        model: that it wants.
        name: of the model, for people.
        alone: whether no other peer may take part.
        keepalive_s: without news for so long, a stream says something.
    """

    def __init__(
        self, peer: Peer, model: ModelId, name: str, alone: bool, keepalive_s: float
    ) -> None:
        self._peer, self._model, self._name = peer, model, name
        self._alone, self._keepalive_s = alone, keepalive_s
        self._told = self._begun = False

    def begin(self) -> None:
        """The first news came: nobody is waited for any more."""
        self._begun = True

    @property
    def is_cold(self) -> bool:
        """Whether this peer does not have the model in memory yet."""
        return not self._peer.models.is_loaded(self._model)

    @property
    def pause_s(self) -> float:
        """How long no news may come before :meth:`text` is to be said."""
        soon = not self._told and bool(self._loading())
        return min(self._keepalive_s, LOADING_TELL_S) if soon else self._keepalive_s

    def text(self) -> str:
        """What to say now."""
        loading = self._loading()
        self._told = bool(loading)
        return f"loading {self._name} on {', '.join(loading)}" if loading else KEEP_ALIVE

    @asynccontextmanager
    async def telling(self, stream: EventStream | None) -> AsyncIterator[None]:
        """Meanwhile say on a stream, if there is one, what is waited for."""
        if stream is None:
            yield
            return
        task = tasks.start_main("what a stream says", self._tell, stream)
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _tell(self, stream: EventStream) -> None:
        with suppress(ReaderGoneError):  # whoever writes next finds out
            while True:
                await asyncio.sleep(self.pause_s)
                await stream.comment(self.text())

    def _loading(self) -> list[str]:
        """Names of the peers that do not have the model in memory yet; tabs are not waited for."""
        if self._begun:
            return []
        found = [self._peer.name] if self.is_cold else []
        others = [] if self._alone else self._peer.others().values()
        return found + [
            hello.name
            for hello in others
            if not hello.via
            and any(one.id == self._model and one.timing is None for one in hello.models)
        ]
