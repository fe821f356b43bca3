"""One link as a state machine, without I/O and without a clock.

Frames and the time go in; messages for the application and frames for the other end come out. A
session is single-use: after :attr:`State.CLOSED` a new link needs a new one. The rules are those of
docs/protocol.md; whatever breaks them ends the link with a named reason.
"""

from __future__ import annotations

import enum
import math
from typing import Final

from astra_mesh import limits
from astra_mesh.errors import BusyError, MeshError, PeerLostError, ProtocolError, RefusedError
from astra_mesh.mesh.flow import ORDERED, Outbox, Window, cost
from astra_mesh.mesh.greeting import LinkRefusal, check_first, explain, refusal_error
from astra_mesh.mesh.pings import Pings
from astra_mesh.mesh.quota import Quota
from astra_mesh.mesh.requests import COUNTED, RequestTable
from astra_mesh.mesh.roles import kind_of, may_send
from astra_mesh.mesh.timings import Timings
from astra_mesh.wire.codec import AnyMessage, decode, encode, peek, sanitise
from astra_mesh.wire.messages import (
    Ask,
    Cancel,
    Credit,
    Done,
    Fail,
    Goodbye,
    Hello,
    LinkRefused,
    PeerId,
    Ping,
    Pong,
    Reason,
    Refuse,
    RequestId,
    Role,
    Throughput,
)

__all__ = ["Session", "State", "Timings", "cost"]


class State(enum.Enum):
    """Where a link stands."""

    FRESH = "fresh"  # nothing was queued and nothing is accepted
    GREETING = "greeting"  # our hello is queued or sent; theirs has not come
    OPEN = "open"  # both hellos are valid and fit together: messages flow
    CLOSING = "closing"  # our last word is queued; what comes in is dropped
    CLOSED = "closed"  # nothing goes in or out any more; ``close_error`` says why


_NEXT: Final = {
    State.FRESH: {State.GREETING, State.CLOSED},
    State.GREETING: {State.OPEN, State.CLOSING, State.CLOSED},
    State.OPEN: {State.CLOSING, State.CLOSED},
    State.CLOSING: {State.CLOSED},
    State.CLOSED: set[State](),
}


