"""Two real mDNS responders on this machine."""

from __future__ import annotations

import asyncio
import errno
import gc
import ipaddress
import logging
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from zeroconf.asyncio import AsyncServiceInfo

from astra_mesh.mesh import discovery as module
from astra_mesh.mesh.connect import Address
from astra_mesh.mesh.discovery import Discovery
from astra_mesh.mesh.interfaces import (
    IPAddress,
    connected_interfaces,
    multicast_interfaces,
    own_addresses,
)
from astra_mesh.wire.messages import PeerId
from tests.timings import patient

# Ids of this run, so that two runs on one network do not see each other.
A, B = (PeerId(letter + f"{time.time_ns():063x}") for letter in "ab")


class Peer:
    """A discovery with what it told."""

    def __init__(self, peer: PeerId, port: int | None, **options: object) -> None:
        self.found: dict[PeerId, tuple[str, list[Address]]] = {}
        self.times = 0
        self.gone: list[PeerId] = []
        self.discovery = Discovery(
            peer,
            f"peer {peer[0]}",
            port,
            on_found=self._found,
            on_gone=self._gone,
            **options,  # type: ignore[arg-type]
        )

    def _found(self, peer: PeerId, name: str, addresses: list[Address]) -> None:
        self.found[peer] = (name, addresses)
        self.times += 1

    def _gone(self, peer: PeerId) -> None:
        self.found.pop(peer, None)
        self.gone.append(peer)


@asynccontextmanager
async def running(*peers: Peer) -> AsyncIterator[list[asyncio.Task[None]]]:
    tasks = [asyncio.ensure_future(peer.discovery.run()) for peer in peers]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def until(condition: Callable[[], object], seconds: float = 5.0) -> float:
    began = time.perf_counter()
    async with asyncio.timeout(patient(seconds)):
        while not condition():
            await asyncio.sleep(0.005)
    return time.perf_counter() - began


async def test_two_peers_find_each_other_and_say_goodbye() -> None:
    a, b = Peer(A, 7100), Peer(B, 7101)
    async with running(a, b) as tasks:
        assert await until(lambda: B in a.found and A in b.found) < patient(1.5)
        name, addresses = a.found[B]
        assert name == "peer b"
        assert {port for _, port in addresses} == {7101}
        assert A not in a.found
        assert a.discovery.problem is None
        tasks[1].cancel()
        assert await until(lambda: B in a.gone) < patient(2.0)
        assert A not in b.gone


async def test_a_watcher_is_not_announced() -> None:
    a, watcher = Peer(A, 7100), Peer(B, None)
    async with running(a, watcher):
        await until(lambda: A in watcher.found)
        await asyncio.sleep(0.2)
        assert B not in a.found


async def test_a_peer_that_comes_later() -> None:
    a, b = Peer(A, 7100), Peer(B, 7101)
    async with running(a):
        await asyncio.sleep(0.3)
        async with running(b):
            await until(lambda: B in a.found and A in b.found)
        await until(lambda: B in a.gone)


async def test_another_address_starts_it_anew() -> None:
    addresses = own_addresses()

    def listed() -> list[IPAddress]:
        return list(addresses)

    a, b = Peer(A, 7100, addresses=listed, poll_s=0.05), Peer(B, 7101)
    async with running(a, b):
        await until(lambda: A in b.found and B in a.found)
        addresses.insert(0, ipaddress.ip_address("192.0.2.200"))
        await until(lambda: A in b.found and ("192.0.2.200", 7100) in b.found[A][1])
        await until(lambda: B in a.found)


