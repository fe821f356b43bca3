"""Which devices belong to a mesh: a list of signed entries that all members share. Without I/O.

Every member may let a device in or shut it out. Each such decision is an entry, signed by who took
it. Entries only replace older ones of the same device, so copies on different devices
become equal in whatever order they meet. A device is a member if its entry says so, its time is not
over, and the device that signed the entry was not shut out. Who shuts a device out signs again for
those that it had let in; what it decides later counts nowhere, except where it was heard before
the news that it is out.

A device leaves by an entry that it signs for itself, its farewell. Those that it had let in stay:
nobody found fault with it. Who hears of it signs again for them, so that also members that did not
know them yet take them, though they listen to the one that left no more.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import msgpack  # type: ignore[import-untyped]
from cryptography import x509
from msgspec.structs import replace

from astra_mesh import limits
from astra_mesh.errors import PairingError, ProtocolError
from astra_mesh.mesh.identity import DeviceKey, device_certificate, device_id, verify
from astra_mesh.wire.codec import sanitise
from astra_mesh.wire.messages import DeviceId, Roster, RosterEntry

_WHAT: Final = b"astra-mesh roster 1"  # nothing else that a device signs begins so

Clock = Callable[[], float]


class RosterBook:
    """The roster of one device, which is its first member.

    Args:
        device: The key of this device.
        name: Of this device, for people.
        known: What was kept; None: a mesh of this device alone.
        clock: Seconds since 1970 (replaced in tests).
    """

    def __init__(
        self, device: DeviceKey, name: str, known: Roster | None = None, clock: Clock = time.time
    ) -> None:
        self._device, self._name, self._clock = device, name, clock
        self._mesh = secrets.token_bytes(limits.MESH_ID_BYTES)
        self._entries: dict[DeviceId, RosterEntry] = {}
        if known is not None:
            self._mesh = known.mesh
            self._entries = {device_id(entry.certificate): entry for entry in known.entries}
        if device.id not in self._entries:
            self._put(self._signed(device.certificate, name, 1))

    # --- what it says -----------------------------------------------------------------------------

    def message(self) -> Roster:
        """The whole roster, for the file and for other members."""
        return Roster(
            mesh=self._mesh, entries=[self._entries[key] for key in sorted(self._entries)]
        )

    def members(self) -> dict[DeviceId, RosterEntry]:
        """The entries that hold now, this device's own among them."""
        return {key: entry for key, entry in self._entries.items() if self.is_member(key)}

    def is_member(self, device: DeviceId) -> bool:
        """Whether a device belongs to the mesh now. This device itself always does."""
        if device == self._device.id:
            return True
        entry = self._entries.get(device)
        if entry is None or not entry.member or self._over(entry):
            return False
        signer = self._entries.get(entry.by)
        if signer is None:
            return False
        return signer.member or entry.by == self._device.id or _is_farewell(entry.by, signer)

    def may_decide(self, device: DeviceId) -> bool:
        """Whether a device may let others in: every member, but none for a limited time, nor this
        one while it leaves.
        """
        entry = self._entries.get(device)
        return entry is not None and entry.member and not entry.until and self.is_member(device)

    def knows(self, device: DeviceId) -> bool:
        """Whether it is or was in the mesh."""
        return device in self._entries

    @property
    def mesh(self) -> bytes:
        """The id of the mesh."""
        return self._mesh

    @property
    def own_name(self) -> str:
        """How this device is called in it."""
        return self._entries[self._device.id].name

    @property
    def counts_itself(self) -> bool:
        """False if another member shut this device out, or it leaves."""
        return self._entries[self._device.id].member

    @property
    def is_leaving(self) -> bool:
        """Whether this device said farewell, and did not :meth:`begin_anew` yet."""
        return _is_farewell(self._device.id, self._entries[self._device.id])

    @property
    def farewell(self) -> bytes:
        """The signature under it: another one each time that this device leaves."""
        return self._entries[self._device.id].signature if self.is_leaving else b""

    def is_heard_in(self, roster: Roster) -> bool:
        """Whether who sent a roster knows that this device leaves."""
        own = self._entries[self._device.id]
        return self.is_leaving and roster.mesh == self._mesh and own in roster.entries

    @property
    def alone(self) -> bool:
        """Whether no other device is a member."""
        return len(self.members()) == 1

    @property
    def ended(self) -> int:
        """When this device's time as a guest was over, seconds since 1970; 0: it goes on."""
        own = self._entries[self._device.id]
        return own.until if self._over(own) else 0

    def find(self, text: str) -> list[tuple[DeviceId, RosterEntry]]:
        """Other members with this name, or an id that begins so."""
        own = self._device.id
        others = [(key, entry) for key, entry in self.members().items() if key != own]
        named = [(key, entry) for key, entry in others if entry.name == text]
        return named or [
            (key, entry) for key, entry in others if text and key.startswith(text.lower())
        ]

    # --- decisions of this device -----------------------------------------------------------------

    def let_in(self, certificate: bytes, name: str, until: int = 0) -> None:
        """Make a device a member (again).

        Raises:
            PairingError: The certificate is none of a device, the roster is full, or this device
                may not decide.
        """
        self._check_stays()
        if not self.may_decide(self._device.id):
            raise PairingError(
                "this device is a member for a limited time only; a device that is one for good "
                "can let others in"
            )
        try:
            device_certificate(certificate)
        except ValueError as exc:
            raise PairingError(f"the other device has {sanitise(str(exc), 100)}") from None
        device = device_id(certificate)
        if device not in self._entries and len(self._entries) >= limits.ROSTER_ENTRIES:
            self._drop_void()
        if device not in self._entries and len(self._entries) >= limits.ROSTER_ENTRIES:
            raise PairingError(
                f"this mesh has seen {limits.ROSTER_ENTRIES} devices, which is all that it can "
                "remember; `astra-mesh unpair --leave` on this device begins a new one"
            )
        known = self._entries.get(device)
        # A member that comes again left: its farewell, of the next generation, may come later.
        step = 2 if known is not None and known.member else 1
        before = known.generation if known is not None else 0
        self._put(self._signed(certificate, name, before + step, until))

    def shut_out(self, device: DeviceId) -> None:
        """Make a device no member, and sign again for those that it let in."""
        vouched = self._let_in_by(device)
        self._put_out(device)
        self._vouch(vouched)

    def call_itself(self, name: str) -> bool:
        """Be called so from now on, if nobody else let this device in; whether that is news."""
        own = self._entries[self._device.id]
        if own.by != self._device.id or not own.member or own.name == _shown(name):
            return False
        self._put(self._signed(own.certificate, name, own.generation + 1, own.until))
        return True

    def say_farewell(self) -> bool:
        """Leave the mesh, for all who hear it; :meth:`begin_anew` follows, once they were told.
        False if there is nobody to tell, or that was said before.
        """
        if self.alone or self.is_leaving:
            return False
        self._put_out(self._device.id)
        return True

    def begin_anew(self) -> None:
        """Leave the mesh: be alone in a new one."""
        self._mesh = secrets.token_bytes(limits.MESH_ID_BYTES)
        self._entries.clear()
        self._put(self._signed(self._device.certificate, self._name, 1))

    def adopt(self, roster: Roster) -> None:
        """Take the roster of a device that was just paired with, and be in its mesh.

        Raises:
            PairingError: It is no valid roster with this device in it, or this device is leaving.
        """
        self._check_stays()
        entries = {device_id(entry.certificate): entry for entry in roster.entries}
        try:
            certificates = {key: device_certificate(e.certificate) for key, e in entries.items()}
        except ValueError as exc:
            raise PairingError(f"the other device sent a bad roster: {exc}") from None
        valid = all(_is_signed(roster.mesh, entry, certificates) for entry in entries.values())
        own = entries.get(self._device.id)
        if not valid or own is None or not own.member:
            raise PairingError("the other device sent a roster whose signatures do not hold")
        self._mesh, self._entries = roster.mesh, entries

    # --- news from others -------------------------------------------------------------------------

    def merge(self, roster: Roster, sender: DeviceId) -> bool:
        """Take what a member sent; whether anything changed.

        Raises:
            ProtocolError: An entry is forged or malformed.
        """
        if roster.mesh != self._mesh:
            raise ProtocolError("the roster of another mesh")
        entries = roster.entries
        if not self.may_decide(sender):  # it may leave
            entries = [entry for entry in entries if entry.by == sender and _is_own(entry)]
        certificates = {
            key: device_certificate(entry.certificate) for key, entry in self._entries.items()
        }
        news = self._news(entries, certificates)
        for entry in news.values():
            if not _is_signed(self._mesh, entry, certificates):
                raise ProtocolError(f"the entry of {entry.name} in the roster is not signed")
        changed = False
        # Who was shut out first: what it signed is then refused. Who leaves last: what it signed
        # counts. Who was let in may have signed others.
        pending = dict(sorted(news.items(), key=_turn))
        while taken := [key for key, entry in pending.items() if self._take(key, entry, news)]:
            changed = True
            for key in taken:
                del pending[key]
        if changed and self.may_decide(self._device.id):
            self._vouch_for_those_of_leavers()
        return changed

    def _take(
        self, device: DeviceId, entry: RosterEntry, news: Mapping[DeviceId, RosterEntry]
    ) -> bool:
        """Put an entry of ``news`` in, if who signed it may decide and there is room."""
        known = self._entries.get(device)
        jump = entry.generation - (known.generation if known is not None else 0)
        if jump > limits.ROSTER_JUMP or not self._fits(device, entry, news):
            return False
        if entry.by != device and not self.may_decide(entry.by):
            return False
        if known is None and len(self._entries) >= limits.ROSTER_ENTRIES:
            self._drop_void()
            if len(self._entries) >= limits.ROSTER_ENTRIES:
                return False
        self._put(entry)
        return True

    def _news(
        self, entries: Iterable[RosterEntry], certificates: dict[DeviceId, x509.Certificate]
    ) -> dict[DeviceId, RosterEntry]:
        """The entries that replace known ones; their certificates are added to the others."""
        news: dict[DeviceId, RosterEntry] = {}
        for entry in entries:
            key = device_id(entry.certificate)
            try:
                certificates.setdefault(key, device_certificate(entry.certificate))
            except ValueError as exc:
                raise ProtocolError(f"the roster holds {exc}") from None
            known = self._entries.get(key)
            if _rank(entry) > _rank(known) or (
                known is not None and self._void(key, known) and _succeeds(entry, known)
            ):
                news[key] = entry
        return news

    def _fits(
        self, device: DeviceId, entry: RosterEntry, news: Mapping[DeviceId, RosterEntry]
    ) -> bool:
        """A device signs for itself only to leave, or when who let it in is out. Only members
        leave: else whom a device let in that was shut out would count again.
        """
        if entry.by != device:
            return True
        known = self._entries.get(device)
        if not entry.member:
            return self.is_member(device) if known is not None else not self._let_in_by(device)
        if known is None or not known.member or known.until != entry.until:
            return False
        sponsor = news.get(known.by) or self._entries.get(known.by)
        return known.by == device or (sponsor is not None and not sponsor.member)

    # --- inside -----------------------------------------------------------------------------------

    def _check_stays(self) -> None:
        if self.is_leaving:
            raise PairingError("this device is leaving its mesh; try again in some seconds")

    def _let_in_by(self, device: DeviceId) -> list[DeviceId]:
        """The other members for which a device signed."""
        return [
            key
            for key, entry in self._entries.items()
            if entry.by == device and key != device and self.is_member(key)
        ]

    def _vouch(self, devices: Iterable[DeviceId]) -> None:
        """Sign for devices as they are."""
        for key in devices:
            entry = self._entries[key]
            renewed = entry.generation + 1
            self._put(self._signed(entry.certificate, entry.name, renewed, entry.until))

    def _vouch_for_those_of_leavers(self) -> None:
        gone = [key for key, entry in self._entries.items() if _is_farewell(key, entry)]
        for device in gone:
            self._vouch(self._let_in_by(device))

    def _put_out(self, device: DeviceId) -> None:
        entry = self._entries[device]
        renewed = entry.generation + 1
        self._put(self._signed(entry.certificate, entry.name, renewed, member=False))

    def _put(self, entry: RosterEntry) -> None:
        self._entries[device_id(entry.certificate)] = entry

    def _signed(
        self,
        certificate: bytes,
        name: str,
        generation: int,
        until: int = 0,
        member: bool = True,
    ) -> RosterEntry:
        entry = RosterEntry(
            certificate=certificate,
            name=_shown(name),
            generation=min(generation, limits.ROSTER_GENERATIONS),
            member=member,
            until=until,
            by=self._device.id,
            signature=b"",
        )
        return replace(entry, signature=self._device.sign(_signed_part(self._mesh, entry)))

    def _over(self, entry: RosterEntry) -> bool:
        return entry.until != 0 and entry.until <= self._clock()

    def _void(self, device: DeviceId, entry: RosterEntry) -> bool:
        """Whether an entry lets a device in, and who signed it is out."""
        return entry.member and not self._over(entry) and not self.is_member(device)

    def _drop_void(self) -> None:
        """Forget entries that say nothing any more: their time is over, or who let the device in
        is out itself, so that they would not be taken again."""
        void = [
            key
            for key, entry in self._entries.items()
            if key != self._device.id and (self._over(entry) or self._void(key, entry))
        ]
        for key in void:
            del self._entries[key]


