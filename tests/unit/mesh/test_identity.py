"""The peer's certificate and its file."""

import hashlib
import os
import ssl
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from astra_mesh.errors import IdentityError
from astra_mesh.mesh.identity import DEVICE_FILE_NAME, FILE_NAME, DeviceKey, load_identity
from astra_mesh.mesh.trust import ROSTER_FILE, Trust

DEVICE = DeviceKey.new()


def test_the_id_is_the_hash_of_the_certificate() -> None:
    identity = DEVICE.issue()
    certificate = x509.load_pem_x509_certificate(identity.certificate_pem)
    der = certificate.public_bytes(serialization.Encoding.DER)
    assert identity.peer_id == hashlib.sha256(der).hexdigest()
    assert DEVICE.issue().peer_id != identity.peer_id


def test_the_key_is_not_shown() -> None:
    assert "PRIVATE" not in repr(DEVICE.issue())


def test_made_once_and_kept(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "state"
    identity = load_identity(folder, DEVICE)
    assert load_identity(folder, DEVICE) == identity
    assert [path.name for path in folder.iterdir()] == [FILE_NAME]
    assert stat.S_IMODE((folder / FILE_NAME).stat().st_mode) == 0o600


def test_tls_takes_the_file(tmp_path: Path) -> None:
    load_identity(tmp_path, DEVICE)
    ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(tmp_path / FILE_NAME)


def test_several_processes_at_once_get_the_same(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: load_identity(tmp_path, DEVICE).peer_id, range(16)))
    assert len(set(found)) == 1
    assert len(list(tmp_path.iterdir())) == 1


def damage(data: bytes) -> dict[str, bytes]:
    key, _, certificate = data.partition(b"-----BEGIN CERTIFICATE-----")
    certificate = b"-----BEGIN CERTIFICATE-----" + certificate
    return {
        "empty": b"",
        "half": data[: len(data) // 2],
        "garbage": os.urandom(900),
        "no certificate": key,
        "no key": certificate,
        "another's certificate": key + DEVICE.issue().certificate_pem,
        "too large": data + bytes(100_000),
    }


@pytest.mark.parametrize("kind", damage(b""))
def test_a_damaged_file(tmp_path: Path, kind: str) -> None:
    load_identity(tmp_path, DEVICE)
    path = tmp_path / FILE_NAME
    path.write_bytes(damage(path.read_bytes())[kind])
    with pytest.raises(IdentityError, match="is damaged") as caught:
        load_identity(tmp_path, DEVICE)
    assert str(path) in caught.value.message
    assert "delete the file" in caught.value.message


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(IdentityError, match="permissions"):
        load_identity(tmp_path / "file" / "state", DEVICE)


def test_a_file_that_others_could_read(tmp_path: Path) -> None:
    load_identity(tmp_path, DEVICE)
    (tmp_path / FILE_NAME).chmod(0o644)
    load_identity(tmp_path, DEVICE)
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    assert load_identity(tmp_path, DEVICE) == load_identity(tmp_path, DEVICE)
    assert len(list(tmp_path.iterdir())) == 1


def test_opening_the_trust_again_writes_nothing(tmp_path: Path) -> None:
    """A flash card is slow to write, and every client opens it."""
    Trust.open(tmp_path)
    before = (tmp_path / ROSTER_FILE).stat()
    again = Trust.open(tmp_path)
    after = (tmp_path / ROSTER_FILE).stat()
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)
    assert again.book.alone


def test_a_new_device_key_is_written_into_the_roster(tmp_path: Path) -> None:
    first = Trust.open(tmp_path)
    (tmp_path / DEVICE_FILE_NAME).unlink()
    second = Trust.open(tmp_path)
    assert second.device.id != first.device.id
    assert second.device.id in Trust.open(tmp_path).members()
    assert second.device.certificate in (tmp_path / ROSTER_FILE).read_bytes()
