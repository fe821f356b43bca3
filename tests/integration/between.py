"""What lies between a caller and a server on this machine, and may fail them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

from astra_mesh.mesh.connect import Address


class Relay:
    """Passes the bytes of connections on.

    Attributes:
        port: Where it listens.
        deaf: Whether it drops what comes.
        delay_s: How much later a caller's bytes arrive.
        ends: How many connections it ends at once from now on.
        ended: Set once a caller's connection is over.
    """

    def __init__(self, to: int) -> None:
        self._to = to
        self.port, self.deaf, self.delay_s, self.ends = 0, False, 0.0, 0
        self.ended = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            if self.ends > 0:
                self.ends -= 1
                return
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._to)
            writers.append(far_writer)
            ways = (self._pass(reader, far_writer, self.delay_s), self._pass(far_reader, writer))
            await asyncio.wait(
                [asyncio.create_task(way) for way in ways], return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            for one in writers:
                one.transport.abort()
            self.ended.set()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float = 0.0
    ) -> None:
        loop = asyncio.get_running_loop()
        try:
            while data := await reader.read(1 << 16):
                if not self.deaf:
                    loop.call_later(delay_s, writer.write, data)
        except ConnectionError:
            pass


@asynccontextmanager
async def silent() -> AsyncIterator[Address]:
    """Something that takes connections and says nothing."""
    writers: list[asyncio.StreamWriter] = []

    async def keep(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    server = await asyncio.start_server(keep, "127.0.0.1", 0)
    async with server:
        yield "127.0.0.1", server.sockets[0].getsockname()[1]
        for writer in writers:
            writer.transport.abort()
