"""Writes tests/vectors/sealed.json: the handshake of the sealed channel and some frames, byte by
byte, with fixed keys and deterministic signatures (RFC 6979). Python and JavaScript both run them.

Run it after a change of the channel (``python -m tools.make_sealed_vectors``), and read the
difference: bytes that changed mean a new version of the channel.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.x509.oid import NameOID

from astra_mesh.mesh.identity import key_name, peer_id
from astra_mesh.mesh.sealed import Answerer, Channel, Opener, Speaker
from astra_mesh.wire.codec import encode
from astra_mesh.wire.messages import Ping

PATH: Final = Path(__file__).parent.parent / "tests" / "vectors" / "sealed.json"

Key = ec.EllipticCurvePrivateKey

_ORDER: Final = int("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551", 16)
_FROM: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_UNTIL: Final = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
_DETERMINISTIC: Final = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)


def key(name: str) -> Key:
    """A private key that anybody can compute."""
    number = int.from_bytes(hashlib.sha256(f"astra-mesh vector {name}".encode()).digest(), "big")
    return ec.derive_private_key(1 + number % (_ORDER - 1), ec.SECP256R1())


def certificate(of: Key, subject: str, issuer: str, signer: Key, until: datetime.datetime) -> bytes:
    """A certificate (DER) as :mod:`astra_mesh.mesh.identity` makes them, but always the same."""

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    authority = of is signer
    made = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(of.public_key())
        .serial_number(1 + sum(subject.encode()))
        .not_valid_before(_FROM)
        .not_valid_after(until)
        .add_extension(
            x509.BasicConstraints(ca=authority, path_length=0 if authority else None),
            critical=True,
        )
        .sign(signer, hashes.SHA256(), ecdsa_deterministic=True)
    )
    return made.public_bytes(serialization.Encoding.DER)


DEVICE, TAB, PEER = key("device"), key("tab"), key("peer")
UNTIL: Final = 4_102_444_800  # of the tab: the year 2100
_DEVICE_NAME: Final = key_name(DEVICE.public_key())
DEVICE_CERTIFICATE: Final = certificate(DEVICE, _DEVICE_NAME, _DEVICE_NAME, DEVICE, _UNTIL)
TAB_CERTIFICATE: Final = certificate(
    TAB,
    "astra-mesh tab",
    _DEVICE_NAME,
    DEVICE,
    datetime.datetime.fromtimestamp(UNTIL, datetime.UTC),
)
PEER_CERTIFICATE: Final = certificate(PEER, "astra-mesh peer", _DEVICE_NAME, DEVICE, _UNTIL)


def speaker(certificate: bytes, signer: Key) -> Speaker:
    """An end whose signatures are always the same."""
    return Speaker(certificate, lambda data: signer.sign(data, _DETERMINISTIC))


FRAMES: Final = (
    ("opener", encode(Ping(1))),
    ("opener", b""),
    ("answerer", encode(Ping(1))),
    ("opener", bytes(range(256)) * 3),
    ("answerer", encode(Ping(2, bytes(64)))),
)


def handshake() -> tuple[dict[str, Any], Channel, Channel]:
    """The vector, and the channel of the opener (the tab) and of the answerer (the peer)."""
    keys = {"opener": key("opener ephemeral"), "answerer": key("answerer ephemeral")}
    opener = Opener(
        speaker(TAB_CERTIFICATE, TAB), peer_id(PEER_CERTIFICATE), ephemeral=keys["opener"]
    )
    answerer = Answerer(speaker(PEER_CERTIFICATE, PEER), opener.first, ephemeral=keys["answerer"])
    third, opened = opener.finish(answerer.second)
    vector = {
        "opener": _end(TAB_CERTIFICATE, TAB, keys["opener"]),
        "answerer": _end(PEER_CERTIFICATE, PEER, keys["answerer"]),
        "first": opener.first.hex(),
        "second": answerer.second.hex(),
        "third": third.hex(),
    }
    return vector, opened, answerer.finish(third)


def _end(certificate: bytes, signer: Key, ephemeral: Key) -> dict[str, str]:
    return {
        "certificate": certificate.hex(),
        "id": peer_id(certificate),
        "key": _number(signer),
        "ephemeral": _number(ephemeral),
        "ephemeral_public": _point(ephemeral).hex(),
    }


def _number(of: Key) -> str:
    return of.private_numbers().private_value.to_bytes(32, "big").hex()


def _point(of: Key) -> bytes:
    form = serialization.PublicFormat.UncompressedPoint
    return of.public_key().public_bytes(serialization.Encoding.X962, form)


def frames(opened: Channel, answered: Channel) -> list[dict[str, str]]:
    """Each frame and what its sender makes of it, in this order."""
    ends = {"opener": opened, "answerer": answered}
    return [
        {"sender": sender, "frame": frame.hex(), "sealed": ends[sender].seal(frame).hex()}
        for sender, frame in FRAMES
    ]


def refused(second: bytes) -> list[dict[str, str]]:
    """Second messages that the opener must not take."""
    changed = {
        "another magic": b"amt2" + second[4:],
        "a key that is no point of the curve": second[:4] + b"\4" + bytes(64) + second[69:],
        "an ephemeral key of somebody else": second[:4] + _point(PEER) + second[69:],
        "the length of the certificate": second[:70] + bytes([second[70] ^ 1]) + second[71:],
        "another certificate": _with_certificate(second, TAB_CERTIFICATE),
        "a signature of zeros": second[:-64] + bytes(64),
        "a signature with one bit changed": second[:-1] + bytes([second[-1] ^ 1]),
        "cut short": second[:-1],
        "one byte more": second + b"\0",
        "nothing": b"",
    }
    return [{"name": name, "second": data.hex()} for name, data in changed.items()]


def _with_certificate(second: bytes, der: bytes) -> bytes:
    return second[:69] + len(der).to_bytes(2, "big") + der + second[-64:]


def signatures() -> list[dict[str, str]]:
    """Both forms of one signature, which are both good: s, and the curve's order less s."""
    data = b"a text"
    r, s = utils.decode_dss_signature(TAB.sign(data, _DETERMINISTIC))
    return [
        {
            "public": _point(TAB).hex(),
            "data": data.hex(),
            "signature": b"".join(n.to_bytes(32, "big") for n in (r, form)).hex(),
        }
        for form in (s, _ORDER - s)
    ]


def vectors() -> dict[str, Any]:
    """All vectors, as they stand in the file."""
    made, opened, answered = handshake()
    return {
        "device": {"certificate": DEVICE_CERTIFICATE.hex()},
        "until": UNTIL,
        "handshake": made,
        "frames": frames(opened, answered),
        "refused": refused(bytes.fromhex(made["second"])),
        "signatures": signatures(),
    }


if __name__ == "__main__":
    PATH.write_text(json.dumps(vectors(), indent=1) + "\n")
    print(f"vectors of the sealed channel written to {PATH.name}")
