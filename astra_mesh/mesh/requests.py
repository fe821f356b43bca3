"""Which requests are open on one link, and which of their messages are due; without I/O.

A request is *opened* by a message that carries a new id (:class:`Propose`, :class:`Ask`,
:class:`ListPeers`, :class:`Subscribe`), answered by the other end, and ended by one of either. Ids
that ended are remembered for a while: what is still under way for them is dropped, not an error.
Codes may arrive for requests that this link has not seen: proposals come from another peer.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from astra_mesh import limits
from astra_mesh.errors import ProtocolError
from astra_mesh.mesh.quota import Quota
from astra_mesh.wire.codec import AnyMessage
from astra_mesh.wire.messages import (
    Accept,
    Ask,
    Cancel,
    Codes,
    Done,
    Event,
    Fail,
    ListPeers,
    Peers,
    Planned,
    Pooled,
    Progress,
    Propose,
    Refer,
    Refuse,
    RequestId,
    Result,
    Subscribe,
    Token,
)

COUNTED: Final = (Ask, Propose)  # what a device may have so many of
OPENERS: Final = (Propose, Ask, ListPeers, Subscribe)
# What an answer may answer.
_ANSWERS: Final[dict[type, tuple[type, ...]]] = {
    Accept: (Propose,),
    Refuse: (Propose,),
    Progress: (Propose,),
    Done: (Propose,),
    Token: (Propose, Ask),
    Planned: (Ask,),
    Result: (Ask,),
    Refer: (Ask,),
    Peers: (ListPeers,),
    Event: (Subscribe,),
}
_OF_REQUESTS: Final = (
    Accept,
    Refuse,
    Progress,
    Done,
    Token,
    Planned,
    Result,
    Refer,
    Peers,
    Event,
    Codes,
    Pooled,
    Cancel,
    Fail,
)
_LAST: Final = (Refuse, Done, Result, Refer, Peers, Cancel, Fail)  # nothing follows them
_ONCE: Final = (Accept, Refuse)


class RequestTable:
    """The requests of one link."""

    def __init__(self, quota: Quota) -> None:
        self._quota = quota
        self._sizes: dict[RequestId, int] = {}  # of those that count for it
        self._ours: dict[RequestId, type] = {}  # opened by this end -> type of the opener
        self._theirs: dict[RequestId, type] = {}
        self._settled: set[RequestId] = set()  # proposals of either end, accepted
        self._ended: OrderedDict[RequestId, None] = OrderedDict()

    def sending(self, message: AnyMessage) -> bool:
        """Note a message that this end wants to send; False if its request ended and it is void.

        Raises:
            ProtocolError: The message does not fit: a mistake of the caller.
        """
        return self._pass(message, self._ours, self._theirs)

    def receiving(self, message: AnyMessage, size: int = 0) -> bool:
        """Note a message from the other end, in a frame of ``size`` bytes; False if it came late
        and is to be dropped.

        Raises:
            ProtocolError: The other end may not send it now.
        """
        due = self._pass(message, self._theirs, self._ours)
        if isinstance(message, COUNTED):
            self._sizes[message.request] = size
            self._quota.take(size, 1)
        return due

    def knows(self, request: RequestId) -> bool:
        """Whether a request is open, or ended not long ago."""
        return request in self._ours or request in self._theirs or request in self._ended

    def close(self) -> None:
        """The link is over: nothing counts for the quota any more."""
        for size in self._sizes.values():
            self._quota.give(size, 1)
        self._sizes.clear()

    def end(self, request: RequestId) -> None:
        """Nothing more is wanted for a request."""
        self._ours.pop(request, None)
        self._theirs.pop(request, None)
        self._settled.discard(request)
        if request in self._sizes:
            self._quota.give(self._sizes.pop(request), 1)
        self._ended[request] = None
        self._ended.move_to_end(request)
        while len(self._ended) > limits.ENDED_REQUESTS:
            self._ended.popitem(last=False)

    def ended(self, request: RequestId) -> bool:
        """Whether a request ended on this link (as far back as is remembered)."""
        return request in self._ended

    def _pass(
        self, message: AnyMessage, own: dict[RequestId, type], other: dict[RequestId, type]
    ) -> bool:
        """``own`` are the requests that the sender of the message opened."""
        if isinstance(message, OPENERS):
            self._open(message.request, type(message), own)
            return True
        if not isinstance(message, _OF_REQUESTS):
            return True
        request: RequestId = message.request
        if request in self._ended:
            return False
        if type(message) in _ANSWERS:
            self._answer(message, request, other.get(request))
        if isinstance(message, _LAST):
            self.end(request)
        return True

    def _answer(self, message: AnyMessage, request: RequestId, opener: type | None) -> None:
        kind = type(message)
        if opener not in _ANSWERS[kind]:
            raise ProtocolError(f"{kind.__name__} for a request that was not made")
        if isinstance(message, _ONCE):
            if request in self._settled:
                raise ProtocolError(f"{kind.__name__} for a proposal that was answered before")
            self._settled.add(request)

    def _open(self, request: RequestId, kind: type, own: dict[RequestId, type]) -> None:
        if self.knows(request):
            raise ProtocolError(f"{kind.__name__} with the id of another request")
        if len(own) >= limits.OPEN_REQUESTS_PER_LINK:
            raise ProtocolError(f"more than {limits.OPEN_REQUESTS_PER_LINK} requests are open")
        own[request] = kind
