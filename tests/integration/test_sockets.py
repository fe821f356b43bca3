"""How the connection under a WebSocket ends."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from astra_mesh.mesh.connect import PATH
from astra_mesh.mesh.sockets import close_soon, transport_of
from tests.integration.between import Relay
from tests.integration.secure import Caller
from tests.timings import patient

LOOPS = ("asyncio", "uvloop")


@asynccontextmanager
async def relayed() -> AsyncIterator[tuple[aiohttp.ClientWebSocketResponse, Relay]]:
    """A WebSocket in TLS, through a relay."""
    caller = await Caller.new()

    async def serve(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(timeout=patient(0.2))
        await socket.prepare(request)
        async for _ in socket:
            pass
        return socket

    app = web.Application()
    app.router.add_get(PATH, serve)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=caller.tls.server)
    await site.start()
    try:
        async with Relay(runner.addresses[0][1]) as relay, aiohttp.ClientSession() as http:
            yield await caller.dial(http, relay.port), relay
    finally:
        await runner.cleanup()


def run_on(loop: str, main: Callable[[], object]) -> None:
    factory = pytest.importorskip("uvloop").new_event_loop if loop == "uvloop" else None
    with warnings.catch_warnings(), asyncio.Runner(loop_factory=factory) as runner:
        warnings.simplefilter("error")
        runner.run(main())  # type: ignore[arg-type]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("patience_s", [0.0, 0.1])
def test_a_silent_peer_keeps_no_connection_open(loop: str, patience_s: float) -> None:
    """It answers neither the WebSocket's farewell nor that of TLS, for which 30 s are usual."""

    async def main() -> None:
        async with relayed() as (socket, relay):
            relay.deaf = True
            await close_soon(socket, patience_s)
            async with asyncio.timeout(patient(2.0)):
                await relay.ended.wait()

    run_on(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_nothing_is_open_once_the_farewells_are_said(loop: str) -> None:
    async def main() -> None:
        async with relayed() as (socket, relay):
            await close_soon(socket, patient(5.0))
            assert socket.close_code == aiohttp.WSCloseCode.OK
            async with asyncio.timeout(patient(0.5)):
                await relay.ended.wait()

    run_on(loop, main)


async def test_a_connection_that_was_closed_already_may_be_closed_again() -> None:
    async with relayed() as (socket, _):
        transport = transport_of(socket)
        assert transport is not None
        transport.close()
        transport.close()
        await close_soon(socket, 0.1)
        assert socket.closed