async def test_without_multicast(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(**_: object) -> None:
        raise OSError("no multicast here")

    monkeypatch.setattr(module, "AsyncZeroconf", refuse)
    turns = iter(range(1_000))

    def changing() -> list[IPAddress]:
        return [ipaddress.ip_address(f"192.0.2.{next(turns) % 200}")]

    peer = Peer(A, 7100, addresses=changing, poll_s=0.01)
    with caplog.at_level(logging.WARNING):
        async with running(peer) as (task,):
            await until(lambda: next(turns) > 5)
            assert not task.done()
            assert peer.discovery.problem == "no multicast here"
    warnings = [record for record in caplog.records if record.name == module.__name__]
    assert len(warnings) == 1
    assert "--peer HOST:PORT" in warnings[0].getMessage()


async def test_sockets_that_cannot_be_used_are_a_problem_and_no_lost_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where an interface is down: its address can be bound, but is of no use."""

    async def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")

    monkeypatch.setattr(module, "_START_S", 0.1)
    loop = asyncio.get_running_loop()
    usual = loop.create_datagram_endpoint
    monkeypatch.setattr(loop, "create_datagram_endpoint", refuse)
    peer = Peer(A, 7100, poll_s=0.02, renew_s=0.05)
    async with running(peer) as (task,):
        await until(lambda: peer.discovery.problem is not None)
        assert peer.discovery.problem == "no interface takes multicast now"
        assert not task.done()
        monkeypatch.setattr(loop, "create_datagram_endpoint", usual)
        await until(lambda: peer.discovery.problem is None)  # it is tried again
    gc.collect()
    await asyncio.sleep(0)
    assert not [record for record in caplog.records if record.name == "asyncio"]


async def test_a_machine_in_no_network_says_so_until_it_is_in_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its own peers meet all the same."""
    addresses, network = own_addresses(), False
    a = Peer(A, 7100, addresses=lambda: list(addresses), has_network=lambda: network, poll_s=0.02)
    b = Peer(B, 7101)
    with caplog.at_level(logging.WARNING):
        async with running(a, b):
            alone = "this machine is in no network"
            await until(lambda: B in a.found and a.discovery.problem == alone)
            network = True
            addresses.append(ipaddress.ip_address("192.0.2.200"))
            await until(lambda: a.discovery.problem is None)
    warned = [r.getMessage() for r in caplog.records if "no network" in r.getMessage()]
    assert len(warned) == 1


async def test_a_cable_that_is_pulled_and_put_back_shows_while_addresses_stay(
    caplog: pytest.LogCaptureFixture,
) -> None:
    network = True
    a = Peer(A, 7100, has_network=lambda: network, poll_s=0.02)
    assert not a.discovery.has_tried
    async with running(a):
        await until(lambda: a.discovery.has_tried)
        assert a.discovery.problem is None
        for _ in range(2):
            network = False
            await until(lambda: a.discovery.problem == "this machine is in no network")
            network = True
            await until(lambda: a.discovery.problem is None)
    warned = [r.getMessage() for r in caplog.records if "no network" in r.getMessage()]
    assert len(warned) == 2


async def test_addresses_of_this_machine() -> None:
    addresses = own_addresses()
    assert addresses
    versions = [(address.version, address.is_link_local) for address in addresses]
    assert versions == sorted(versions, key=lambda v: (v[1], v[0]))
    interfaces = multicast_interfaces()
    assert interfaces
    assert len(set(interfaces)) == len(interfaces)


def renewals(peer: Peer) -> list[bool]:
    """Grows by an entry for each renewal: whether it asks, too."""
    found: list[bool] = []
    renew = peer.discovery._renew

    async def renewing(*, ask: bool) -> None:
        await renew(ask=ask)
        found.append(ask)

    peer.discovery._renew = renewing  # type: ignore[method-assign]
    return found


async def test_a_peer_announces_itself_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = Peer(A, 7104, poll_s=0.05, renew_s=0.3), Peer(B, 7105)
    renewed = renewals(a)
    sent: list[object] = []
    async with running(a, b):
        await until(lambda: A in b.found)
        assert a.discovery._zeroconf is not None
        zeroconf = a.discovery._zeroconf.zeroconf
        send = zeroconf.async_send

        def sending(packet: object, *more: Any) -> None:
            sent.append(packet)
            send(packet, *more)  # type: ignore[arg-type]

        monkeypatch.setattr(zeroconf, "async_send", sending)
        await until(lambda: len(renewed) >= 2)
    assert set(renewed) == {False}
    assert len(sent) >= 2


async def test_a_cable_that_comes_back_asks_and_announces_anew() -> None:
    plugged, looks = {"eth0"}, list[None]()

    def connected() -> frozenset[str]:
        looks.append(None)
        return frozenset(plugged)

    a = Peer(A, 7106, poll_s=0.05, connected=connected)
    renewed = renewals(a)
    b = Peer(B, 7107)
    async with running(a, b):
        await until(lambda: B in a.found and len(looks) > 2)
        plugged.clear()
        seen = len(looks)
        await until(lambda: len(looks) > seen + 2)
        assert renewed == []
        times = a.times
        plugged.add("eth0")
        await until(lambda: renewed == [True])
        await until(lambda: a.times > times)  # asked again, and answered


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
def test_the_machine_itself_is_always_connected() -> None:
    assert "lo" in connected_interfaces()


# --- packets of anybody ---------------------------------------------------------------------------

SERVICE_LABELS = (b"_astra-mesh", b"_tcp", b"local")
ODD = {
    "a bell": (b"\x07bell", *SERVICE_LABELS),
    "a zero byte": (b"a\0b", *SERVICE_LABELS),
    "an escape sequence": (b"\x1b[2J", *SERVICE_LABELS),
    "no UTF-8": (b"\xff\xfe\xfd", *SERVICE_LABELS),
    "a change of direction": ("a\u202eb".encode(), *SERVICE_LABELS),
    "a dot": (b"a.b", *SERVICE_LABELS),
    "dots only": (b"...", *SERVICE_LABELS),
    "many labels": (*[b"x" * 20] * 8, *SERVICE_LABELS),
    "63 bytes that are more as text": (b"\xff" * 63, *SERVICE_LABELS),
    "no label": SERVICE_LABELS,
    "another service": (b"x", b"_other", b"_tcp", b"local"),
    "another domain": (b"x", b"example", b"com"),
    "the root": (),
    "capitals": (b"x", b"_ASTRA-MESH", b"_TCP", b"LOCAL"),
}


def pointer(*labels: bytes) -> bytes:
    """RFC 1035: an answer which says that an instance of the service has this name."""

    def name(parts: tuple[bytes, ...]) -> bytes:
        return b"".join(bytes([len(part)]) + part for part in parts) + b"\0"

    head = b"\0\0\x84\0\0\0\0\1\0\0\0\0"
    data = name(labels)
    about = b"\0\x0c\0\1\0\0\x11\x94" + len(data).to_bytes(2, "big")  # PTR, IN, 4500 s
    return head + name(SERVICE_LABELS) + about + data


def send(packet: bytes) -> None:
    """To all on this machine that listen to mDNS; it does not leave the machine."""
    for interface in multicast_interfaces():
        if isinstance(interface, str):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 0)
                own = socket.inet_aton(interface)
                sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, own)
                sender.sendto(packet, ("224.0.0.251", 5353))