def _shown(name: str) -> str:
    return sanitise(name, limits.NAME_CHARS) or "device"


def _is_own(entry: RosterEntry) -> bool:
    """Whether a device signed for itself that it is out."""
    return _is_farewell(device_id(entry.certificate), entry)


def _is_farewell(device: DeviceId, entry: RosterEntry) -> bool:
    return not entry.member and entry.by == device


def _turn(one: tuple[DeviceId, RosterEntry]) -> int:
    """When an entry of a roster is looked at."""
    device, entry = one
    return 1 if entry.member else 2 if _is_farewell(device, entry) else 0


def _rank(entry: RosterEntry | None) -> tuple[int, bool, bool, bytes]:
    """Which entry of a device holds: newer, else the one that says no, else that of another device
    than itself, which all take, else any, for all alike.
    """
    if entry is None:
        return 0, False, False, b""
    by_other = entry.by != device_id(entry.certificate)
    return (
        entry.generation,
        not entry.member,
        by_other,
        hashlib.sha256(entry.signature).digest(),
    )


def _succeeds(entry: RosterEntry, void: RosterEntry) -> bool:
    """Whether an entry may stand for one that counts nowhere: by another device, and no older, so
    that what was decided before that one does not come back."""
    return entry.by != void.by and entry.generation >= void.generation


def _signed_part(mesh: bytes, entry: RosterEntry) -> bytes:
    fields = (entry.name, entry.generation, entry.member, entry.until, entry.by)
    part: bytes = msgpack.packb([_WHAT, mesh, entry.certificate, *fields])
    return part


def _is_signed(
    mesh: bytes, entry: RosterEntry, certificates: Mapping[DeviceId, x509.Certificate]
) -> bool:
    signer = certificates.get(entry.by)
    return signer is not None and verify(signer, entry.signature, _signed_part(mesh, entry))
