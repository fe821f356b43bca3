"""Whom this device trusts: its key, its roster, and the TLS that follows from them.

All programs of one user on one machine share one folder, so they are one device: peers, clients and
the API of a laptop need no pairing among themselves. Calls that say so read files and block.
"""

from __future__ import annotations

import math
import os
import platform
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import platformdirs
from cryptography import x509

from astra_mesh import limits
from astra_mesh.errors import IdentityError, ProtocolError
from astra_mesh.mesh.files import alone, close_folder, replace_file
from astra_mesh.mesh.identity import (
    DeviceKey,
    Identity,
    is_issued_by,
    is_tab,
    load_device,
    peer_id,
    read_certificate,
)
from astra_mesh.mesh.roster import RosterBook
from astra_mesh.wire.codec import decode, encode, sanitise
from astra_mesh.wire.messages import DeviceId, PeerId, Roster, RosterEntry

ENVIRONMENT: Final = "ASTRA_MESH_TRUST"
ROSTER_FILE: Final = "roster"
_LOCK_FILE: Final = "lock"


@dataclass(frozen=True, slots=True)
class Known:
    """Who is at the other end of a link, as its certificate proves.

    Attributes:
        peer: Its id.
        device: Which device signed its certificate.
        via: Of a tab: the peer through which it comes, which is of that device.
        until: Of a tab: when its certificate ends, seconds since 1970.
    """

    peer: PeerId
    device: DeviceId
    via: PeerId | None = None
    until: float = math.inf


@dataclass(frozen=True)
class TlsPair:
    """What a peer listens and dials with, as long as the roster stays as it is."""

    server: ssl.SSLContext
    client: ssl.SSLContext
    version: int  # :attr:`Trust.version` that it was made for


def trust_folder() -> Path:
    """Where it is kept: $ASTRA_MESH_TRUST, else a folder in the user's state."""
    chosen = os.environ.get(ENVIRONMENT)
    return Path(chosen) if chosen else platformdirs.user_state_path("astra-mesh") / "trust"


