"""The addresses of this machine, as the network sees them."""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import ifaddr

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_GET_FLAGS: Final = 0x8913  # SIOCGIFFLAGS (netdevice(7))
_UP, _RUNNING = 0x1, 0x40  # IFF_UP, IFF_RUNNING
_ORDER: Final = {(4, False): 0, (6, False): 1, (4, True): 2, (6, True): 3}  # (version, link-local)


def own_addresses() -> list[IPAddress]:
    """Addresses under which others may reach this machine, the most likely first.

    Loopback addresses are left out, unless there are no others.
    """
    found = {address for _, address in _all_addresses()}
    far = [address for address in found if not address.is_loopback]
    return sorted(far or found, key=_likely)


def _likely(address: IPAddress) -> tuple[int, int]:
    return _ORDER[address.version, address.is_link_local], int(address)


@dataclass(frozen=True)
class Outside:
    """An interface to other machines, and this machine's addresses there.

    Attributes:
        addresses: The most likely first.
        is_up: False if it was switched off (``ip link set eth0 down``); its addresses stay.
        connected: Whether its cable is in, or its Wi-Fi is joined.
    """

    addresses: tuple[IPAddress, ...]
    is_up: bool = True
    connected: bool = True


def outside() -> dict[str, Outside]:
    """The interfaces that have an address which is none of loopback, by name. Where the system does
    not tell (elsewhere than on Linux: addresses go there with the connection) all are connected.
    """
    names, flags = dict(socket.if_nameindex()), _all_flags()
    found: dict[str, set[IPAddress]] = {}
    for index, address in _all_addresses():
        if not address.is_loopback:
            found.setdefault(names.get(index or 0, "?"), set()).add(address)
    return {
        name: Outside(
            tuple(sorted(addresses, key=_likely)),
            bool(flags.get(name, _UP) & _UP),
            bool(flags.get(name, _RUNNING) & _RUNNING),
        )
        for name, addresses in found.items()
    }


def has_network() -> bool:
    """Whether this machine has an address that is none of loopback, where it is connected."""
    return any(one.connected for one in outside().values())


def connected_interfaces() -> frozenset[str]:
    """Names of the interfaces whose cable is in, or whose Wi-Fi is joined; empty if the system does
    not tell.
    """
    return frozenset(name for name, flags in _all_flags().items() if flags & _RUNNING)


def _all_flags() -> dict[str, int]:
    """The flags of each interface; empty if the system does not tell."""
    found: dict[str, int] = {}
    if sys.platform != "linux":
        return found
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            with suppress(OSError):  # it went meanwhile
                answer = fcntl.ioctl(any_socket, _GET_FLAGS, request)
                found[name] = struct.unpack_from("H", answer, 16)[0]
    return found


def is_loopback(host: str) -> bool:
    """Whether a host is the machine itself."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"


def multicast_interfaces() -> list[str | int]:
    """Where to send and receive multicast: IPv4 addresses, and indexes of interfaces with IPv6."""
    far = [(index, ip) for index, ip in _all_addresses() if not ip.is_loopback]
    found: dict[str | int, None] = {}
    for index, address in far or _all_addresses():
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
