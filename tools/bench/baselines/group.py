"""A full mesh of TCP connections between workers, and the collectives of the baselines on it."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Self

import numpy as np
import numpy.typing as npt

HEADER: Final = struct.Struct("<QQ")  # tag, bytes that follow
HELLO: Final = struct.Struct("<I")  # rank of who connected
DIAL_PAUSE_S: Final = 0.05
READ_AHEAD_BYTES: Final = 8 << 20  # so that a sender rarely waits for a receiver that computes

Address = tuple[str, int]
Floats = npt.NDArray[np.float32]


class GroupError(RuntimeError):
    """A connection of the group is gone."""


@dataclass
class Traffic:
    """What one worker spent on a run's messages."""

    wait_s: float = 0.0
    sent_bytes: int = 0  # headers included


@dataclass
class Group:
    """One worker's ends of the connections. Tags are chosen so that none is used twice at once.

    Collectives run among ranks 0 to ``members`` - 1 of the group, which call them in the same order
    with the same tags; the ``all_`` ones return when the own result is there.
    """

    rank: int
    size: int
    traffic: Traffic = field(default_factory=Traffic)
    _writers: dict[int, asyncio.StreamWriter] = field(default_factory=dict)
    _readers: list[asyncio.Task[None]] = field(default_factory=list)
    _inbox: dict[tuple[int, int], asyncio.Future[bytes]] = field(default_factory=dict)
    _complete: asyncio.Event = field(default_factory=asyncio.Event)
    _server: asyncio.Server | None = None
    _lost: bool = False

    @classmethod
    async def join(cls, rank: int, addresses: Sequence[Address], patience_s: float = 60.0) -> Self:
        """Listen at the own address, dial all lower ranks, and wait for the higher ones.

        Raises:
            TimeoutError: not all are there within ``patience_s``.
        """
        group = cls(rank, len(addresses))
        host, port = addresses[rank]
        group._server = await asyncio.start_server(
            group._accept, host, port, limit=READ_AHEAD_BYTES
        )
        try:
            async with asyncio.timeout(patience_s):
                for other in range(rank):
                    await group._dial(other, addresses[other])
                group._check_complete()
                await group._complete.wait()
        except BaseException:
            await group.close()
            raise
        return group

    async def _dial(self, other: int, address: Address) -> None:
        while True:
            try:
                reader, writer = await asyncio.open_connection(*address, limit=READ_AHEAD_BYTES)
            except OSError:  # it does not listen yet
                await asyncio.sleep(DIAL_PAUSE_S)
                continue
            writer.write(HELLO.pack(self.rank))
            self._start(other, reader, writer)
            return

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (other,) = HELLO.unpack(await reader.readexactly(HELLO.size))
        self._start(other, reader, writer)
        self._check_complete()

    def _start(
        self, other: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._writers[other] = writer
        task = asyncio.get_running_loop().create_task(self._read(other, reader))
        self._readers.append(task)

    def _check_complete(self) -> None:
        if len(self._writers) == self.size - 1:
            self._complete.set()

    async def _read(self, other: int, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                tag, size = HEADER.unpack(await reader.readexactly(HEADER.size))
                self._slot(other, tag).set_result(await reader.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError):
            self._fail(f"worker {other} is gone")

    def _fail(self, text: str) -> None:
        """End all waiting, now and later."""
        self._lost = True
        for slot in self._inbox.values():
            if not slot.done():
                slot.set_exception(GroupError(text))

    def _slot(self, other: int, tag: int) -> asyncio.Future[bytes]:
        key = other, tag
        if key not in self._inbox:
            self._inbox[key] = asyncio.get_running_loop().create_future()
        return self._inbox[key]

    # --- messages ---------------------------------------------------------------------------------

    def send(self, to: int, tag: int, data: bytes | memoryview) -> None:
        """Hand a message to the socket; never blocks (the socket's buffer grows)."""
        writer = self._writers[to]
        writer.write(HEADER.pack(tag, len(data)))
        writer.write(data)
        self.traffic.sent_bytes += HEADER.size + len(data)

    async def receive(self, sender: int, tag: int) -> bytes:
        """The message of that tag; GroupError if a connection is gone."""
        if self._lost:
            raise GroupError("a worker is gone")
        began = time.perf_counter()
        found = await self._slot(sender, tag)
        self.traffic.wait_s += time.perf_counter() - began
        del self._inbox[sender, tag]
        return found

    # --- collectives ------------------------------------------------------------------------------

    async def all_gather(self, members: int, tag: int, data: bytes) -> dict[int, bytes]:
        """The data of all other members by rank.

        Each sends straight to each, beginning with the next rank: on links with equal rates both
        ways that takes as long as a ring, with one delay instead of ``members`` - 1.
        """
        for step in range(1, members):
            self.send((self.rank + step) % members, tag, data)
        order = [(self.rank - step) % members for step in range(1, members)]
        return {other: await self.receive(other, tag) for other in order}

    async def all_reduce(self, members: int, tag: int, values: Floats) -> Floats:
        """The sum of all members' ``values`` (T, D), by a ring: reduce-scatter, then all-gather.

        Uses tags ``tag`` to ``tag + 2 * members``. Every member gets the same bits.
        """
        if members == 1:
            return values
        found = values.copy()
        parts = np.array_split(found, members)  # views
        for step in range(members - 1):
            mine, theirs = (self.rank - step) % members, (self.rank - step - 1) % members
            got = await self._pass_on(members, tag + step, parts[mine])
            parts[theirs] += got.reshape(parts[theirs].shape)
        for step in range(members - 1):
            mine, theirs = (self.rank + 1 - step) % members, (self.rank - step) % members
            got = await self._pass_on(members, tag + members + step, parts[mine])
            parts[theirs][...] = got.reshape(parts[theirs].shape)
        return found

    async def _pass_on(self, members: int, tag: int, part: Floats) -> Floats:
        """Send to the next of the ring, receive from the one before."""
        self.send((self.rank + 1) % members, tag, part.tobytes())
        data = await self.receive((self.rank - 1) % members, tag)
        return np.frombuffer(data, np.float32)

    # --- the end ----------------------------------------------------------------------------------

    async def close(self) -> None:
        """Close all connections; what waits fails with GroupError."""
        self._fail("the group was closed")
        if self._server is not None:
            self._server.close()
        for writer in self._writers.values():
            writer.close()
        for task in self._readers:
            task.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        for writer in self._writers.values():
            with suppress(ConnectionError):
                await writer.wait_closed()
