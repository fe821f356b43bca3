"""Who a peer is: a self-signed EC P-256 certificate, and the SHA-256 of its DER form as the id."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import logging
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from astra_mesh.errors import IdentityError
from astra_mesh.wire.messages import PeerId

log = logging.getLogger(__name__)

FILE_NAME: Final = "identity.pem"
_FILE_BYTES: Final = 65_536  # the file has about 900
# Boards without a clock start in 1970; the certificate is trusted by its id, not by its dates.
_FROM: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_UNTIL: Final = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)


@dataclass(frozen=True, slots=True)
class Identity:
    """Certificate and private key of a peer."""

    peer_id: PeerId
    certificate_pem: bytes
    key_pem: bytes = field(repr=False)  # PKCS #8, not encrypted


def peer_id(certificate_der: bytes) -> PeerId:
    """The id of the peer with this certificate."""
    return PeerId(hashlib.sha256(certificate_der).hexdigest())


def ephemeral_identity() -> Identity:
    """A new identity that lives in memory only."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "astra-mesh")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_FROM)
        .not_valid_after(_UNTIL)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Identity(
        peer_id=peer_id(certificate.public_bytes(serialization.Encoding.DER)),
        certificate_pem=certificate.public_bytes(serialization.Encoding.PEM),
        key_pem=key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )


def load_identity(state_dir: Path) -> Identity:
    """The identity kept in ``state_dir``, made at the first call.

    Raises:
        IdentityError: The file cannot be read, written or understood.
    """
    path = state_dir / FILE_NAME
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            _create(path, ephemeral_identity())
        _protect(path)
        with path.open("rb") as file:
            data = file.read(_FILE_BYTES + 1)
    except OSError as exc:
        raise IdentityError(
            f"the peer's identity in {path} cannot be used: {exc.strerror or exc}. Check the "
            "permissions, or choose another folder for the peer's state"
        ) from exc
    return _parse(path, data)


def _parse(path: Path, data: bytes) -> Identity:
    try:
        key = serialization.load_pem_private_key(data, password=None)
        certificate = x509.load_pem_x509_certificate(data)
        if len(data) > _FILE_BYTES or not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("it holds something else")
        if certificate.public_key() != key.public_key():
            raise ValueError("key and certificate do not belong together")
    except (ValueError, TypeError) as exc:
        raise IdentityError(
            f"the peer's identity in {path} is damaged. Restore it from a copy, or delete the file "
            "to get a new identity (other devices will then see a new peer)"
        ) from exc
    return Identity(
        peer_id=peer_id(certificate.public_bytes(serialization.Encoding.DER)),
        certificate_pem=certificate.public_bytes(serialization.Encoding.PEM),
        key_pem=key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )


def _create(path: Path, identity: Identity) -> None:
    """Write the file as a whole or not at all; who comes second keeps the file of the first."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(identity.key_pem + identity.certificate_pem)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
        except OSError:  # a file system without hard links
            temporary.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def _protect(path: Path) -> None:
    if os.name == "posix" and path.stat().st_mode & 0o077:
        log.warning("%s could be read by other users; its mode is now 0600", path)
        path.chmod(0o600)