async def test_names_that_no_peer_has_do_not_end_discovery(
    caplog: pytest.LogCaptureFixture,
) -> None:
    a, b = Peer(A, 7108), Peer(B, 7109)
    async with running(a) as (task,):
        await until(lambda: a.discovery._zeroconf is not None)
        for labels in ODD.values():
            send(pointer(*labels))
        await until(lambda: a.discovery._odd >= 6)
        async with running(b):  # whose name comes behind all of those
            await until(lambda: B in a.found)
        assert not task.done()
        assert a.discovery.problem is None
    said = [record.getMessage() for record in caplog.records if record.name == module.__name__]
    assert any("a name that no peer has" in text for text in said)
    assert all(text.isprintable() for text in said)
    assert not any("error of this peer" in text for text in said)


async def test_a_name_that_breaks_the_lookup_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    info = AsyncServiceInfo
    broke = list[str]()

    def breaking(kind: str, name: str, **more: Any) -> object:
        if name.startswith("poison"):
            broke.append(name)
            raise LookupError("a bug\x07")
        return info(kind, name, **more)

    monkeypatch.setattr(module, "AsyncServiceInfo", breaking)
    a, b = Peer(A, 7112), Peer(B, 7113)
    async with running(a) as (task,):
        await until(lambda: a.discovery._zeroconf is not None)
        for number in range(8):  # more than there are resolvers
            send(pointer(b"poison%d" % number, *SERVICE_LABELS))
        await until(lambda: len(set(broke)) == 8)
        async with running(b):
            await until(lambda: B in a.found)
        assert not task.done()
    assert "poison1._astra-mesh._tcp.local. cannot be looked up (LookupError: a bug" in caplog.text
    assert "\x07" not in caplog.text
    assert "starts again" not in caplog.text


async def test_after_an_error_of_its_own_it_starts_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    looks, broken = list[None](), True

    def addresses() -> list[IPAddress]:
        looks.append(None)
        if broken and len(looks) % 2 == 0:  # it opens each time, and ends at the second look
            raise LookupError("a bug")
        return own_addresses()

    a, b = Peer(A, 7110, pause_s=0.05, poll_s=0.05, addresses=addresses), Peer(B, 7111)
    async with running(a, b) as (task, _):
        await until(lambda: a.discovery.problem is not None)
        assert a.discovery.problem == "an error of this peer: LookupError: a bug"
        await until(lambda: len(looks) > 6)  # again and again
        broken = False
        await until(lambda: B in a.found and a.discovery.problem is None)
        assert not task.done()
    errors = [record for record in caplog.records if "starts again" in record.getMessage()]
    assert len(errors) == 1
