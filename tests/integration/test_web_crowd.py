"""More connections to the API than it takes, and such that ask for nothing."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from astra_mesh import limits
from astra_mesh.mesh.doorman import abandon
from astra_mesh.peer.steps import StepQueue
from tests.integration.mesh_fixtures import until
from tests.integration.web_fixtures import MESH, PROMPT, TOKEN, Live, live
from tests.timings import patient

HALF = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n"
OTHERS = [f"127.0.0.{n}" for n in range(2, 8)]  # addresses that Linux has for other hosts
NEVER_S = 3_600.0
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="has 127.0.0.1 only")


@asynccontextmanager
async def flood(on: Live, hosts: Iterable[str], data: bytes = HALF) -> AsyncIterator[list[Streams]]:
    """A connection from each of these, open until the end."""
    found: list[Streams] = []
    try:
        for host in hosts:
            with suppress(ConnectionError):
                streams = await asyncio.open_connection(
                    "127.0.0.1", on.server.port, local_addr=(host, 0)
                )
                found.append(streams)
                streams[1].write(data)
        yield found
    finally:
        for _, writer in found:
            abandon(writer)
        await asyncio.sleep(0)


async def ended(streams: Streams) -> bytes:
    """What came until the other end closed it."""
    with suppress(ConnectionError):
        async with asyncio.timeout(patient(10.0)):
            return await streams[0].read()
    return b""


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def connections(on: Live) -> int:
    return len(on.server._state.crowd)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback's addresses stand for other hosts."""
    monkeypatch.setattr(limits, "API_CONNECTIONS_LOOPBACK", limits.API_CONNECTIONS_PER_HOST)


async def test_one_host_cannot_take_all_descriptors(models: Path, few: None) -> None:
    async with live(models, 2, token=TOKEN, header_s=NEVER_S) as on:
        ask = partial(
            on.client.completions.create,
            model="words",
            prompt=PROMPT,
            max_tokens=2,
            extra_body=MESH,
        )
        await ask()
        before = descriptors()
        async with flood(on, [OTHERS[0]] * 300) as strangers:
            most = limits.API_CONNECTIONS_PER_HOST
            await until(lambda: connections(on) == most)
            # Without the other ends of the connections, which are of this process too.
            await until(lambda: descriptors() - len(strangers) - before <= most)
            answer = await ask()
            (report,) = answer.model_extra["x_astra_mesh"]  # type: ignore[index]
            assert {shard["peer"] for shard in report["plan"]["shards"]} == {"peer0", "peer1"}
        await until(lambda: descriptors() <= before)


async def test_halves_of_headers_are_given_up(models: Path) -> None:
    async with live(models, 1, header_s=0.5) as on:
        async with flood(on, ["127.0.0.1"] * 20) as strangers:
            assert [await ended(one) for one in strangers] == [b""] * len(strangers)
            await until(lambda: connections(on) == 0)
            assert on.server._runner is not None
            assert on.server._runner.server is not None
            assert not on.server._runner.server.connections
        async with on.http.get(f"{on.root}/health") as answer:
            assert answer.status == 200


async def test_many_hosts_leave_room(
    models: Path, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "API_CONNECTIONS", 8)
    async with live(models, 1, token=TOKEN, header_s=NEVER_S) as on, flood(on, OTHERS * 5):
        assert (await on.client.models.list()).data
        assert connections(on) == limits.API_CONNECTIONS  # the last one's answer came


async def test_dripping_bytes_do_not_move_the_deadline(models: Path) -> None:
    async def drip(writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"X-A: b\r\n")
            await asyncio.sleep(0.05)

    async with live(models, 1, header_s=0.5) as on, flood(on, ["127.0.0.1"]) as found:
        dripping = asyncio.create_task(drip(found[0][1]))
        assert await ended(found[0]) == b""
        dripping.cancel()
        await asyncio.wait([dripping])
        async with on.http.get(f"{on.root}/health") as answer:
            assert answer.status == 200


async def test_streams_and_pages_live_on(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow(self: StepQueue, *args: Any) -> int | None:
        await asyncio.sleep(0.05)
        return await original(self, *args)

    original = StepQueue.step
    monkeypatch.setattr(StepQueue, "step", slow)
    monkeypatch.setattr(limits, "API_CONNECTIONS_LOOPBACK", 3)
    async with live(models, 1, header_s=0.3) as on, on.http.ws_connect(f"{on.root}/live") as page:
        await page.receive_json()
        stream = await on.client.completions.create(
            model="words", prompt=PROMPT, max_tokens=20, stream=True
        )
        texts = [event async for event in _with_flood(on, stream)]
        assert texts[-1].choices[0].finish_reason == "length"
        assert on.server._state.pages == 1


async def _with_flood(on: Live, stream: Any) -> AsyncIterator[Any]:
    """The events of a stream, while others come from the same host."""
    async with flood(on, ["127.0.0.1"] * 20) as strangers:
        async for event in stream:
            yield event
        assert [await ended(one) for one in strangers] == [b""] * len(strangers)


async def test_where_all_are_at_work_the_next_is_closed(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "API_CONNECTIONS_LOOPBACK", 1)
    async with live(models, 1) as on, on.http.ws_connect(f"{on.root}/live") as page:
        await page.receive_json()
        async with flood(on, ["127.0.0.1"]) as found:
            assert await ended(found[0]) == b""
        assert connections(on) == 1
    assert connections(on) == 0
