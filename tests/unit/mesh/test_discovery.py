"""What discovery makes of announcements, true and hostile; no sockets."""

from __future__ import annotations

import ipaddress
import logging
from typing import Any

import pytest
from zeroconf import ServiceStateChange
from zeroconf.asyncio import AsyncServiceInfo

from astra_mesh import limits
from astra_mesh.mesh.connect import Address
from astra_mesh.mesh.discovery import SERVICE, Discovery, is_instance
from astra_mesh.wire.messages import PROTOCOL_VERSION, PeerId

A, B = PeerId("a" * 64), PeerId("b" * 64)
VERSION = str(PROTOCOL_VERSION)


class Watch:
    """A discovery that is fed by hand, and what it told."""

    def __init__(self, port: int | None = 7100) -> None:
        self.found: list[tuple[PeerId, str, list[Address]]] = []
        self.gone: list[PeerId] = []
        self.discovery = Discovery(
            A, "laptop", port, on_found=self._found, on_gone=self.gone.append
        )
        self.discovery._own = {"192.0.2.1", "172.17.0.1"}

    def _found(self, peer: PeerId, name: str, addresses: list[Address]) -> None:
        self.found.append((peer, name, addresses))

    def announce(self, label: str = "x", port: int = 7100, **texts: Any) -> None:
        properties = {"id": B, "v": VERSION, "name": "board", **texts}
        addresses = [ipaddress.ip_address(a).packed for a in ("192.0.2.9", "172.17.0.1")]
        full = f"{label}.{SERVICE}"
        info = AsyncServiceInfo(
            SERVICE, full, port=port, addresses=addresses, properties=properties
        )
        self.discovery._report(full, info)

    def remove(self, name: str = "x") -> None:
        self.discovery._on_change(None, SERVICE, f"{name}.{SERVICE}", ServiceStateChange.Removed)  # type: ignore[arg-type]


def test_an_announcement() -> None:
    watch = Watch()
    watch.announce()
    assert watch.found == [(B, "board", [("192.0.2.9", 7100)])]


def test_another_port_of_this_machine_is_another_peer() -> None:
    watch = Watch()
    watch.announce(port=7101)
    assert watch.found[0][2] == [("192.0.2.9", 7101), ("172.17.0.1", 7101)]


def test_own_announcements_are_not_reported() -> None:
    watch = Watch()
    watch.announce(id=A)
    assert watch.found == []


@pytest.mark.parametrize(
    "peer", ["", "b" * 63, "B" * 64, "g" * 64, "b" * 64 + "\n", b"\xff\xfe", None]
)
def test_ids_that_are_none(peer: Any) -> None:
    watch = Watch()
    watch.announce(id=peer)
    assert watch.found == []


def test_another_version_is_ignored_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    watch = Watch()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            watch.announce(v="2\x1b[2J")
    assert watch.found == []
    assert len(caplog.records) == 1
    assert "speaks protocol version 2" in caplog.text
    assert "\x1b" not in caplog.text


def test_names_are_made_safe() -> None:
    watch = Watch()
    watch.announce(name="\x1b[31m" + "n" * 200)
    shown = watch.found[-1][1]
    assert shown.isprintable()
    assert len(shown) <= limits.NAME_CHARS


def test_no_port_no_peer() -> None:
    watch = Watch()
    watch.announce(port=0)
    assert watch.found == []


def test_gone() -> None:
    watch = Watch()
    watch.announce()
    watch.remove("unknown")
    assert watch.gone == []
    watch.remove()
    watch.remove()
    assert watch.gone == [B]


def test_one_of_two_names_of_a_peer_goes() -> None:
    watch = Watch()
    watch.announce("one")
    watch.announce("two")
    watch.remove("one")
    assert watch.gone == []
    watch.remove("two")
    assert watch.gone == [B]


def test_a_flood_of_names_is_bounded() -> None:
    watch = Watch()
    for number in range(limits.CANDIDATES + 100):
        watch.announce(f"n{number}", id=f"{number:064x}")
        watch.discovery._on_change(
            None,  # type: ignore[arg-type]
            SERVICE,
            f"p{number}.{SERVICE}",
            ServiceStateChange.Added,
        )
    assert len(watch.found) == limits.CANDIDATES
    assert len(watch.discovery._known) == limits.CANDIDATES
    assert len(watch.discovery._pending) == limits.CANDIDATES


@pytest.mark.parametrize("name", ["laptop", "Küche ☕", "x" * 64, "...", "a.b.local.", "", "-"])
def test_instance_names_are_legal(name: str) -> None:
    discovery = Discovery(A, name, 7100, on_found=lambda *_: None, on_gone=lambda _: None)
    info = discovery._info(7100, [ipaddress.ip_address("192.0.2.1")])
    label = info.name.removesuffix("." + SERVICE)
    assert label.endswith("-aaaaaaaa")
    assert len(label.encode()) <= 63
    assert "." not in label
    assert is_instance(info.name)


@pytest.mark.parametrize(
    "label",
    ["\x07bell", "a\x7fb", "a.b", "", "x" * 64, "\ufffd" * 63, "a\u202eb", "a\nb", "\ud800" * 64],
)
def test_names_that_no_peer_has_are_not_looked_up(
    label: str, caplog: pytest.LogCaptureFixture
) -> None:
    watch = Watch()
    added = ServiceStateChange.Added
    with caplog.at_level(logging.WARNING):
        for _ in range(100):
            watch.discovery._on_change(None, SERVICE, f"{label}.{SERVICE}", added)  # type: ignore[arg-type]
    assert not watch.discovery._pending
    assert 0 < len(caplog.records) < 20
    assert all(record.getMessage().isprintable() for record in caplog.records)


@pytest.mark.parametrize("name", [SERVICE, "", ".", "x.local.", f"x.{SERVICE}x", f"x.{SERVICE}."])
def test_names_of_other_services_are_not_looked_up(name: str) -> None:
    assert not is_instance(name)
