"""Readers of streams that take nothing."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web

from astra_mesh.errors import PeerLostError
from astra_mesh.peer import Peer
from astra_mesh.web.config import ApiConfig
from astra_mesh.web.live import Feed, _write
from astra_mesh.web.sse import EventStream, ReaderGoneError
from astra_mesh.web.state import State
from astra_mesh.web.tab_served import Tab
from astra_mesh.wire.messages import PeerId

SOON_S = 0.01


class Stuck:
    """In the place of a request, a response and a page's socket: what is written stays."""

    closed, prepared = False, True

    def __init__(self) -> None:
        self.transport = self._writer = self  # aiohttp's socket has its transport there
        self.aborted = False

    def set_write_buffer_limits(self) -> None:
        """As a transport has it."""

    def abort(self) -> None:
        self.aborted = True

    async def write(self, data: bytes) -> None:
        await asyncio.Event().wait()

    async def send_str(self, text: str) -> None:
        await asyncio.Event().wait()


class News:
    async def look(self) -> None:
        """There is something at once."""

    def news(self) -> list[dict[str, Any]]:
        return [{"type": "mesh"}]


async def test_a_stream_whose_reader_takes_nothing_is_dropped() -> None:
    stuck = Stuck()
    stream = EventStream(cast(web.Request, stuck), SOON_S)
    stream._response = cast(web.StreamResponse, stuck)
    with pytest.raises(ReaderGoneError):
        await stream.send({"text": "word"})
    assert stuck.aborted


async def test_a_tab_that_reads_nothing_is_dropped() -> None:
    stuck = Stuck()
    tab = Tab(cast(web.WebSocketResponse, stuck), cast(Peer, None), PeerId("a" * 64), SOON_S)
    with pytest.raises(PeerLostError):
        await tab._say("welcome")
    assert stuck.aborted


async def test_a_page_that_takes_nothing_is_dropped() -> None:
    state = cast(State, SimpleNamespace(ending=False, config=ApiConfig(write_s=SOON_S)))
    with pytest.raises(TimeoutError):
        await _write(cast(web.WebSocketResponse, Stuck()), cast(Feed, News()), state)
