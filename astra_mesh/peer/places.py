"""Where peers can be dialled, as addresses and for people."""

from __future__ import annotations

from typing import Final

from astra_mesh.mesh.connect import Address
from astra_mesh.mesh.link import Link
from astra_mesh.wire.messages import Hello

TAB: Final = "tab"  # instead of an address: a browser has none
_ALL: Final = ("", "0.0.0.0", "::")  # what stands for all of a machine's addresses


def own_address(listen: str | None, port: int) -> Address:
    """Where this machine reaches a peer of its own that listens there."""
    return ("127.0.0.1" if listen is None or listen in _ALL else listen, port)


def is_link_local(host: str) -> bool:
    """Whether an address holds on one machine only: it names one of that machine's interfaces."""
    return host.lower().startswith("fe80:")


def dial_address(link: Link, hello: Hello) -> Address | None:
    """Where the peer at the other end of a link listens, also if it dialled the link itself."""
    host, _, port = link.address.rpartition(":")
    port = port if link.dialled else str(hello.port)
    known = host and port.isdecimal() and int(port) and not hello.via
    return (host.strip("[]"), int(port)) if known else None
