"""Certificates of browser tabs: what they are good for, and what not."""

from __future__ import annotations

import ssl
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from astra_mesh.errors import ProtocolError
from astra_mesh.mesh.identity import DeviceKey, Identity, peer_id
from astra_mesh.mesh.roster import RosterBook
from astra_mesh.mesh.trust import Known, Trust
from astra_mesh.wire.messages import DeviceId, PeerId

HOUR_S = 3600
HOST = PeerId("a" * 64)


def point_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    form = serialization.PublicFormat.UncompressedPoint
    return key.public_key().public_bytes(serialization.Encoding.X962, form)


POINT = point_of(ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture
def trust(tmp_path: Path) -> Trust:
    return Trust.open(tmp_path / "trust")


def host_of(trust: Trust) -> Known:
    return Known(HOST, trust.device.id)


def let_in(trust: Trust, other: DeviceKey) -> None:
    def decide(book: RosterBook) -> bool:
        book.let_in(other.certificate, "other")
        return True

    trust.change(decide)


def test_a_tab_counts_through_a_peer_of_its_device(trust: Trust) -> None:
    until = int(time.time()) + HOUR_S
    certificate = trust.device.issue_tab(POINT, until)
    known = trust.whose_tab(certificate, host_of(trust))
    assert known == Known(peer_id(certificate), trust.device.id, HOST, until)


def test_a_tab_is_nobody_elsewhere(trust: Trust) -> None:
    """On TLS, where peers and clients show theirs."""
    certificate = trust.device.issue_tab(POINT, int(time.time()) + HOUR_S)
    assert trust.whose(certificate) is None


def test_peers_are_no_tabs(trust: Trust) -> None:
    pem = trust.device.issue().certificate_pem.decode()
    with pytest.raises(ProtocolError, match="none of a tab"):
        trust.whose_tab(ssl.PEM_cert_to_DER_cert(pem), host_of(trust))
    with pytest.raises(ProtocolError, match="none of a tab"):
        trust.whose_tab(trust.device.certificate, host_of(trust))


def test_a_tab_whose_time_is_over(trust: Trust) -> None:
    until = int(time.time()) + HOUR_S
    certificate, host = trust.device.issue_tab(POINT, until), host_of(trust)
    assert trust.whose_tab(certificate, host, clock=lambda: until - 1.0).until == until
    with pytest.raises(ProtocolError, match="has ended"):
        trust.whose_tab(certificate, host, clock=lambda: float(until))


def test_a_board_without_a_clock_lets_tabs_in(trust: Trust) -> None:
    certificate = trust.device.issue_tab(POINT, int(time.time()) + HOUR_S)
    assert trust.whose_tab(certificate, host_of(trust), clock=lambda: 0.0).via == HOST


def test_a_tab_comes_through_its_own_device_only(trust: Trust, tmp_path: Path) -> None:
    """Both devices are members: each vouches for its own tabs alone."""
    other = DeviceKey.new()
    let_in(trust, other)
    until = int(time.time()) + HOUR_S
    certificate = other.issue_tab(POINT, until)
    assert trust.whose_tab(certificate, Known(HOST, other.id)).device == other.id
    with pytest.raises(ProtocolError, match="another device"):
        trust.whose_tab(certificate, host_of(trust))


def test_tabs_of_strangers_and_of_those_shut_out(trust: Trust) -> None:
    other = DeviceKey.new()
    certificate = other.issue_tab(POINT, int(time.time()) + HOUR_S)
    for known in (Known(HOST, other.id), Known(HOST, DeviceId("b" * 64))):
        with pytest.raises(ProtocolError, match="none of a tab of this mesh"):
            trust.whose_tab(certificate, known)
    let_in(trust, other)
    assert trust.whose_tab(certificate, Known(HOST, other.id)).device == other.id

    def shut_out(book: RosterBook) -> bool:
        book.shut_out(other.id)
        return True

    trust.change(shut_out)
    with pytest.raises(ProtocolError, match="none of a tab of this mesh"):
        trust.whose_tab(certificate, Known(HOST, other.id))


def test_forged_ones(trust: Trust) -> None:
    """A device of the same name, and bytes that are no certificate."""
    forger = DeviceKey.new()
    forger._certificate = trust.device._certificate
    certificate = forger.issue_tab(POINT, int(time.time()) + HOUR_S)
    with pytest.raises(ProtocolError, match="another device"):
        trust.whose_tab(certificate, host_of(trust))
    with pytest.raises(ProtocolError, match="malformed"):
        trust.whose_tab(b"\x30\x00", host_of(trust))


COMPRESSED = b"\2" + POINT[1:33]
BAD_POINTS = {
    "nothing": b"",
    "compressed": COMPRESSED,
    "too long": POINT + b"\0",
    "of another form": b"\6" + POINT[1:],
    "not on the curve": b"\4" + bytes(64),
}


@pytest.mark.parametrize("kind", BAD_POINTS)
def test_keys_that_are_none(kind: str) -> None:
    with pytest.raises(
        ValueError, match=r"^a public key (of another kind|that is no point of P-256)$"
    ):
        DeviceKey.new().issue_tab(BAD_POINTS[kind], int(time.time()) + HOUR_S)


def test_tls_does_not_know_that_it_is_a_tab(trust: Trust) -> None:
    """Why whose() must: the chain is good, and OpenSSL looks no further."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = trust.device.issue_tab(point_of(key), int(time.time()) + HOUR_S)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    as_peer = Identity(peer_id(certificate), ssl.DER_cert_to_PEM_cert(certificate).encode(), pem)
    tls, server = trust.tls(as_peer), trust.tls(trust.device.issue())
    assert _handshake(server.server, tls.client) == certificate


def _handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> bytes | None:
    """What the server sees of the client's certificate."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    serving = server.wrap_bio(to_server, to_client, server_side=True)
    dialling = client.wrap_bio(to_client, to_server)
    for _ in range(4):
        for end in (dialling, serving):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return serving.getpeercert(binary_form=True)
