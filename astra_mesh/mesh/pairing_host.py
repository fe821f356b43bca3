"""The side of a pairing that has a window or a join key open: what a running peer answers."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from astra_mesh import limits
from astra_mesh.errors import MeshError, PairingError
from astra_mesh.mesh.connect import over
from astra_mesh.mesh.identity import Identity, device_id
from astra_mesh.mesh.invitations import Invitation, Invitations
from astra_mesh.mesh.pairing import (
    VERSION,
    Closed,
    Denied,
    Exchange,
    Knock,
    Proof,
    Reply,
    Welcome,
    pack_roster,
    receive,
    send,
    unpack_roster,
)
from astra_mesh.mesh.roster import RosterBook
from astra_mesh.mesh.trust import Trust
from astra_mesh.wire.codec import sanitise
from astra_mesh.wire.messages import DeviceId, Roster

log = logging.getLogger(__name__)

_LIMIT: Final = (
    "the other device is in a mesh already, so this one would have joined that, and for good: "
    "--for limits who is let in. Nothing was changed. Show the code on the other device "
    "(astra-mesh pair --for TIME), and use it here"
)
# Sentences, not words: peers of older versions show them too.
_TRIES: Final = (
    "three wrong codes were given, so the window is closed: run `astra-mesh pair` again on the "
    "device that showed the code"
)
_LAST: Final = (
    "the code is wrong, and the third wrong one, so the window is closed: run `astra-mesh pair` "
    "again on the device that showed the code"
)
LATE: Final = (
    "the time of the code was over before the devices were paired: run `astra-mesh pair` again on "
    "the device that showed it"
)


class PairingHost:
    """Answers those who want to pair with this device.

    Args:
        trust: Of the device.
        identity: With which the TLS connections are served.
    """

    def __init__(self, trust: Trust, identity: Identity) -> None:
        self._trust = trust
        certificate = x509.load_pem_x509_certificate(identity.certificate_pem)
        self._channel = certificate.public_bytes(Encoding.DER)
        self._invitations = Invitations(trust.folder)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One pairing, from the first message to the last; says no where it must.

        Raises:
            EOFError, OSError: The other side is gone.
        """
        try:
            await self._answer(reader, writer)
        except Denied as error:
            if error.heard:  # guests say no such thing; and what strangers say is not repeated
                raise EOFError("the guest ended the pairing") from None
            await send(writer, Closed(error.why))
        except MeshError as error:
            log.info("a pairing failed: %s", error.message)
            await send(writer, Closed(error.message))

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        knock = await receive(reader, Knock)
        if knock.version != VERSION:
            raise Denied(f"this device pairs by version {VERSION}, the other by {knock.version}")
        if knock.certificate == self._trust.device.certificate:
            raise Denied("same-device")
        invitation = await asyncio.to_thread(self._invitations.try_one, knock.invitation)
        if invitation is None:
            window = await asyncio.to_thread(self._invitations.window, knock.invitation)
            raise Denied("window" if window is None or not window.guessed_out else _TRIES)
        try:
            await self._judge(reader, writer, knock, invitation)
        finally:
            await asyncio.to_thread(self._invitations.judged, invitation)

    async def _judge(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        knock: Knock,
        invitation: Invitation,
    ) -> None:
        """Whether the other side knows the secret; then pair."""
        device = self._trust.device
        exchange = Exchange(device, invitation.password, guest=False, channel=self._channel)

        def compute() -> bytes:
            own = exchange.begin()
            exchange.finish(knock.spake, knock.certificate, knock.invitation)
            return own

        own = await asyncio.to_thread(compute)
        await send(writer, Reply(device.certificate, self._trust.name, own))
        proof = await receive(reader, Proof)
        if not exchange.is_proved(proof):
            log.warning("somebody gave a wrong pairing code (%s)", sanitise(knock.name, 64))
            last = await asyncio.to_thread(self._invitations.was_last, invitation)
            raise Denied(_LAST if last else "wrong")
        # Nobody learns more by that than whoever knows the code: only its proof gets so far.
        await asyncio.to_thread(self._invitations.was_right, invitation)
        await self._agree(reader, writer, exchange, knock, proof, invitation)

    async def _agree(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        exchange: Exchange,
        knock: Knock,
        theirs: Proof,
        invitation: Invitation,
    ) -> None:
        """The other side is who it says. Who is alone joins the mesh of the other."""
        await asyncio.to_thread(self._trust.refresh)
        book = self._trust.book
        joins = not theirs.alone and book.alone and theirs.mesh != book.mesh
        if not (theirs.alone or joins or theirs.mesh == book.mesh):
            raise Denied("two-meshes")
        if joins and invitation.member_s:
            await asyncio.to_thread(self._invitations.refuse, invitation, _LIMIT)
            raise Denied("limit")
        name = sanitise(knock.name, limits.NAME_CHARS) or "device"
        if not await asyncio.to_thread(self._invitations.enter, invitation):
            raise Denied(LATE if self._invitations.is_over(invitation) else "window")
        new = NewMember(knock.certificate, name, _until(invitation))
        try:
            if joins:
                await self._join(reader, writer, exchange)
            else:
                await self._take_in(reader, writer, exchange, new)
        except BaseException:
            await asyncio.to_thread(self._invitations.give_back, invitation)
            raise
        await asyncio.to_thread(self._invitations.came_in, invitation, name, new.device)
        log.info("paired with %s", name)
        if not joins:
            await send(writer, Welcome())

    async def _join(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, exchange: Exchange
    ) -> None:
        """Be in the mesh of the other side."""
        book, (mac, signature) = self._trust.book, exchange.prove()
        await send(writer, Proof(mac, signature, book.mesh, book.alone))
        welcome = await receive(reader, Welcome, large=True)
        await join(self._trust, unpack_roster(welcome.roster), reader, writer)

    async def _take_in(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        exchange: Exchange,
        new: NewMember,
    ) -> None:
        """Have the other side in this mesh, once it says that it has the roster."""
        await asyncio.to_thread(call_itself, self._trust)
        roster = await asyncio.to_thread(sign_in, self._trust, new)
        book, (mac, signature) = self._trust.book, exchange.prove()
        await send(writer, Proof(mac, signature, book.mesh, book.alone, pack_roster(roster)))
        await receive(reader, Welcome)
        await asyncio.to_thread(keep, self._trust, new, roster)


