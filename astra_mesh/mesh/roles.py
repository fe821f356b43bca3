"""Which messages go from which kind of end to which: the table of docs/protocol.md."""

from __future__ import annotations

from typing import Final

from astra_mesh.wire.messages import (
    Accept,
    Ask,
    Cancel,
    Codes,
    Credit,
    Done,
    Event,
    Fail,
    Goodbye,
    Hello,
    LinkRefused,
    ListPeers,
    Peers,
    Ping,
    Planned,
    Pong,
    Pooled,
    Prepare,
    Progress,
    Propose,
    Refuse,
    Result,
    Role,
    Status,
    Subscribe,
    Throughput,
    Token,
)

_LINK: Final = {Hello, LinkRefused, Goodbye, Ping, Pong, Credit, Throughput}
_BETWEEN_PEERS: Final = {
    Status,
    Prepare,
    Propose,
    Accept,
    Refuse,
    Codes,
    Pooled,
    Token,
    Progress,
    Done,
    Cancel,
    Fail,
}
_TO_CLIENT: Final = {Status, Planned, Token, Result, Peers, Event, Fail}
_FROM_CLIENT: Final = {Ask, Cancel, ListPeers, Subscribe}

_TABLE: Final[dict[tuple[Role, Role], set[type]]] = {
    (Role.PEER, Role.PEER): _LINK | _BETWEEN_PEERS,
    (Role.PEER, Role.CLIENT): _LINK | _TO_CLIENT,
    (Role.CLIENT, Role.PEER): _LINK | _FROM_CLIENT,
    (Role.CLIENT, Role.CLIENT): set(),
}


def may_send(kind: type, sender: Role, receiver: Role) -> bool:
    """Whether a message of this type may go from ``sender`` to ``receiver``."""
    return kind in _TABLE[sender, receiver]
