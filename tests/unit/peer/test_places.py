from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

import pytest

from astra_mesh.mesh.connect import Address, show_address
from astra_mesh.peer import places
from astra_mesh.peer.places import dial_address, own_address, own_hosts
from astra_mesh.peer.tabs import host_of
from tests.unit.mesh.sessions import A, B, hello


@dataclass
class FakeLink:
    address: str
    dialled: bool


@pytest.mark.parametrize(
    ("address", "dialled", "port", "found"),
    [
        ("192.0.2.7:7100", True, 7100, ("192.0.2.7", 7100)),
        ("192.0.2.7:50000", False, 7475, ("192.0.2.7", 7475)),
        ("[fe80::1%3]:50000", False, 7475, ("fe80::1%3", 7475)),
        ("[2001:db8::1]:7475", True, 0, ("2001:db8::1", 7475)),
        ("192.0.2.7:50000", False, 0, None),
        ("?", False, 7475, None),
        ("board:7475", True, 1, ("board", 7475)),
    ],
)
def test_where_a_peer_listens(
    address: str, dialled: bool, port: int, found: Address | None
) -> None:
    link = FakeLink(address, dialled)
    assert dial_address(link, hello(B, port=port)) == found  # type: ignore[arg-type]
    if found is not None and dialled:
        assert show_address(found) == address


def test_a_tab_listens_nowhere() -> None:
    """Whatever its link's address and its hello say."""
    link = FakeLink("192.0.2.7:50000", dialled=False)
    assert dial_address(link, hello(B, port=7475, via=A)) is None  # type: ignore[arg-type]


def test_who_is_dialled_for_a_peer() -> None:
    assert host_of(B, None) == B
    assert host_of(B, hello(B)) == B
    assert host_of(B, hello(B, via=A)) == A


@pytest.mark.parametrize("listen", [None, "", "0.0.0.0"])
def test_all_addresses_are_reached_by_loopback(listen: str | None) -> None:
    assert own_address(listen, 7) == ("127.0.0.1", 7)
    assert own_address("::", 7) == ("::1", 7), "a socket of IPv6 takes no IPv4"
    assert own_address("192.0.2.7", 7) == ("192.0.2.7", 7)
    assert own_address("::1", 7) == ("::1", 7)


OWN = [ip_address(text) for text in ("192.0.2.7", "2001:db8::1", "169.254.1.2", "fe80::1")]


@pytest.mark.parametrize(
    ("listen", "found"),
    [
        (None, ["192.0.2.7", "2001:db8::1", "169.254.1.2", "fe80::1"]),
        ("0.0.0.0", ["192.0.2.7", "169.254.1.2"]),
        ("::", ["2001:db8::1", "fe80::1"]),
        ("127.0.0.1", ["127.0.0.1"]),
        ("board", ["board"]),
    ],
)
def test_hosts_are_those_that_answer(
    listen: str | None, found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "own_addresses", lambda: OWN)
    assert own_hosts(listen) == found
    announced = [str(ip) for ip in places.own_ips(listen)]
    assert announced == (found if listen != "board" else [str(ip) for ip in OWN])
    near = [host for host in found if not host.startswith(("fe80", "169.254"))]
    assert own_hosts(listen, link_local=False) == near
