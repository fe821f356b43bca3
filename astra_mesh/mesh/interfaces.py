"""The addresses of this machine, as the network sees them."""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
from contextlib import suppress
from typing import Final

import ifaddr

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_GET_FLAGS, _RUNNING = 0x8913, 0x40  # SIOCGIFFLAGS, IFF_RUNNING (netdevice(7))
_ORDER: Final = {(4, False): 0, (6, False): 1, (4, True): 2, (6, True): 3}  # (version, link-local)


def own_addresses() -> list[IPAddress]:
    """Addresses under which others may reach this machine, the most likely first.

    Loopback addresses are left out, unless there are no others.
    """
    found = {address for _, address in _all_addresses()}
    outside = [address for address in found if not address.is_loopback]
    return sorted(outside or found, key=lambda a: (_ORDER[a.version, a.is_link_local], int(a)))


def has_network() -> bool:
    """Whether this machine has an address that is none of loopback."""
    return any(not address.is_loopback for address in own_addresses())


def connected_interfaces() -> frozenset[str]:
    """Names of the interfaces whose cable is in, or whose Wi-Fi is joined; empty if the system does
    not tell (elsewhere than on Linux: addresses go there with the connection).
    """
    if sys.platform != "linux":
        return frozenset()
    found = set()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            with suppress(OSError):  # it went meanwhile
                answer = fcntl.ioctl(any_socket, _GET_FLAGS, request)
                if struct.unpack_from("H", answer, 16)[0] & _RUNNING:
                    found.add(name)
    return frozenset(found)


def is_loopback(host: str) -> bool:
    """Whether a host is the machine itself."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"


def multicast_interfaces() -> list[str | int]:
    """Where to send and receive multicast: IPv4 addresses, and indexes of interfaces with IPv6."""
    outside = [(index, ip) for index, ip in _all_addresses() if not ip.is_loopback]
    found: dict[str | int, None] = {}
    for index, address in outside or _all_addresses():
        if address.version == 4:
            found[str(address)] = None
        elif index is not None and not address.is_loopback:
            found[index] = None
    return list(found)


def _all_addresses() -> list[tuple[int | None, IPAddress]]:
    """Interface index and address of all there are."""
    found = []
    for adapter in ifaddr.get_adapters():
        for ip in adapter.ips:
            text = ip.ip if isinstance(ip.ip, str) else ip.ip[0]
            found.append((adapter.index, ipaddress.ip_address(text.partition("%")[0])))
    return found
