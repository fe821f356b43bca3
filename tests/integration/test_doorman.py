"""Connections that come as a peer stops."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from astra_mesh import limits
from astra_mesh.mesh.doorman import Doorman, abandon
from tests.integration.mesh_fixtures import until
from tests.integration.secure import Caller
from tests.timings import patient

LOOPS = ("asyncio", "uvloop")


async def nobody(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pairs with nobody."""


def listener() -> socket.socket:
    one = socket.create_server(("127.0.0.1", 0))
    one.setblocking(False)
    return one


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("turns", range(6))
def test_a_connection_that_comes_as_it_closes_is_closed_too(loop: str, turns: int) -> None:
    """So many turns of the event loop after it came."""
    factory = pytest.importorskip("uvloop").new_event_loop if loop == "uvloop" else None

    async def main() -> None:
        doorman = Doorman(
            lambda: ssl.create_default_context(ssl.Purpose.CLIENT_AUTH),
            lambda _: None,
            asyncio.Protocol,
            nobody,
        )
        doorman.open([listener()])
        await asyncio.sleep(0.01)
        with socket.socket() as caller:
            caller.setblocking(False)
            caller.connect_ex(("127.0.0.1", doorman.port))
            for _ in range(turns):
                await asyncio.sleep(0)
            await doorman.close()

    with warnings.catch_warnings(record=True) as said, asyncio.Runner(loop_factory=factory) as one:
        warnings.simplefilter("always")
        one.run(main())
        gc.collect()
    assert [str(warning.message) for warning in said] == []


@pytest.mark.parametrize(("own", "begun"), [(False, 3), (True, 6)])
async def test_a_host_begins_no_more_handshakes_than_it_may(
    monkeypatch: pytest.MonkeyPatch, own: bool, begun: int
) -> None:
    monkeypatch.setattr(limits, "STRANGER_HANDSHAKES_BURST", 3)
    monkeypatch.setattr(limits, "STRANGER_HANDSHAKES_PER_S", 0)
    monkeypatch.setattr("astra_mesh.mesh.doorman.is_loopback", lambda _: own)
    contexts: list[ssl.SSLContext] = []

    def tls() -> ssl.SSLContext:
        contexts.append(ssl.create_default_context(ssl.Purpose.CLIENT_AUTH))
        return contexts[-1]

    doorman = Doorman(tls, lambda _: None, asyncio.Protocol, nobody)
    doorman.open([listener()])
    try:
        for _ in range(6):
            reader, writer = await asyncio.open_connection("127.0.0.1", doorman.port)
            writer.write(b"no TLS")
            with suppress(OSError):
                await reader.read()  # until it is ended
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
    finally:
        await doorman.close()
    assert len(contexts) == begun


async def test_a_host_that_a_member_came_from_waits_for_its_turn(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(limits, "HANDSHAKES_BURST", 2)
    monkeypatch.setattr(limits, "HANDSHAKES_PER_S", 10)
    monkeypatch.setattr(limits, "STRANGER_HANDSHAKES_BURST", 1)
    monkeypatch.setattr(limits, "STRANGER_HANDSHAKES_PER_S", 0)
    monkeypatch.setattr("astra_mesh.mesh.doorman.is_loopback", lambda _: False)
    caller = await Caller.new(tmp_path)
    came: list[asyncio.Protocol] = []

    def protocol() -> asyncio.Protocol:
        came.append(asyncio.Protocol())
        return came[-1]

    doorman = Doorman(lambda: caller.tls.server, caller.trust.whose_connection, protocol, nobody)
    doorman.open([listener()])
    began = time.monotonic()
    try:
        for number in range(5):
            _, writer = await asyncio.open_connection(
                "127.0.0.1", doorman.port, ssl=caller.tls.client, server_hostname="astra-mesh"
            )
            await until(lambda: len(came) > number)  # noqa: B023
            abandon(writer)
    finally:
        await doorman.close()
    assert time.monotonic() - began >= 0.15, "one as a stranger, two at once, two after 0.1 s each"


async def test_whose_turn_it_is_not_is_closed_as_it_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a task for each, however many say nothing."""
    monkeypatch.setattr(limits, "STRANGER_HANDSHAKES_BURST", 2)
    monkeypatch.setattr(limits, "STRANGER_HANDSHAKES_PER_S", 0)
    monkeypatch.setattr(limits, "ACCEPTS", 4)
    monkeypatch.setattr("astra_mesh.mesh.doorman.is_loopback", lambda _: False)
    doorman = Doorman(lambda: ssl.SSLContext(), lambda _: None, asyncio.Protocol, nobody)
    started = 0
    start = doorman._start

    def counted(*arguments: Any) -> Any:
        nonlocal started
        started += 1
        return start(*arguments)

    monkeypatch.setattr(doorman, "_start", counted)
    doorman.open([listener()])
    try:
        opened = [await asyncio.open_connection("127.0.0.1", doorman.port) for _ in range(20)]
        for reader, _ in opened[2:]:
            async with asyncio.timeout(patient(5)):
                with suppress(OSError):
                    assert await reader.read() == b""
        assert started == 1 + 2, "one that listens, and two"
        for _, writer in opened:
            abandon(writer)
    finally:
        await doorman.close()
