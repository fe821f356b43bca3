"""One WebSocket that carries one session: the only place where a session meets sockets and time.

A link is single-use: :meth:`Link.run` is awaited once and returns when the link is over. All
methods belong to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from typing import Final

import aiohttp
from aiohttp import WSMsgType

from astra_mesh import limits
from astra_mesh.errors import DeadlineError, MeshError, PeerLostError, ProtocolError
from astra_mesh.mesh.flow import cost
from astra_mesh.mesh.pings import held_up
from astra_mesh.mesh.probe import Backlog, Meter, train_bps
from astra_mesh.mesh.session import Session, State
from astra_mesh.mesh.sockets import Socket, close_soon, tune
from astra_mesh.mesh.timings import Timings
from astra_mesh.wire.codec import AnyMessage
from astra_mesh.wire.messages import Hello, Pong, Reason, RequestId, Role, Throughput

log = logging.getLogger(__name__)

OnMessage = Callable[[AnyMessage], None]

_FAIR_FRAMES: Final = 32  # read in a row before other tasks get a turn
_TRAIN_PINGS: Final = 6
_TRAINS: Final = 3  # until one was not held up


class Link:
    """A session over an open WebSocket.

    Args:
        socket: Opened with :func:`astra_mesh.mesh.connect.dial` or by its handler, or sealed.
        session: Fresh.
        timings: Deadlines of closing and probing; those of the session by default.
        dialled: Whether this end opened the connection.
        address: Of the other end, for people.
    """

    def __init__(
        self,
        socket: Socket,
        session: Session,
        *,
        timings: Timings | None = None,
        dialled: bool,
        address: str = "",
    ) -> None:
        self.session = session
        self.dialled = dialled
        self.address = address
        self._timings = timings if timings is not None else session.timings
        self._socket = socket
        self.on_silence: Callable[[], None] = _nothing  # called when is_silent changes
        self._silent = False
        self._meter = Meter()
        self._marks: set[int] = set()  # number of the ping that ends the run being measured
        self._told_bps = 0.0
        self._probes: dict[int, asyncio.Future[float]] = {}
        self._fault: Exception | None = None  # of on_message
        self.looked_only = False  # who dialled closed before its hello, as `doctor` does
        self._started = False
        self._wake = asyncio.Event()  # the writer has something to look at
        self._tock = asyncio.Event()  # the state changed: look at the clock anew
        self._idle = asyncio.Event()  # the writer holds no frames
        self._room = asyncio.Event()  # the queue is short enough, or the link is over
        self._measured = asyncio.Event()  # the other end told its throughput, or the link is over
        self._told = 0  # how often it did so far
        self._over = asyncio.Event()  # the session is closed
        self._done = asyncio.Event()  # run() has ended
        self._news = asyncio.Event()  # so it has, or the link came back from silence
        self.outages = 0  # silences that it came back from
        self._state = session.state

    # --- what is known ----------------------------------------------------------------------------

    @property
    def peer(self) -> Hello | None:
        """The hello of the other end; None before it came."""
        return self.session.peer_hello

    @property
    def is_open(self) -> bool:
        """Whether messages can be sent."""
        return self.session.state is State.OPEN

    @property
    def is_silent(self) -> bool:
        """Whether nothing was heard for SILENCE_S: do not count on it, though it may come back."""
        return self.session.silent

    @property
    def close_error(self) -> MeshError | None:
        """Why the link ended; None for a goodbye, or while it is open."""
        return self.session.close_error

    @property
    def round_trip_s(self) -> float | None:
        """Smoothed round trip, seconds."""
        return self.session.round_trip_s

    @property
    def send_bps(self) -> float | None:
        """Throughput towards the other end, bits per second: probed, then from real traffic."""
        return self._meter.bps

    def backlog(self) -> Backlog:
        """What was given to :meth:`send` and is not known to have arrived.

        Also for the compute thread: nothing that is read here is in pieces between two steps.
        """
        return self._meter.backlog(_now(), self.session.queued_bytes, self.round_trip_s)

    @property
    def receive_bps(self) -> float | None:
        """Throughput towards this end, bits per second, as the other end measured it."""
        return self.session.receive_bps

    def sent_bytes(self, request: RequestId) -> int:
        """Bytes of code frames written for a request."""
        return self.session.sent_bytes(request)

    # --- sending ----------------------------------------------------------------------------------

    def send(self, message: AnyMessage, frame: bytes | None = None) -> None:
        """Queue a message; never blocks. Who sends much awaits :meth:`drain` in between.

        Args:
            message: What to send.
            frame: It encoded, where that is done already: it goes to several ends.

        Raises:
            MeshError: The link is not open.
            ProtocolError: The message may not be sent here: a mistake of the caller.
        """
        self.session.send(message, frame)
        self._changed()

    async def drain(self) -> None:
        """Wait until less than SEND_QUEUE_BYTES are queued. Cancelling it changes nothing.

        Raises:
            MeshError: The link ended.
        """
        while self.session.queued_bytes >= limits.SEND_QUEUE_BYTES and self.is_open:
            self._room.clear()
            await self._room.wait()
        if not self.is_open:
            raise self.close_error or PeerLostError("the link is closed")

    def consumed(self, message: AnyMessage) -> None:
        """The data of a received message is no longer held: once for each Codes, Pooled, Token."""
        self.session.consumed(cost(message))
        self._changed()

    def end(self, request: RequestId) -> None:
        """Nothing more is wanted for a request on this link."""
        self.session.end(request)

    def refuse(self, reason: Reason, text: str = "", error: MeshError | None = None) -> None:
        """End the link with a named reason; :meth:`run` returns ``error`` soon after."""
        self.session.refuse(reason, text, error)
        self._changed()

    async def close(self, text: str = "") -> None:
        """Say goodbye and wait until the link is over, no longer than twice the close timeout."""
        self.session.goodbye(text)
        self._changed()
        if not self._started:
            self._done.set()
            self._news.set()
            await self._close_socket()
        try:
            async with asyncio.timeout(2 * self._timings.close_s):
                await self._done.wait()
        except TimeoutError:
            log.warning("the link to %s did not close in time", self.address)

    # --- measuring --------------------------------------------------------------------------------

    async def probe(self) -> float:
        """Measure ``send_bps`` with padded pings, tell the other end, and return it.

        The end that dialled goes first: two trains at once would measure each other. It takes less
        than 0.1 s at 10 Mbps. Cancelling it leaves the link as it is.

        Raises:
            MeshError: The link ended meanwhile, or no pong came in time.
        """
        try:
            async with asyncio.timeout(self._timings.probe_s):
                if not self.dialled:
                    await self._measured.wait()
        except TimeoutError:
            log.debug("%s told no throughput", self.address)
        rate = await self._prompt_train(limits.PROBE_BYTES // _TRAIN_PINGS, _TRAIN_PINGS)
        if rate > limits.PROBE_FAST_BPS:
            size = limits.PING_PADDING_BYTES
            rate = await self._prompt_train(size, limits.PROBE_FAST_BYTES // size)
        self._meter.probed(rate, _now())
        self._told_bps = rate
        self.send(Throughput(rate))
        return rate

    @property
    def is_measured(self) -> bool:
        """Whether real traffic or a probe measured it just now: a probe would tell no more."""
        return _now() - self._meter.measured < limits.PROBE_AGAIN_S / 2

    def doubt(self) -> None:
        """What was measured may hold no more."""
        self._meter.doubt()

    async def wait_closed(self, wait_s: float) -> bool:
        """Whether the link ends within this time; False sooner if it comes back from silence."""
        try:
            async with asyncio.timeout(wait_s):
                await self._news.wait()
        except TimeoutError:
            pass
        self._news.clear()
        return self._done.is_set()

    def _came_back(self) -> None:
        """Something is heard again: the network may be another one than before the silence."""
        self.outages += 1
        self._measured.clear()  # both ends probe now, one after the other
        self._news.set()

    def _tell_rate(self) -> None:
        """Tell the other end, which cannot measure this direction, unless it knows about it.

        Nothing before the first probe: that it was told is what the other end waits for with its.
        """
        rate, told = self._meter.bps, self._told_bps
        if rate is None or not told or min(rate, told) > limits.PLENTY_BPS:
            return
        if self.is_open and not 0.8 < rate / told < 1.25:
            self._told_bps = rate
            self.send(Throughput(rate))

    def _mark_run(self) -> None:
        """Let a ping follow what was written: its pong says when that was there."""
        if not self.is_open or self.session.peer_hello is None:
            return
        if (
            self.session.peer_hello.role is not Role.PEER
            or self.session.hello.role is not Role.PEER
        ):
            return
        self._meter.mark(_now())
        self._marks = {self.session.ping(_now())}
        self._changed()

    async def _prompt_train(self, size: int, count: int) -> float:
        """Bits per second, from a train whose first pong was not held up: where it was, by a lost
        packet or a busy device, the others come with it. After some, the slowest counts.
        """
        slowest = math.inf
        for _ in range(_TRAINS):
            rate, trip_s = await self._train(size, count)
            slowest = min(slowest, rate)
            if not held_up(trip_s, self.round_trip_s):
                return rate
        return slowest

    async def _train(self, size: int, count: int) -> tuple[float, float]:
        """Bits per second and the first round trip, seconds, from ``count`` pings in a row."""
        began, pongs = _now(), list[asyncio.Future[float]]()
        for padding in (0, *[size] * count):
            number = self.session.ping(_now(), padding)
            self._probes[number] = asyncio.get_running_loop().create_future()
            pongs.append(self._probes[number])
        self._changed()
        try:
            async with asyncio.timeout(self._timings.probe_s):
                times = [await pong for pong in pongs]
        except TimeoutError:
            raise DeadlineError(f"{self.address} did not answer a probe in time") from None
        finally:
            for pong in pongs:
                pong.cancel()
            self._probes = {n: p for n, p in self._probes.items() if not p.done()}
        return train_bps(times, size), times[0] - began

    # --- running ----------------------------------------------------------------------------------

    async def run(self, on_message: OnMessage) -> MeshError | None:
        """Drive the link until it is over; the result is why (None for a goodbye).

        Args:
            on_message: Called with each message, the hello first. It must not block. A
                :class:`ProtocolError` that it raises refuses the link; any other exception ends
                the link and is raised by ``run``.

        Cancelling it closes the socket without a goodbye; :meth:`close` says one.
        """
        if self._started:
            raise RuntimeError("a link runs once")
        self._started = True
        tune(self._socket)
        self.session.start(_now())
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._read(on_message)),
                    group.create_task(self._write()),
                    group.create_task(self._watch()),
                ]
                await self._over.wait()
                await self._flush()
                for task in tasks:
                    task.cancel()
        finally:
            self.session.lost("the link was closed on this side")
            self._changed()
            await self._close_socket()
            self._done.set()
            self._news.set()
        if self._fault is not None:
            raise self._fault
        return self.close_error

    async def _read(self, on_message: OnMessage) -> None:
        frames = 0
        while self.session.state is not State.CLOSED:
            message = await self._socket.receive()
            if message.type is WSMsgType.BINARY:
                self._take(message.data, on_message)
            elif message.type is WSMsgType.ERROR:
                self.session.lost(f"what it sent is no valid frame: {message.data}")
            elif message.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED):
                self._note_look()
                self.session.lost("the connection was closed without a goodbye")
            else:
                text = "a frame that is not binary"
                self.session.refuse(Reason.BAD_MESSAGE, text, ProtocolError(text))
            self._changed()
            frames += 1
            if frames % _FAIR_FRAMES == 0:
                await asyncio.sleep(0)

    def _note_look(self) -> None:
        """The other end went: before its hello it had only looked, if it dialled."""
        self.looked_only = self.peer is None and not self.dialled

    def _take(self, frame: bytes, on_message: OnMessage) -> None:
        for message in self.session.receive(frame, _now()):
            if isinstance(message, Pong):
                future = self._probes.pop(message.number, None)
                if future is not None and not future.done():
                    future.set_result(_now())
                elif message.number in self._marks:
                    self._marks.clear()
                    trips = self.session.round_trip_s, self.session.least_trip_s
                    if self._meter.pong(_now(), *trips):
                        self._tell_rate()
                continue
            try:
                on_message(message)
            except ProtocolError as exc:
                self.session.refuse(Reason.BAD_MESSAGE, exc.message, exc)
            except Exception as exc:
                self._fault = exc
                self.session.refuse(Reason.INTERNAL)

    async def _write(self) -> None:
        while True:
            began = _now()
            frames = self.session.frames(limits.WRITE_BATCH_BYTES)
            if not frames:
                self._idle.set()
                self._wake.clear()
                if self._meter.idle(began):
                    self._mark_run()
                await self._wake.wait()
                continue
            self._idle.clear()
            if self.session.queued_bytes < limits.SEND_QUEUE_BYTES:
                self._room.set()
            try:
                for frame in frames:
                    await self._socket.send_bytes(frame)
            except (ConnectionError, aiohttp.ClientError, RuntimeError) as exc:
                self._note_look()
                self.session.lost(f"writing failed: {exc}")
            if self._meter.wrote(sum(map(len, frames)), began):
                self._mark_run()
            self._changed()
            if self.session.queued_bytes:
                await asyncio.sleep(0)  # before more of it, others have their turn

    async def _watch(self) -> None:
        """Call the session when it wants to be called."""
        while self.session.state is not State.CLOSED:
            due = self.session.tick(_now())
            self._changed()
            self._tock.clear()
            try:
                async with asyncio.timeout(due - _now() if due < math.inf else None):
                    await self._tock.wait()
            except TimeoutError:
                continue

    def _changed(self) -> None:
        """The session was touched: wake whoever may have something to do."""
        state = self.session.state
        self._wake.set()
        if state is not self._state or self.session.is_due_sooner:
            self._state = state
            self._tock.set()
        if self.session.told > self._told or state is State.CLOSED:
            self._told = self.session.told
            self._measured.set()
        if self.session.silent is not self._silent:
            self._silent = self.session.silent
            if not self._silent:
                self._came_back()
            self.on_silence()
        if state is State.CLOSED:
            self._over.set()
            self._room.set()
            error = self.close_error or PeerLostError("the link is closed")
            for future in self._probes.values():
                if not future.done():
                    future.set_exception(error)

    # --- the socket -------------------------------------------------------------------------------

    async def _flush(self) -> None:
        """Let the last word out; a lost peer is not waited for."""
        if isinstance(self.close_error, PeerLostError):
            return
        try:
            async with asyncio.timeout(self._timings.close_s):
                await self._idle.wait()
        except TimeoutError:
            log.debug("the last frame to %s was not sent in time", self.address)

    async def _close_socket(self) -> None:
        """The closing handshake, except with a lost peer; afterwards the socket is gone."""
        lost = isinstance(self.close_error, PeerLostError)
        await close_soon(self._socket, 0.0 if lost else self._timings.close_s)


def _nothing() -> None:
    """Nobody wants to know."""


def _now() -> float:
    """The clock of sessions, seconds; uvloop's own has steps of 1 ms."""
    return time.monotonic()
