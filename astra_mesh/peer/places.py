"""Where peers can be dialled, as addresses and for people."""

from __future__ import annotations

import ipaddress
from typing import Final

from astra_mesh.mesh.connect import Address
from astra_mesh.mesh.interfaces import IPAddress, is_loopback, own_addresses
from astra_mesh.mesh.link import Link
from astra_mesh.wire.messages import Hello

TAB: Final = "tab"  # instead of an address: a browser has none
_ALL: Final = {"": None, "0.0.0.0": 4, "::": 6}  # stand for all own addresses, of which family
_LOOPBACK: Final = {None: "127.0.0.1", 4: "127.0.0.1", 6: "::1"}


def own_address(listen: str | None, port: int) -> Address:
    """Where this machine reaches a peer of its own that listens there."""
    listen = listen or ""
    return (_LOOPBACK[_ALL[listen]] if listen in _ALL else listen, port)


def own_hosts(listen: str | None, link_local: bool = True) -> list[str]:
    """Where others reach a peer that listens there, the likeliest first: addresses of this machine,
    or the one that it listens on.

    Args:
        listen: The address that it listens on; None: all.
        link_local: Whether addresses that hold in one network only are among them.
    """
    if listen and listen not in _ALL:
        return [listen]
    return [str(ip) for ip in own_ips(listen) if link_local or not ip.is_link_local]


def is_alone(listen: str | None) -> bool:
    """Whether no other machine reaches a peer that listens there."""
    return all(is_loopback(host) for host in own_hosts(listen))


def own_ips(listen: str | None) -> list[IPAddress]:
    """The addresses of this machine that a peer has which listens there, the likeliest first."""
    listen = listen or ""
    if listen not in _ALL:
        try:
            return [ipaddress.ip_address(listen)]
        except ValueError:  # a name
            return own_addresses()
    family = _ALL[listen]
    return [ip for ip in own_addresses() if family in (None, ip.version)]


def is_link_local(host: str) -> bool:
    """Whether an address holds on one machine only: it names one of that machine's interfaces."""
    return host.lower().startswith("fe80:")


def dial_address(link: Link, hello: Hello) -> Address | None:
    """Where the peer at the other end of a link listens, also if it dialled the link itself."""
    host, _, port = link.address.rpartition(":")
    port = port if link.dialled else str(hello.port)
    known = host and port.isdecimal() and int(port) and not hello.via
    return (host.strip("[]"), int(port)) if known else None