class Session:
    """The protocol of one link, seen from one of its ends.

    Args:
        hello: What this end says about itself.
        timings: Deadlines.
        expected: The peer that must be at the other end; None for any.
        proven: The peer that is there, as its certificate proves; None on links without TLS.
        via: Of a tab: the peer through which it comes, likewise.
        quota: Of the device at the other end.
    """

    def __init__(
        self,
        hello: Hello,
        timings: Timings | None = None,
        expected: PeerId | None = None,
        proven: PeerId | None = None,
        via: PeerId | None = None,
        quota: Quota | None = None,
    ) -> None:
        self.state = State.FRESH
        self.hello = hello
        self.peer_hello: Hello | None = None  # set from OPEN on
        self.close_error: MeshError | None = None  # None: a goodbye, or still open
        self.close_reason: Reason | None = None  # of a LinkRefused, sent or received
        self.silent = False  # nothing was heard for a while; it may come back until it is lost
        self.receive_bps: float | None = None  # bits per second, as the other end measured
        self.told = 0  # how often it did
        self.timings = timings if timings is not None else Timings()
        self._expected = expected
        self._proven, self._via = proven, via
        self._outbox = Outbox()
        self._window = Window(hello.window_bytes)
        self._quota = quota if quota is not None else Quota.endless()
        self._requests = RequestTable(self._quota)
        self._pings = Pings(self.timings.heartbeat_s)
        self._pongs = 0  # queued since control was last all written
        self._heard = 0.0  # when the last frame came
        self._deadline = math.inf  # of GREETING and CLOSING
        self._due = math.inf  # when tick wants to be called

    # --- what the application sees ----------------------------------------------------------------

    @property
    def round_trip_s(self) -> float | None:
        """Smoothed round trip, seconds; None before the first pong."""
        return self._pings.round_trip_s

    @property
    def least_trip_s(self) -> float | None:
        """The shortest round trip lately, seconds; None before a few pongs came."""
        return self._pings.least_trip_s

    @property
    def queued_bytes(self) -> int:
        """Bytes of frames that wait, for the socket or for credit."""
        return self._outbox.queued_bytes

    @property
    def unconsumed_bytes(self) -> int:
        """Cost of the data that was received and not consumed."""
        return self._window.unconsumed

    def sent_bytes(self, request: RequestId) -> int:
        """Bytes of the code frames of a request handed out for writing."""
        return self._outbox.sent_bytes(request)

    def start(self, now: float) -> None:
        """Queue the hello. Once, before all else."""
        self._move(State.GREETING)
        self._outbox.put_control(encode(self.hello))
        self._deadline = now + self.timings.hello_s
        self._heard = now

    def send(self, message: AnyMessage, frame: bytes | None = None) -> None:
        """Queue a message. What belongs to an ended request is dropped in silence.

        Args:
            message: What to send.
            frame: It encoded, where that is done already.

        Raises:
            MeshError: The link is closed (``close_error`` where there is one).
            ProtocolError: The message may not be sent here: a mistake of the caller.
        """
        if self.state is not State.OPEN or self.peer_hello is None:
            raise self.close_error or PeerLostError("the link is not open")
        if not may_send(type(message), self.hello, self.peer_hello):
            kind = type(message).__name__
            raise ProtocolError(f"{kind} does not go from a {kind_of(self.hello)} to this end")
        if frame is None:
            frame = encode(message)
        if not self._requests.sending(message):
            return
        if isinstance(message, Cancel | Fail | Refuse):
            self._outbox.drop(message.request)
        if isinstance(message, ORDERED):
            self._outbox.put_data(message.request, frame, message)
        else:
            self._outbox.put_control(frame)
        if self.queued_bytes > 2 * limits.SEND_QUEUE_BYTES:
            self.lost("it does not read what it is sent")

    def frames(self, limit: int = limits.WRITE_BATCH_BYTES) -> list[bytes]:
        """Frames to write now, in order; at least one if any may go, then up to ``limit`` bytes."""
        if self.state in (State.FRESH, State.CLOSED):
            return []
        frames = self._outbox.take(limit)
        if self._outbox.control_empty:
            self._pongs = 0
            if self.state is State.CLOSING:  # it has no data any more
                self._move(State.CLOSED)
        return frames

    def consumed(self, size: int) -> None:
        """Give back credit for data (:func:`cost` of each message) that is no longer held."""
        lump = self._window.consumed(size)
        if self.state is not State.CLOSED:
            self._quota.give(size)
        if lump and self.state is State.OPEN:
            self._outbox.put_control(encode(Credit(lump)))

    def end(self, request: RequestId) -> None:
        """Nothing more is wanted for a request: drop what is queued and what comes late."""
        self._requests.end(request)
        self._outbox.drop(request)

    def ping(self, now: float, padding: int = 0) -> int:
        """Queue a ping whose :class:`Pong` is handed up by ``receive``; its number."""
        if self.state is not State.OPEN:
            raise self.close_error or PeerLostError("the link is not open")
        ping = self._pings.probe(now, padding)
        self._outbox.put_control(encode(ping))
        return ping.number

    def goodbye(self, text: str = "") -> None:
        """Leave: queue the goodbye, drop queued data, accept nothing more."""
        if self.state is State.FRESH:
            self._move(State.CLOSED)
        elif self.state in (State.GREETING, State.OPEN):
            self._last_word(Goodbye(text=sanitise(text)))

    def refuse(self, reason: Reason, text: str = "", error: MeshError | None = None) -> None:
        """End the link with a named reason; ``error`` becomes ``close_error``."""
        if self.state not in (State.GREETING, State.OPEN):
            return
        text = sanitise(text)
        self.close_reason = reason
        self.close_error = error or RefusedError(f"link refused: {explain(reason, text)}")
        self._last_word(LinkRefused(reason=reason, text=text))

    def lost(self, why: str) -> None:
        """The other end is gone, or the socket is: close without a word."""
        if self.state is State.CLOSED:
            return
        if self.state is not State.CLOSING:
            self.close_error = PeerLostError(f"lost {self._who()}: {sanitise(why)}")
        self._close()

    # --- time -------------------------------------------------------------------------------------

    def tick(self, now: float) -> float:
        """Do what is due; the result is when to call again at the latest (``inf``: never)."""
        if self.state is State.GREETING and now >= self._deadline:
            self.lost(f"no hello within {self.timings.hello_s:g} s")
        elif self.state is State.CLOSING:
            self._deadline = min(self._deadline, now + self.timings.close_s)
            if now >= self._deadline:
                self._close()
        elif self.state is State.OPEN:
            self._beat(now)
        if self.state is State.OPEN:
            end_s = self._lost_s if self.silent else self._silence_s
            self._due = min(self._pings.due(self._heard), self._heard + end_s)
        else:
            self._due = math.inf if self.state is State.CLOSED else self._deadline
        return self._due

    @property
    def is_due_sooner(self) -> bool:
        """Whether a ping is due before the time that :meth:`tick` told last."""
        return self.state is State.OPEN and self._pings.due(self._heard) < self._due

    @property
    def _silence_s(self) -> float:
        """How long the other end may say nothing before it counts as silent."""
        client = self.peer_hello is not None and self.peer_hello.role is Role.CLIENT
        return self.timings.silence_s * (limits.CLIENT_PATIENCE if client else 1)

    @property
    def _lost_s(self) -> float:
        """How long it may say nothing before it is lost."""
        lost_s = self.timings.lost_s
        if self._via is not None:
            lost_s = min(lost_s, self.timings.tab_lost_s)
        return max(self._silence_s, lost_s)

    def _beat(self, now: float) -> None:
        """Ping in silence; give up after too much of it."""
        if now - self._due > self.timings.heartbeat_s:
            # This process stood still (a suspended laptop): silence so far proves nothing.
            self._heard = max(self._heard, now - self.timings.heartbeat_s)
        self.silent = now - self._heard >= self._silence_s
        if now - self._heard >= self._lost_s:
            self.lost(f"nothing heard for {self._lost_s:g} s")
        elif now >= self._pings.due(self._heard):
            self._outbox.put_control(encode(self._pings.heartbeat(now)))

    # --- receiving --------------------------------------------------------------------------------

    def receive(self, frame: bytes | bytearray | memoryview, now: float) -> list[AnyMessage]:
        """Take a frame; the messages for the application (none or one), the hello first of all."""
        if self.state not in (State.GREETING, State.OPEN):
            return []
        self._heard, self.silent = now, False
        try:
            if self.peer_hello is None:
                return self._greet(frame, now)
            if not self._quota.has_room(len(frame)):
                kind, request = peek(frame)
                if kind in COUNTED and request is not None:
                    self._turn_away(kind, request)
                    return []
            return self._dispatch(decode(frame), now, len(frame))
        except LinkRefusal as exc:
            self.refuse(exc.reason, exc.text, exc.error)
        except ProtocolError as exc:
            text = sanitise(exc.message)
            self.refuse(
                Reason.BAD_MESSAGE, text, ProtocolError(f"{self._who()} broke the protocol: {text}")
            )
        return []

    def _greet(self, frame: bytes | bytearray | memoryview, now: float) -> list[AnyMessage]:
        message = check_first(frame, self.hello, self._expected, self._proven, self._via)
        if not isinstance(message, Hello):
            return self._dispatch(message, now)
        self.peer_hello = message
        self._outbox.credit = message.window_bytes
        self._pings.start(now)
        self._move(State.OPEN)
        return [message]

    def _turn_away(self, kind: type, request: RequestId) -> None:
        """Refuse a request: its device has as much here as it may have."""
        assert self.peer_hello is not None
        if not may_send(kind, self.peer_hello, self.hello) or (self._requests.knows(request)):
            raise ProtocolError(f"{kind.__name__} that is not allowed here")
        text = sanitise(self._quota.sentence())
        answer: Refuse | Fail = Refuse(request=request, reason=Reason.BUSY, text=text)
        if kind is Ask:
            retry_s = limits.RETRY_LEAST_S
            answer = Fail(request=request, code=BusyError.code, text=text, retry_s=retry_s)
        self._requests.end(request)
        self._outbox.put_control(encode(answer))
        if self.queued_bytes > 2 * limits.SEND_QUEUE_BYTES:
            self.lost("it does not read what it is sent")

    def _dispatch(self, message: AnyMessage, now: float, frame: int = 0) -> list[AnyMessage]:
        if isinstance(message, LinkRefused):
            self.close_reason = message.reason
            self.close_error = refusal_error(message, self._who())
            self._close()
        elif isinstance(message, Goodbye):
            self._close()
        elif isinstance(message, Ping):
            self._pong(message)
        elif isinstance(message, Pong):
            return [message] if self._pings.pong(message.number, now) else []
        elif isinstance(message, Credit):
            self._credit(message.size)
        elif isinstance(message, Throughput):
            self.receive_bps, self.told = message.bps, self.told + 1
        else:
            return self._deliver(message, frame)
        return []

    def _deliver(self, message: AnyMessage, frame: int) -> list[AnyMessage]:
        assert self.peer_hello is not None
        if isinstance(message, Hello):
            raise ProtocolError("a second hello")
        if not may_send(type(message), self.peer_hello, self.hello):
            kind = type(message).__name__
            raise ProtocolError(f"{kind} does not come from a {kind_of(self.peer_hello)}")
        if isinstance(message, COUNTED) and not self._quota.has_room(frame):
            self._turn_away(type(message), message.request)
            return []
        size = cost(message)
        if not self._quota.can_hold(size):
            text = self._quota.sentence()
            raise LinkRefusal(Reason.BUSY, text, RefusedError(f"{self._who()}: {text}"))
        self._window.received(size)
        self._quota.take(size)
        if not self._requests.receiving(message, frame):
            self.consumed(size)
            return []
        if isinstance(message, Cancel | Fail | Refuse | Done):
            self._outbox.drop(message.request)
        return [message]

    def _pong(self, ping: Ping) -> None:
        self._pongs += 1
        if self._pongs > limits.PENDING_PONGS:
            raise ProtocolError("pings without reading the pongs")
        self._outbox.put_control(encode(Pong(ping.number)))

    def _credit(self, size: int) -> None:
        assert self.peer_hello is not None
        if self._outbox.credit + size > self.peer_hello.window_bytes:
            raise ProtocolError("more credit than data was sent")
        self._outbox.credit += size

    # --- states -----------------------------------------------------------------------------------

    def _who(self) -> str:
        if self.peer_hello is not None:
            return f"{sanitise(self.peer_hello.name)} ({self.peer_hello.peer[:8]})"
        known = self._expected or self._proven
        return f"peer {known[:8]}" if known else "the other end"

    def _last_word(self, message: Goodbye | LinkRefused) -> None:
        self._outbox.drop_data()
        self._outbox.put_control(encode(message))
        self._deadline = math.inf
        self._move(State.CLOSING)

    def _close(self) -> None:
        self._outbox = Outbox()
        self._move(State.CLOSED)

    def _move(self, state: State) -> None:
        if state not in _NEXT[self.state]:
            raise RuntimeError(f"a link cannot go from {self.state.value} to {state.value}")
        self.state = state
        if state is State.CLOSED:
            self._requests.close()
            self._quota.give(self._window.unconsumed)
