"""One link to a peer, and the conversations on it: a request each, and what answers it."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from typing import Final, TypeVar

from astra_mesh.errors import (
    AstraMeshError,
    BusyError,
    CancelledRequestError,
    MeshError,
    NoPeerError,
    PeerLostError,
    ProtocolError,
    error_from_code,
)
from astra_mesh.mesh.connect import Address
from astra_mesh.mesh.link import Link
from astra_mesh.wire.codec import AnyMessage, sanitise
from astra_mesh.wire.messages import (
    Ask,
    Cancel,
    Event,
    Fail,
    Hello,
    ListPeers,
    Peers,
    Refer,
    RequestId,
    Result,
    Subscribe,
)

log = logging.getLogger(__name__)

Opener = Ask | ListPeers | Subscribe
T = TypeVar("T")

# Events that a subscriber has not read yet; the oldest are dropped. A room with 64 devices that all
# come and go is 128 events; one of them is below 1 KB.
UNREAD_EVENTS: Final = 1_024


def new_request() -> RequestId:
    """A fresh id for a request."""
    return RequestId(secrets.randbits(63))


class Conversation:
    """One request and the messages that answer it, in order. One task reads it.

    What is not read yet is bounded: tokens by the credit window of the link, events by
    :data:`UNREAD_EVENTS`; all else comes once.
    """

    def __init__(self, line: Line, opener: Opener) -> None:
        self.request = opener.request
        self._line = line
        self._unread: deque[AnyMessage] = deque()
        self._news = asyncio.Event()
        self._over = False  # the last message came, or nothing more is wanted
        self._cancelled = False

    @property
    def over(self) -> bool:
        """Whether no more messages will come."""
        return self._over

    async def next(self) -> AnyMessage:
        """The next message. Cancelling it loses nothing.

        Raises:
            AstraMeshError: The peer ended the request by that error.
            PeerLostError: The peer went away before the last message.
            CancelledRequestError: :meth:`close` was called.
        """
        while not self._unread:
            if self._cancelled:
                raise CancelledRequestError("the request was cancelled")
            if not self._line.is_open:
                self._over = True
                raise self._line.lost()
            self._news.clear()
            await self._news.wait()
        message = self._unread.popleft()
        self._line.consumed(message)
        if isinstance(message, Fail):
            error = error_from_code(message.code, sanitise(message.text))
            if isinstance(error, BusyError):
                error.retry_s = message.retry_s or error.retry_s
            raise error
        return message

    async def expect(self, kind: type[T]) -> T:
        """The next message, which must be of this type; raises as :meth:`next`."""
        message = await self.next()
        if not isinstance(message, kind):
            raise ProtocolError(f"{type(message).__name__} instead of {kind.__name__}")
        return message

    def take(self, message: AnyMessage) -> None:
        """A message came from the link."""
        self._over = self._over or isinstance(message, Fail | Result | Refer | Peers)
        if isinstance(message, Event) and len(self._unread) >= UNREAD_EVENTS:
            self._unread.popleft()
        self._unread.append(message)
        self._news.set()

    def wake(self) -> None:
        """The link ended."""
        self._news.set()

    def close(self) -> None:
        """Nothing more is wanted: cancel the request unless it is over. More calls do nothing."""
        if not self._cancelled and not self._over:
            self._line.cancel(self.request)
        self._cancelled = self._over = True
        while self._unread:
            self._line.consumed(self._unread.popleft())
        self._line.forget(self.request)
        self._news.set()


class Line:
    """A link of a client, run in a task of its own."""

    def __init__(self, link: Link, place: Address | None = None) -> None:
        self.place = place  # that was dialled
        self.closed_here = False  # by the caller: nothing was lost
        self._link = link
        self._conversations: dict[RequestId, Conversation] = {}
        self._decided = asyncio.Event()  # the hello came, or the link is over
        self._task: asyncio.Task[MeshError | None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether requests can be made."""
        return self._link.is_open

    @property
    def address(self) -> str:
        """Of the peer."""
        return self._link.address

    @property
    def hello(self) -> Hello:
        """What the peer says about itself."""
        assert self._link.peer is not None, "the line was not opened"
        return self._link.peer

    async def open(self) -> None:
        """Start the link and wait for the peer's hello, no longer than the session's deadline.

        Cancelling it, or an error, leaves a line that must be closed.

        Raises:
            NoPeerError: It went away before it said anything, or is leaving.
            MeshError: The peer refused, or speaks another version.
        """
        self._task = asyncio.create_task(self._run(), name="astra_mesh client link")
        await self._decided.wait()
        if self.is_open:
            return
        error, address = self._link.close_error, self._link.address
        if isinstance(error, PeerLostError) and self._link.peer is None:
            raise NoPeerError(
                f"the peer at {address} went away before it said hello ({error.message}). Check "
                "that it still runs, or ask another one"
            )
        raise error or NoPeerError(f"the peer at {address} is leaving; ask another one")

    async def close(self) -> None:
        """Say goodbye and end the link. Conversations that run get PeerLostError."""
        self.closed_here = True
        if self._task is None:
            return
        try:
            await self._link.close()
        finally:
            self._task.cancel()
            await asyncio.wait([self._task])
            if not self._task.cancelled() and (fault := self._task.exception()):
                log.error(
                    "the link to %s met an error of its own", self._link.address, exc_info=fault
                )

    def start(self, opener: Opener) -> Conversation:
        """Make a request.

        Raises:
            PeerLostError: The peer is gone.
        """
        if not self.is_open:
            raise self.lost(asked=False)
        conversation = Conversation(self, opener)
        self._link.send(opener)
        self._conversations[opener.request] = conversation
        return conversation

    def consumed(self, message: AnyMessage) -> None:
        """The caller has a message: give its credit back."""
        self._link.consumed(message)

    def cancel(self, request: RequestId) -> None:
        """Tell the peer that nothing more is wanted."""
        if self.is_open:
            self._link.send(Cancel(request=request))

    def forget(self, request: RequestId) -> None:
        """A conversation is closed."""
        self._conversations.pop(request, None)

    def lost(self, *, asked: bool = True) -> AstraMeshError:
        """The error of a request that cannot go on, or cannot be made, naming the peer."""
        hello = self._link.peer
        who = f"{sanitise(hello.name)} at {self._link.address}" if hello else self._link.address
        error = self._link.close_error
        if error is not None and not isinstance(error, PeerLostError):
            return type(error)(error.message)
        if self.closed_here:
            return PeerLostError(f"this program closed its connection to the peer {who}")
        why = error.message if error is not None else "it said goodbye"
        when = "before the answer was complete" if asked else "before it was asked"
        happened = f"the peer {who} went away {when} ({why})"
        lost = PeerLostError(
            f"{happened}. Check that it still runs and ask again, or ask another peer "
            "(`astra-mesh peers` lists those here)"
        )
        lost.happened = happened
        return lost

    async def _run(self) -> MeshError | None:
        try:
            return await self._link.run(self._take)
        finally:
            self._decided.set()
            for conversation in list(self._conversations.values()):
                conversation.wake()

    def _take(self, message: AnyMessage) -> None:
        self._decided.set()  # the hello comes first
        request = getattr(message, "request", None)
        conversation = self._conversations.get(request) if request is not None else None
        if conversation is not None:
            conversation.take(message)
            if conversation.over:
                self.forget(conversation.request)
        else:
            self._link.consumed(message)
