"""The aiohttp application, and the port that it listens on.

The API has a port of its own, not the mesh's: the mesh's port is open to other machines and will
ask for their certificates, where this one is for programs of this machine and speaks plain HTTP;
and aiohttp cancels handlers of callers who left for a whole server or not at all: links must say
goodbye by themselves, requests of the API must end.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Middleware

from astra_mesh import limits
from astra_mesh.errors import MeshError, PortInUseError
from astra_mesh.mesh.connect import show_address
from astra_mesh.mesh.listening import listen, port_of
from astra_mesh.peer import Peer
from astra_mesh.peer.places import own_address
from astra_mesh.web import (
    files,
    invitation,
    listing,
    live,
    mesh,
    page,
    pairing,
    pictures,
    quality,
    tab,
    texts,
    vectors,
)
from astra_mesh.web.body import check_coding, check_kind, expected_bytes, read_body
from astra_mesh.web.config import DEFAULT_PORT, LOOPBACK, ApiConfig
from astra_mesh.web.crowd import Crowd
from astra_mesh.web.door import Door
from astra_mesh.web.errors import ApiError, api_error, busy
from astra_mesh.web.guard import Guard
from astra_mesh.web.metrics import Metrics
from astra_mesh.web.neighbour import check_own_port
from astra_mesh.web.protocol import HEADERS, Speaker
from astra_mesh.web.query import check_query
from astra_mesh.web.state import STATE, State
from astra_mesh.web.tab_folder import remove_left
from astra_mesh.web.tabfiles import TabFiles

log = logging.getLogger(__name__)

_SHUTDOWN_S: Final = 0.5  # for requests that run when the API closes; then they are cancelled
_LONG: Final = (live.PATH, tab.PATH)  # pages that stay, which have a cap of their own
_ASIDE: Final = ("/metrics", "/health")  # what looks on is no figure itself
_LEFT: Final = 499  # the caller went away, in the figures

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
BodyHandler = Callable[[web.Request, bytes], Awaitable[web.StreamResponse]]


class ApiServer:
    """The API of one peer, which runs. :func:`serving` starts and stops it."""

    def __init__(self, peer: Peer, config: ApiConfig) -> None:
        self.config = config
        self.port = 0
        self._state = State(peer, config, Door(peer), Metrics(), Crowd(config.header_s))
        self._runner: web.AppRunner | None = None
        self._listeners: list[asyncio.Server] = []

    @property
    def url(self) -> str:
        """Where programs of this machine find it: the base URL of OpenAI's clients."""
        return f"http://{show_address(own_address(self._hosts()[0], self.port))}/v1"

    async def start(self) -> None:
        """Listen. An error leaves nothing behind.

        Raises:
            PortInUseError: The port that was asked for is taken.
            MeshError: It cannot listen there.
        """
        app = make_app(self._state, await asyncio.to_thread(files.read_all))
        self._runner = web.AppRunner(app, shutdown_timeout=_SHUTDOWN_S, handler_cancellation=True)
        try:
            await self._runner.setup()
            await self._listen()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop listening; requests that run end. May be called twice."""
        runner, self._runner = self._runner, None
        listeners, self._listeners = self._listeners, []
        for one in listeners:
            one.close()
        self._state.ending = True
        try:
            if runner is not None:
                await runner.cleanup()
        finally:
            await self._state.door.close()

    def _hosts(self) -> Sequence[str | None]:
        """Loopback only, unless a token guards what other machines may reach."""
        if self.config.token is None:
            return LOOPBACK
        return (self._state.peer.config.listen,)

    async def _listen(self) -> None:
        wanted = self.config.port
        try:
            await self._bind(DEFAULT_PORT if wanted is None else wanted)
        except PortInUseError:
            if wanted is not None:
                await check_own_port(own_address(self._hosts()[0], wanted))
                raise
            await self._bind(0)

    async def _bind(self, port: int) -> None:
        first, *others = self._hosts()
        self.port = await self._open(first, port)
        for host in others:
            try:
                await self._open(host, self.port)
            except MeshError as error:  # a machine without IPv6, or a port that is taken there
                log.debug("the API: %s", error.message)

    async def _open(self, host: str | None, port: int) -> int:
        """Listen there; on which port."""
        assert self._runner is not None
        serve = self._runner.server
        assert serve is not None
        loop = asyncio.get_running_loop()
        protocol = partial(self._state.crowd.protocol, partial(Speaker, serve))
        if port == 0:  # one for all families, where asyncio would take one for each
            for one in await listen(host, port):
                self._listeners.append(await loop.create_server(protocol, sock=one))
            return port_of(self._listeners[-1].sockets[0])
        try:
            listener = await loop.create_server(protocol, host, port, reuse_address=True)
        except OSError as error:
            raise _no_port(host, port, error) from error
        self._listeners.append(listener)
        return port


def _no_port(host: str | None, port: int, error: OSError) -> MeshError:
    if error.errno == errno.EADDRINUSE:
        return PortInUseError(
            f"port {port} of the API is taken by another program; choose another with "
            "--api-port, or --api-port 0 for any free one"
        )
    where = host or "all interfaces"
    return MeshError(f"the API cannot listen on {where}, port {port}: {error.strerror or error}")


@asynccontextmanager
async def serving(peer: Peer, config: ApiConfig) -> AsyncIterator[ApiServer]:
    """The API of a peer that runs, until the end of the ``async with``.

    Raises:
        PortInUseError, MeshError: It cannot listen.
    """
    server = ApiServer(peer, config)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def make_app(
    state: State, page_files: Sequence[files.PageFile | files.VendorFile]
) -> web.Application:
    """The application: all addresses, behind the guard."""
    app = web.Application(middlewares=[_outer(state, Guard(state.config))])
    app[STATE] = state
    app.on_response_prepare.append(_harden)
    add = app.router
    for one in page_files:
        add.add_get(one.address, one.serve)
    add.add_get(live.PATH, live.live)
    add.add_get(tab.PATH, tab.tab)
    add.add_get(invitation.PATH, invitation.invitation)
    add.add_get("/health", listing.health)
    add.add_get("/metrics", listing.metrics)
    add.add_get("/docs", page.docs)
    add.add_get("/openapi.json", page.openapi)
    add.add_get("/v1/mesh", mesh.mesh)
    add.add_get("/v1/models", listing.models)
    add.add_get("/v1/models/{model}", listing.model)
    add.add_get("/v1/models/{model}/quality", quality.quality)
    add.add_get("/v1/pairing", pairing.show)
    text_bytes = limits.API_BODY_BYTES
    for name, handle in (
        ("open", pairing.open_window),
        ("close", pairing.close),
        ("join", pairing.join),
        ("unpair", pairing.unpair),
        ("leave", pairing.leave),
    ):
        add.add_post(f"/v1/pairing/{name}", _with_body(handle, text_bytes))
    add.add_post("/v1/completions", _with_body(texts.complete, text_bytes))
    add.add_post("/v1/chat/completions", _with_body(texts.chat, text_bytes))
    add.add_post("/v1/embeddings", _with_body(vectors.embed, text_bytes))
    picture = _with_body(pictures.classify, limits.API_IMAGE_BODY_BYTES, ("image/",))
    add.add_post("/v1/images/classify", picture)
    _add_tab_files(app, state)
    return app


def _add_tab_files(app: web.Application, state: State) -> None:
    served = TabFiles(state.peer, state.envelopes)

    async def closed(_: web.Application) -> None:
        await served.close()

    async def started(_: web.Application) -> None:
        await asyncio.to_thread(remove_left)

    app.on_startup.append(started)
    app.on_cleanup.append(closed)
    app.router.add_get("/tab/models", served.models)
    app.router.add_get("/tab/models/{model}", served.manifest)
    app.router.add_get("/tab/blobs/{sha256}", served.blob)
    size = limits.SEALED_FRAME_BYTES + limits.POINT_BYTES
    embed = _with_body(served.embed, size, ("application/octet-stream",))
    app.router.add_post("/tab/models/{model}/embed", embed)


def _with_body(handle: BodyHandler, limit: int, kinds: tuple[str, ...] = ()) -> Handler:
    """A handler that gets the whole body, within all caps."""

    async def handler(request: web.Request) -> web.StreamResponse:
        state = request.app[STATE]
        check_kind(request, kinds)
        check_coding(request)
        with state.budget.reserve(expected_bytes(request, limit)):
            data = await read_body(request, limit, state.config.body_s)
            return await handle(request, data)

    return handler


def _outer(state: State, guard: Guard) -> Middleware:
    """What happens around each request: guard, number of requests, errors, figures."""
    running = 0

    @web.middleware
    async def outer(request: web.Request, handler: Handler) -> web.StreamResponse:
        nonlocal running
        began, status = time.perf_counter(), _LEFT
        counted = int(request.path not in _LONG)
        running += counted
        noted = request.path not in _ASIDE
        state.metrics.running.inc(counted * noted)
        transport = request.transport
        state.crowd.asks(transport)
        try:
            guard.check(request.path, request.headers)
            if running > limits.API_REQUESTS:
                wait_s = state.peer.retry_s(limits.API_REQUESTS)
                text = f"this peer has as many requests as it takes; try again in {wait_s:.0f} s"
                raise busy(text, wait_s)
            check_query(request)
            response = await handler(request)
            status = response.status
        except TimeoutError:
            response = _late(state.config.request_s).response()
            status = response.status
        except Exception as error:
            response = api_error(error).response()
            status = response.status
        finally:
            state.crowd.asked(transport)
            running -= counted
            state.metrics.running.dec(counted * noted)
            if noted:
                state.metrics.ended(_path_of(request), status, time.perf_counter() - began)
        return response

    return outer


async def _harden(request: web.Request, response: web.StreamResponse) -> None:
    """Headers of every answer, also of streams and of what aiohttp answers by itself."""
    response.headers.update(HEADERS)


def _late(request_s: float) -> ApiError:
    text = f"the request was not complete within {request_s:g} s; ask for less at once"
    return ApiError(504, text, "deadline")


def _path_of(request: web.Request) -> str:
    """The address as the router knows it, so that callers cannot make up labels."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "other"
