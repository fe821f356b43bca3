"""``/live``: one WebSocket on which a page sees what happens, as JSON objects with a ``type``.

``mesh``     the peers, their links and models, and who is paired, at once when a peer comes or
             goes, else each second
``request``  one of the last requests this peer answers, whenever something of it changed
``marks``    new steps of a request on one peer, as in :class:`astra_mesh.wire.messages.Progress`
``beat``     nothing, every two seconds: a page that hears no word takes its peer for gone
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import aiohttp
from aiohttp import web

from astra_mesh import limits
from astra_mesh.bundle import Bundle
from astra_mesh.bundle.lacking import lacking_file
from astra_mesh.client.answers import models_of
from astra_mesh.errors import AstraMeshError
from astra_mesh.peer import Peer, tasks
from astra_mesh.peer.watch import Shown
from astra_mesh.web.errors import busy
from astra_mesh.web.guard import check_protocol
from astra_mesh.web.jsons import encode
from astra_mesh.web.mesh import peer_entry
from astra_mesh.web.reports import Summary
from astra_mesh.web.state import STATE, State
from astra_mesh.wire.messages import ModelId, PeerId, names_of

PATH: Final = "/live"
PROTOCOL: Final = "astra-mesh.live"
_MESSAGE_BYTES: Final = 1024  # a page has nothing to say here
_CLOSE_S: Final = 1.0


async def live(request: web.Request) -> web.WebSocketResponse:
    """Handle ``GET /live``, until the page goes away."""
    state = request.app[STATE]
    socket = web.WebSocketResponse(
        protocols=(PROTOCOL,),
        heartbeat=limits.API_LIVE_BEAT_S,
        timeout=_CLOSE_S,
        compress=False,
        max_msg_size=_MESSAGE_BYTES,
    )
    check_protocol(request.headers, PROTOCOL)
    if not socket.can_prepare(request):
        raise web.HTTPUpgradeRequired(reason="this address speaks WebSocket: open the page at /")
    with _place(state), state.peer.watch.looking():
        await socket.prepare(request)
        try:
            async with asyncio.TaskGroup() as group:
                tasks.start(group, "a page's end", _read, socket)
                beats = tasks.start(group, "words to a page", _beat, socket, state)
                await _write(socket, Feed(state.peer), state)
                beats.cancel()
        except* (ConnectionError, TimeoutError):
            if request.transport is not None:
                request.transport.abort()
    return socket


@contextmanager
def _place(state: State) -> Iterator[None]:
    if state.pages >= limits.API_LIVE:
        raise busy(f"{limits.API_LIVE} pages look at this peer already; close one of them")
    state.pages += 1
    try:
        yield
    finally:
        state.pages -= 1


async def _read(socket: web.WebSocketResponse) -> None:
    """Take what a page sends, which is nothing, and notice that it goes."""
    async for _ in socket:
        pass


async def _write(socket: web.WebSocketResponse, feed: Feed, state: State) -> None:
    while not socket.closed and not state.ending:
        await feed.look()
        for message in feed.news():
            await _send(socket, message, state)
        await asyncio.sleep(limits.API_LIVE_S)
    await socket.close(code=aiohttp.WSCloseCode.GOING_AWAY)  # nothing, where it is closed


async def _beat(socket: web.WebSocketResponse, state: State) -> None:
    """Beside what happens, so that slow looks at folders of models do not hold it up."""
    with suppress(ConnectionError, TimeoutError):  # whoever writes or pings next finds out
        while True:
            await asyncio.sleep(limits.API_LIVE_WORD_S)
            await _send(socket, {"type": "beat"}, state)


async def _send(socket: web.WebSocketResponse, message: dict[str, Any], state: State) -> None:
    async with asyncio.timeout(state.config.write_s):
        await socket.send_str(encode(message).decode())


class Feed:
    """What one page does not know yet."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._here: list[PeerId] = []
        self._mesh: dict[str, Any] = {}
        self._mesh_at = 0.0
        self._lacks: dict[ModelId, str] = {}  # of the models here: the file that is not there
        self._lacks_at = 0.0
        self._requests: dict[int, tuple[int, int]] = {}  # key -> attempt, version
        self._marks: dict[int, dict[PeerId, int]] = {}  # key -> numbers sent, by peer

    async def look(self) -> None:
        """Find out now and then what the folders of models lack, and at once of those that came."""
        own, now = [offer.id for offer in self._peer.models.offers()], time.monotonic()
        if own == list(self._lacks) and now - self._lacks_at < limits.RESCAN_S:
            return
        self._lacks_at = now
        bundles = [self._peer.models.reader(model) for model in own]
        lacks = await asyncio.to_thread(lambda: [_lacking(one) for one in bundles])
        self._lacks = dict(zip(own, lacks, strict=True))

    def news(self) -> Iterator[dict[str, Any]]:
        """Messages to send now."""
        yield from self._mesh_news()
        known = self._peer.watch.shown()
        for shown in known:
            yield from self._request_news(shown)
        keys = {shown.key for shown in known}
        for key in self._requests.keys() - keys:
            del self._requests[key]
            self._marks.pop(key, None)

    def _mesh_news(self) -> Iterator[dict[str, Any]]:
        here, now = list(self._peer.others()), time.monotonic()
        if here == self._here and now - self._mesh_at < limits.API_LIVE_MESH_S:
            return
        self._here, self._mesh_at = here, now
        found = _mesh(self._peer, self._lacks)
        if found != self._mesh:
            self._mesh = found
            yield found

    def _request_news(self, shown: Shown) -> Iterator[dict[str, Any]]:
        attempt, version = self._requests.get(shown.key, (0, -1))
        if shown.attempt != attempt:
            self._marks.pop(shown.key, None)
        if (shown.attempt, shown.version) != (attempt, version):
            self._requests[shown.key] = (shown.attempt, shown.version)
            yield _request(shown)
        sent = self._marks.setdefault(shown.key, {})
        for peer, marks in shown.marks(sent).items():
            sent[peer] = sent.get(peer, 0) + len(marks)
            yield {
                "type": "marks",
                "key": shown.key,
                "peer": peer,
                "start_us": shown.start_us(peer),
                "marks": marks,
            }