# --- what both sides do with a roster -------------------------------------------------------------


@dataclass(frozen=True)
class NewMember:
    """A device that is let in."""

    certificate: bytes
    name: str
    until: int = 0  # seconds since 1970; 0: for good

    @property
    def device(self) -> DeviceId:
        """Its id."""
        return device_id(self.certificate)


def _until(invitation: Invitation) -> int:
    return int(time.time()) + invitation.member_s if invitation.member_s else 0


def call_itself(trust: Trust) -> None:
    """The roster calls this device as its peer is called now, where nobody else let it in. Blocks.
    The mesh of a device that is alone begins with its entry, which may be older than the name.
    """
    trust.change(lambda book: book.call_itself(trust.name))


def sign_in(trust: Trust, new: NewMember) -> Roster:
    """The roster with a device that is not kept yet: it may vanish before it has it. Blocks."""
    trust.refresh()
    book = RosterBook(trust.device, trust.name, trust.book.message())
    book.let_in(new.certificate, new.name, new.until)
    return book.message()


def keep(trust: Trust, new: NewMember, roster: Roster) -> None:
    """Make a device a member, as the roster says that was given to it. Blocks.

    Raises:
        PairingError: This device went into another mesh meanwhile.
    """

    def decide(book: RosterBook) -> bool:
        if book.mesh != roster.mesh:
            raise PairingError("a device changed its mesh during the pairing; try again")
        book.merge(roster, trust.device.id)
        if not book.is_member(new.device):
            book.let_in(new.certificate, new.name, new.until)
        return True

    trust.change(decide)


async def join(
    trust: Trust, roster: Roster, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Be in the mesh of the other side, once that has kept it too; else all is as it was."""
    before = trust.book.message()
    await asyncio.to_thread(adopt, trust, roster)
    try:
        await send(writer, Welcome())
        await receive(reader, Welcome)
    except BaseException:
        await asyncio.to_thread(adopt, trust, before)
        raise


def adopt(trust: Trust, roster: Roster) -> None:
    """Take a roster instead of the own one. Blocks."""

    def decide(book: RosterBook) -> bool:
        book.adopt(roster)
        return True

    trust.change(decide)


def check_may_let_in(trust: Trust) -> None:
    """Before a code is shown.

    Raises:
        PairingError: This device lets nobody in.
    """
    if trust.book.ended:
        raise PairingError(over(trust.book.ended))
    if not trust.book.may_decide(trust.device.id):
        raise PairingError(
            "this device is a member for a limited time only, so it lets nobody in. Show the code "
            "on a device that is one for good; or leave the mesh: astra-mesh unpair --leave"
        )


def check_may_shut_out(book: RosterBook, device: DeviceId) -> None:
    """Before another device is shut out by this one.

    Raises:
        PairingError: Nobody would follow.
    """
    if not book.may_decide(device):
        raise PairingError(
            "this device is a member for a limited time only, so the others would not follow: it "
            "shuts nobody out. Do it on a device that is a member for good; or leave the mesh: "
            "astra-mesh unpair --leave"
        )
