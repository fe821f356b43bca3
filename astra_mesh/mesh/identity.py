"""Who a device and its peers are: keys, certificates, and the SHA-256 of a certificate as its id.

A *device* has one EC P-256 key and a self-signed certificate, made at the first start and shared by
all programs of one user there. That is what people pair. Each *peer* (and each client) has a key
and certificate of its own, signed by its device: whoever trusts a device knows its peers. A *tab*
is a browser that takes part through a peer: its certificate, signed by that peer's device for some
hours, never counts on TLS (docs/browser-peer.md).
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from astra_mesh import limits
from astra_mesh.errors import IdentityError
from astra_mesh.mesh.files import replace_file, write_new
from astra_mesh.wire.messages import DeviceId, PeerId

log = logging.getLogger(__name__)

FILE_NAME: Final = "identity.pem"
DEVICE_FILE_NAME: Final = "device.pem"
_FILE_BYTES: Final = 65_536  # the file has about 900
# Boards without a clock start in 1970; certificates are trusted by their ids, not by their dates.
_FROM: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_UNTIL: Final = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
_ECDSA: Final = ec.ECDSA(hashes.SHA256())
_PEER_NAME: Final = "astra-mesh peer"
_TAB_NAME: Final = "astra-mesh tab"


@dataclass(frozen=True, slots=True)
class Identity:
    """Certificate and private key of a peer or client."""

    peer_id: PeerId
    certificate_pem: bytes
    key_pem: bytes = field(repr=False)  # PKCS #8, not encrypted


class DeviceKey:
    """The key of a device: it signs the certificates of its peers, and changes of the roster."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key, self._certificate = key, certificate
        self.certificate = certificate.public_bytes(serialization.Encoding.DER)
        self.id = DeviceId(_hash(self.certificate))

    @classmethod
    def new(cls) -> DeviceKey:
        """A key that nobody has seen."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name(key_name(key.public_key()))
        return cls(key, _certificate(key.public_key(), name, name, key, authority=True))

    def issue(self, key: ec.EllipticCurvePrivateKey | None = None) -> Identity:
        """An identity of this device, for a new key by default."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        issuer = self._certificate.subject
        return _identity(key, _certificate(key.public_key(), _name(_PEER_NAME), issuer, self._key))

    def issue_tab(self, point: bytes, until: int) -> bytes:
        """A certificate (DER) for the key of a tab, which holds until then (seconds since 1970).

        Raises:
            ValueError: ``point`` is no public key (see :func:`read_point`).
        """
        issuer = self._certificate.subject
        end = datetime.datetime.fromtimestamp(until, datetime.UTC)
        made = _certificate(read_point(point), _name(_TAB_NAME), issuer, self._key, until=end)
        return made.public_bytes(serialization.Encoding.DER)

    def issued(self, certificate_pem: bytes) -> bool:
        """Whether an identity is of this device."""
        return is_issued_by(x509.load_pem_x509_certificate(certificate_pem), self._certificate)

    def sign(self, data: bytes) -> bytes:
        """ECDSA over SHA-256, about 72 bytes."""
        return self._key.sign(data, _ECDSA)

    def pem(self) -> bytes:
        """Key and certificate, for the file."""
        return _key_pem(self._key) + self._certificate.public_bytes(serialization.Encoding.PEM)


# --- certificates ---------------------------------------------------------------------------------


def peer_id(certificate_der: bytes) -> PeerId:
    """The id of the peer with this certificate."""
    return PeerId(_hash(certificate_der))


def device_id(certificate_der: bytes) -> DeviceId:
    """The id of the device with this certificate."""
    return DeviceId(_hash(certificate_der))


@lru_cache(limits.ROSTER_ENTRIES)  # each look at a roster asks for all of them
def device_certificate(der: bytes) -> x509.Certificate:
    """The certificate of another device, checked: a P-256 key that signed it and names it.

    Raises:
        ValueError: It is no such certificate.
    """
    certificate = read_certificate(der)
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    # OpenSSL finds the issuer of a certificate by name: no device may carry the name of another.
    own = _name(key_name(key))
    if certificate.subject != own or not is_issued_by(certificate, certificate):
        raise ValueError("a certificate that is not its device's own")
    return certificate


def read_certificate(der: bytes) -> x509.Certificate:
    """A certificate that may be anybody's, with a P-256 key.

    Raises:
        ValueError: It is none.
    """
    if len(der) > limits.CERTIFICATE_BYTES:
        raise ValueError("a certificate that is too large")
    try:
        certificate = x509.load_der_x509_certificate(der)
        key = certificate.public_key()
        _ = certificate.subject, certificate.issuer, certificate.extensions
    except Exception as exc:  # many kinds, and not all of them ValueErrors
        raise ValueError("a certificate that is malformed") from exc
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("a certificate with a key of another kind")
    return certificate