def _lacking(bundle: Bundle | None) -> str:
    with suppress(AstraMeshError):  # its folder changed since it was read: a request says how
        return "" if bundle is None else lacking_file(bundle)
    return ""


def _mesh(peer: Peer, lacks: dict[ModelId, str]) -> dict[str, Any]:
    found = peer.peer_list()
    own = {(name, offer.id) for offer in peer.models.offers() for name in names_of(offer)}
    return {
        "type": "mesh",
        "peers": [peer_entry(one) for one in found],
        "models": [
            {
                "name": one.name,
                "id": one.id,
                "family": one.family,
                "tasks": [task.value for task in one.tasks],
                "peers": list(one.peers),
                "here": (one.name, one.id) in own,
                "chat": peer.models.holds_conversations(one.id),
                "lacks": lacks.get(one.id, ""),
                "loaded": peer.models.is_loaded(one.id),
            }
            for one in models_of(found)
        ],
        "paired": [] if peer.trust is None else sorted(peer.trust.members()),
        "problem": peer.discovery_problem,
    }


def _request(shown: Shown) -> dict[str, Any]:
    planned = shown.planned
    about: dict[str, Any] = {
        "type": "request",
        "key": shown.key,
        "attempt": shown.attempt,
        "task": shown.task.value,
        "model": shown.model,
        "began_s": shown.began_s,
        "new_tokens": shown.new_tokens,
        "outcome": shown.outcome,
        "noted": shown.noted,
        "shards": [],
    }
    if planned is None:
        return about
    plan = planned.plan
    summary = Summary(planned.prompt_tokens, shown.new_tokens, planned, shown.report, 0.0)
    shards = [
        {"id": s.peer, "name": planned.names.get(s.peer, ""), "start": s.start, "stop": s.stop}
        for s in plan.shards
    ]
    return about | {"answering": plan.answering, "shards": shards, "cost": summary.mesh}
