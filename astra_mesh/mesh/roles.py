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
    Refer,
    Refuse,
    Result,
    Role,
    Roster,
    Status,
    Subscribe,
    Throughput,
    Token,
)

_LINK: Final = {Hello, LinkRefused, Goodbye, Ping, Pong, Credit, Throughput}
_BETWEEN_PEERS: Final = {
    Roster,
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
_TO_CLIENT: Final = {Status, Planned, Refer, Token, Result, Peers, Event, Fail}
_FROM_CLIENT: Final = {Ask, Cancel, ListPeers, Subscribe}

_TABLE: Final[dict[tuple[Role, Role], set[type]]] = {
    (Role.PEER, Role.PEER): _LINK | _BETWEEN_PEERS,
    (Role.PEER, Role.CLIENT): _LINK | _TO_CLIENT,
    (Role.CLIENT, Role.PEER): _LINK | _FROM_CLIENT,
    (Role.CLIENT, Role.CLIENT): set(),
}


# A tab takes shards. It never plans, so nobody answers it, and it decides about no device.
_NOT_FROM_TABS: Final = {Roster, Prepare, Propose, Token}
_NOT_TO_TABS: Final = {Roster, Token}


def may_send(kind: type, sender: Hello, receiver: Hello) -> bool:
    """Whether a message of this type may go from ``sender`` to ``receiver``."""
    if (sender.via and kind in _NOT_FROM_TABS) or (receiver.via and kind in _NOT_TO_TABS):
        return False
    return kind in _TABLE[sender.role, receiver.role]


def kind_of(end: Hello) -> str:
    """Who an end is, for people."""
    return "tab" if end.via else end.role.value