def read_point(point: bytes) -> ec.EllipticCurvePublicKey:
    """A public key that somebody sent: an uncompressed point of P-256.

    Raises:
        ValueError: It is none.
    """
    if len(point) != limits.POINT_BYTES or point[0] != 4:
        raise ValueError("a public key of another kind")
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    except ValueError:
        raise ValueError("a public key that is no point of P-256") from None


def is_tab(certificate: x509.Certificate) -> bool:
    """Whether a certificate is one of :meth:`DeviceKey.issue_tab`."""
    return certificate.subject == _name(_TAB_NAME)


def is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether the issuer's key signed a certificate, and their names fit."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def verify(certificate: x509.Certificate, signature: bytes, data: bytes) -> bool:
    """Whether the certificate's key made a signature (:meth:`DeviceKey.sign`)."""
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    try:
        key.verify(signature, data, _ECDSA)
    except InvalidSignature:
        return False
    return True


def key_name(key: ec.EllipticCurvePublicKey) -> str:
    """The name in a device's certificate: it follows from the key, so that no two have the same."""
    form = serialization.PublicFormat.UncompressedPoint
    return f"astra-mesh {_hash(key.public_bytes(serialization.Encoding.X962, form))[:32]}"


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _certificate(
    key: ec.EllipticCurvePublicKey,
    subject: x509.Name,
    issuer: x509.Name,
    signer: ec.EllipticCurvePrivateKey,
    authority: bool = False,
    until: datetime.datetime = _UNTIL,
) -> x509.Certificate:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_FROM)
        .not_valid_after(until)
        .add_extension(
            x509.BasicConstraints(ca=authority, path_length=0 if authority else None),
            critical=True,
        )
        .sign(signer, hashes.SHA256())
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _identity(key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> Identity:
    return Identity(
        peer_id=peer_id(certificate.public_bytes(serialization.Encoding.DER)),
        certificate_pem=certificate.public_bytes(serialization.Encoding.PEM),
        key_pem=_key_pem(key),
    )


# --- files ----------------------------------------------------------------------------------------


def load_device(folder: Path) -> DeviceKey:
    """The device's key kept in ``folder``, made at the first call.

    Raises:
        IdentityError: The file cannot be read, written or understood.
    """
    path = folder / DEVICE_FILE_NAME
    with _naming(path):
        if not path.exists():
            write_new(path, DeviceKey.new().pem())
        key, certificate = _parse(path, _read(path))
        return DeviceKey(key, certificate)


def load_identity(state_dir: Path, device: DeviceKey) -> Identity:
    """The identity of a peer kept in ``state_dir``, made at the first call.

    One that another device signed (or none: files of version 0.1) is replaced, its key kept.

    Raises:
        IdentityError: The file cannot be read, written or understood.
    """
    path = state_dir / FILE_NAME
    with _naming(path):
        if not path.exists():
            fresh = device.issue()
            write_new(path, fresh.key_pem + fresh.certificate_pem)
        key, certificate = _parse(path, _read(path))
        identity = _identity(key, certificate)
        if device.issued(identity.certificate_pem):
            return identity
        replaced = device.issue(key)
        replace_file(path, replaced.key_pem + replaced.certificate_pem)
    log.info(
        "this peer has a new id (%s instead of %s): its certificate is signed by this device now",
        replaced.peer_id[:8],
        identity.peer_id[:8],
    )
    return replaced


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise IdentityError(
            f"the identity in {path} cannot be used: {exc.strerror or exc}. Check the "
            "permissions, or choose another folder for the peer's state"
        ) from exc


def _read(path: Path) -> bytes:
    protect(path)
    with path.open("rb") as file:
        return file.read(_FILE_BYTES + 1)


def _parse(path: Path, data: bytes) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    try:
        key = serialization.load_pem_private_key(data, password=None)
        certificate = x509.load_pem_x509_certificate(data)
        if len(data) > _FILE_BYTES or not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("it holds something else")
        if certificate.public_key() != key.public_key():
            raise ValueError("key and certificate do not belong together")
    except (ValueError, TypeError) as exc:
        raise IdentityError(
            f"the identity in {path} is damaged. Restore it from a copy, or delete the file "
            "to get a new identity (other devices will then see a new peer)"
        ) from exc
    return key, certificate


def protect(path: Path) -> None:
    """Close a file to other users, with a warning if it was not."""
    if os.name == "posix" and path.stat().st_mode & 0o077:
        log.warning("%s could be read by other users; its mode is now 0600", path)
        path.chmod(0o600)