class Trust:
    """What one device knows about devices. Made by :meth:`open`.

    Attributes:
        on_change: Called when the roster has changed, in the thread that read or changed it.
    """

    def __init__(self, folder: Path, device: DeviceKey, name: str = "") -> None:
        self.folder, self.device = folder, device
        self.on_change: Callable[[], object] = lambda: None
        self._given = sanitise(name, limits.NAME_CHARS)
        self._machine = sanitise(platform.node(), limits.NAME_CHARS) or "device"
        self.version = 0  # counts changes of the roster that this process has seen
        self._book = RosterBook(device, self._given or self._machine)
        self._stamp: tuple[int, int] | None = None
        self._busy = threading.Lock()  # the folder's lock keeps other processes out, not threads
        self._whose: dict[bytes, Known | None] = {}
        self._whose_version = 0

    @classmethod
    def open(cls, folder: Path | None = None, name: str = "") -> Trust:
        """The trust kept in ``folder``, begun at the first call. Blocks.

        Args:
            folder: None: that of this user.
            name: Of the peer that runs on this device; empty: as its mesh calls it, at first as the
                machine is called.

        Raises:
            IdentityError: Its files cannot be used.
        """
        folder = folder or trust_folder()
        close_folder(folder)
        trust = cls(folder, load_device(folder), name)
        trust.change(trust._is_unsaved)
        return trust

    def _is_unsaved(self, book: RosterBook) -> bool:
        """Whether the file says something else: writing it costs more than all else at a start."""
        path = self.folder / ROSTER_FILE
        return not path.exists() or path.read_bytes() != encode(book.message())

    # --- the roster -------------------------------------------------------------------------------

    @property
    def book(self) -> RosterBook:
        """The roster as last read. Change it by :meth:`change` only."""
        return self._book

    @property
    def name(self) -> str:
        """How this device is called where it pairs."""
        return self._given or self._book.own_name

    @name.setter
    def name(self, name: str) -> None:
        """As the peer that runs on it; empty: as its mesh calls it."""
        self._given = sanitise(name, limits.NAME_CHARS)

    def members(self) -> dict[DeviceId, RosterEntry]:
        """The devices of the mesh now."""
        return self._book.members()

    def change(self, decide: Callable[[RosterBook], bool]) -> bool:
        """Read the roster anew, let ``decide`` change it, keep it if that was so. Blocks.

        Returns what ``decide`` returned; its errors leave everything as it was.

        Raises:
            IdentityError: The files cannot be used.
        """
        with self._busy, self._locked() as path:
            book = self._read(path)
            changed = decide(book)
            if changed:
                replace_file(path, encode(book.message()))
            self._take(book, path)
        return changed

    def merge(self, roster: Roster, sender: DeviceId) -> bool:
        """Take the roster of a member; whether anything changed. Blocks.

        Raises:
            ProtocolError: It is forged or malformed.
        """

        def decide(book: RosterBook) -> bool:
            changed = book.merge(roster, sender)
            if changed and not book.counts_itself and not book.is_leaving:
                book.begin_anew()  # this device was shut out
            return changed

        return self.change(decide)

    def settle(self) -> bool:
        """If this device is leaving its mesh: forget that, told or not. Whether it was. Blocks."""

        def decide(book: RosterBook) -> bool:
            leaving = book.is_leaving
            if leaving:
                book.begin_anew()
            return leaving

        return self.change(decide)

    def refresh(self) -> bool:
        """Read the roster again if another process changed it; whether it did. Blocks.

        Raises:
            IdentityError: The files cannot be used.
        """
        try:
            if _stamp(self.folder / ROSTER_FILE) == self._stamp:
                return False
        except OSError:
            pass  # read() says what is wrong
        before = self.version
        self.change(lambda book: False)
        return self.version != before

    def _read(self, path: Path) -> RosterBook:
        try:
            message = decode(path.read_bytes()) if path.exists() else None
        except ProtocolError as exc:
            raise IdentityError(
                f"the roster of this mesh in {path} is damaged ({exc.message}). Restore it from a "
                "copy, or delete the file and pair again"
            ) from exc
        known = message if isinstance(message, Roster) else None
        return RosterBook(self.device, self._given or self._machine, known)

    def _take(self, book: RosterBook, path: Path) -> None:
        self._stamp = _stamp(path) if path.exists() else None
        if self.version == 0 or book.message() != self._book.message():
            self._book = book
            self.version += 1
            self.on_change()

    @contextmanager
    def _locked(self) -> Iterator[Path]:
        try:
            with alone(self.folder / _LOCK_FILE):
                yield self.folder / ROSTER_FILE
        except OSError as exc:
            raise IdentityError(
                f"the folder {self.folder}, which says whom this device trusts, cannot be used: "
                f"{exc.strerror or exc}. Check its permissions, or choose another folder with "
                f"{ENVIRONMENT}"
            ) from exc

    # --- who is who -------------------------------------------------------------------------------

    def whose(self, certificate: bytes | None) -> Known | None:
        """Who has this certificate (DER); None if no member of the mesh does, or it is a tab's."""
        if certificate is None or len(certificate) > limits.CERTIFICATE_BYTES:
            return None
        if self._whose_version != self.version or len(self._whose) >= limits.KNOWN_CERTIFICATES:
            self._whose_version = self.version
            self._whose.clear()
        if certificate not in self._whose:
            self._whose[certificate] = self._search(certificate)
        known = self._whose[certificate]
        return known if known is not None and self._book.is_member(known.device) else None

    def whose_connection(self, secure: ssl.SSLObject | None) -> Known | None:
        """Who is at the other end of a TLS connection; None if no member of the mesh."""
        return self.whose(secure.getpeercert(binary_form=True)) if secure is not None else None

    def whose_tab(
        self, certificate: bytes, host: Known, clock: Callable[[], float] = time.time
    ) -> Known:
        """Which tab has this certificate (DER), given the peer that relays for it.

        Raises:
            ProtocolError: It is no certificate of a tab, or the host's device did not sign it, or
                is no member, or its time is over.
        """
        entry = self._book.members().get(host.device)
        try:
            leaf = read_certificate(certificate)
        except ValueError as error:
            raise ProtocolError(str(error)) from None
        if entry is None or not is_tab(leaf):
            raise ProtocolError("a certificate that is none of a tab of this mesh")
        issuer = x509.load_der_x509_certificate(entry.certificate)
        if leaf.issuer != issuer.subject or not is_issued_by(leaf, issuer):
            raise ProtocolError("a tab with a certificate of another device than it comes through")
        until = leaf.not_valid_after_utc.timestamp()
        if until <= clock():
            raise ProtocolError(
                "a tab whose certificate has ended: it joins again by itself, unless the clocks of "
                "the two devices differ by hours"
            )
        return Known(peer_id(certificate), host.device, host.peer, until)

    def _search(self, certificate: bytes) -> Known | None:
        try:
            leaf = read_certificate(certificate)
        except ValueError:
            return None
        if is_tab(leaf):
            return None  # it counts in the handshake of a sealed channel only
        for device, entry in self._book.members().items():
            issuer = x509.load_der_x509_certificate(entry.certificate)
            if leaf.issuer == issuer.subject and is_issued_by(leaf, issuer):
                return Known(peer_id(certificate), device)
        return None

    # --- TLS --------------------------------------------------------------------------------------

    def tls(self, identity: Identity) -> TlsPair:
        """For an identity of this device: TLS 1.3 that knows all members. Blocks."""
        version = self.version
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # Who pairs has no certificate that counts here, and shows none.
        server.verify_mode = ssl.CERT_OPTIONAL
        server.num_tickets = 0  # a resumed session would not be checked anew
        self._equip(server, identity)
        return TlsPair(server, self.client_tls(identity), version)

    def client_tls(self, identity: Identity) -> ssl.SSLContext:
        """The half of :meth:`tls` for who only dials. Blocks."""
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False  # peers are known by their ids
        client.verify_mode = ssl.CERT_REQUIRED
        self._equip(client, identity)
        return client

    def _equip(self, context: ssl.SSLContext, identity: Identity) -> None:
        roots = b"".join(entry.certificate for entry in self._book.members().values())
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(cadata=roots)
        _load_chain(context, identity, self.folder)


def pairing_tls() -> ssl.SSLContext:
    """For dialling a device that is not known yet: the exchange on top proves who it is."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def _load_chain(context: ssl.SSLContext, identity: Identity, folder: Path) -> None:
    """The ssl module reads keys from files only."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".key.") as file:  # mode 0600
        file.write(identity.key_pem + identity.certificate_pem)
        file.flush()
        context.load_cert_chain(file.name)


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_ino
