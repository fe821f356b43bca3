"""Flow control of one link, without I/O: what may be written now, what the other end may send.

Control messages go first. Data (:class:`Codes`, :class:`Pooled`, :class:`Token`) needs credit,
which the other end gives as it consumes; requests take turns, and each one's order is kept.
:class:`Done` and :class:`Result` cost nothing but wait behind the data of their request.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import NamedTuple

from astra_mesh import limits
from astra_mesh.errors import ProtocolError
from astra_mesh.wire.codec import AnyMessage
from astra_mesh.wire.messages import Codes, Done, Pooled, RequestId, Result, Token

ORDERED = (Codes, Pooled, Token, Done, Result)  # keep their order within a request
_OVERHEAD_BYTES = 64  # charged for each data message, so that empty ones are not free


def cost(message: AnyMessage) -> int:
    """Credit that a message takes, bytes; both ends compute the same. 0 for control."""
    if isinstance(message, Codes):
        return _OVERHEAD_BYTES + len(message.data)
    if isinstance(message, Pooled):
        return _OVERHEAD_BYTES + len(message.vector)
    if isinstance(message, Token):
        return _OVERHEAD_BYTES + len(message.text)
    return 0


class _Item(NamedTuple):
    frame: bytes
    cost: int
    counts: bool  # whether it is codes, whose bytes are reported


class Outbox:
    """Frames that wait to be written."""

    def __init__(self) -> None:
        self.credit = 0  # never negative
        self.queued_bytes = 0
        self._control: deque[bytes] = deque()
        self._data: OrderedDict[RequestId, deque[_Item]] = OrderedDict()
        self._sent: OrderedDict[RequestId, int] = OrderedDict()

    @property
    def control_empty(self) -> bool:
        """No control frame waits (data may, for credit)."""
        return not self._control

    def put_control(self, frame: bytes) -> None:
        """Queue a control frame behind those that wait."""
        self._control.append(frame)
        self.queued_bytes += len(frame)

    def put_data(self, request: RequestId, frame: bytes, message: AnyMessage) -> None:
        """Queue a frame of :data:`ORDERED` behind those of its request."""
        item = _Item(frame, cost(message), isinstance(message, Codes | Pooled))
        self._data.setdefault(request, deque()).append(item)
        self.queued_bytes += len(frame)

    def drop(self, request: RequestId) -> None:
        """Forget the frames of a request that were not taken yet."""
        for item in self._data.pop(request, ()):
            self.queued_bytes -= len(item.frame)

    def drop_data(self) -> None:
        """Forget all data."""
        for request in list(self._data):
            self.drop(request)

    def take(self, limit: int) -> list[bytes]:
        """Frames to write now: at least one if any may go, then until ``limit`` bytes."""
        frames: list[bytes] = []
        size = 0
        while size < limit:
            frame = self._control.popleft() if self._control else self._take_data()
            if frame is None:
                break
            frames.append(frame)
            size += len(frame)
        self.queued_bytes -= size
        return frames

    def _take_data(self) -> bytes | None:
        """The next frame of the request whose turn it is, which waits until there is credit."""
        if not self._data:
            return None
        request, items = next(iter(self._data.items()))
        if items[0].cost > self.credit:
            return None
        item = items.popleft()
        self.credit -= item.cost
        if items:
            self._data.move_to_end(request)
        else:
            del self._data[request]
        if item.counts:
            self._sent[request] = self._sent.get(request, 0) + len(item.frame)
            while len(self._sent) > limits.ENDED_REQUESTS:
                self._sent.popitem(last=False)
        return item.frame

    def sent_bytes(self, request: RequestId) -> int:
        """Bytes of the code frames of a request that were taken for writing."""
        return self._sent.get(request, 0)


class Window:
    """The receiving side: how much data the other end may send before more is consumed."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._open = 0  # received, and not yet given back as credit
        self._consumed = 0  # consumed, and not yet given back

    @property
    def unconsumed(self) -> int:
        """Bytes that were received and not consumed."""
        return self._open - self._consumed

    def received(self, size: int) -> None:
        """Count data.

        Raises:
            ProtocolError: The other end sent more than it had credit for.
        """
        self._open += size
        if self._open > self._size:
            raise ProtocolError("more data than there was credit for")

    def consumed(self, size: int) -> int:
        """Count consumed data; the result is credit to give back now, or 0.

        Raises:
            ValueError: More than was received: a mistake of the caller.
        """
        if not 0 <= size <= self.unconsumed:
            raise ValueError(f"{size} bytes consumed of {self.unconsumed} received")
        self._consumed += size
        if self._consumed * 2 < self._size:
            return 0
        lump, self._consumed = self._consumed, 0
        self._open -= lump
        return lump
