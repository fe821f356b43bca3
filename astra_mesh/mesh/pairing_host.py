"""The side of a pairing that has a window or a join key open: what a running peer answers."""

from __future__ import annotations

import asyncio
import logging
import platform
import time

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from astra_mesh import limits
from astra_mesh.errors import MeshError
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

log = logging.getLogger(__name__)


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
            raise Denied("window")
        device = self._trust.device
        exchange = Exchange(device, invitation.password, guest=False, channel=self._channel)

        def compute() -> bytes:
            own = exchange.begin()
            exchange.finish(knock.spake, knock.certificate, knock.invitation)
            return own

        own = await asyncio.to_thread(compute)
        await send(writer, Reply(device.certificate, own_name(), own))
        proof = await receive(reader, Proof)
        if not exchange.is_proved(proof):
            log.warning("somebody gave a wrong pairing code (%s)", sanitise(knock.name, 64))
            raise Denied("wrong")
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
        name = sanitise(knock.name, limits.NAME_CHARS) or "device"
        device = device_id(knock.certificate)
        if not await asyncio.to_thread(self._invitations.came_in, invitation.id, name, device):
            raise Denied("window")
        roster = b""
        if not joins:
            roster = await asyncio.to_thread(self._let_in, knock, name, invitation.member_s)
        mac, signature = exchange.prove()
        await send(writer, Proof(mac, signature, book.mesh, book.alone, roster))
        welcome = await receive(reader, Welcome, large=True)
        if joins:
            given = unpack_roster(welcome.roster)
            await asyncio.to_thread(adopt, self._trust, given)
            await send(writer, Welcome())
        log.info("paired with %s", name)

    def _let_in(self, knock: Knock, name: str, member_s: int) -> bytes:
        until = int(time.time()) + member_s if member_s else 0
        let_in(self._trust, knock.certificate, name, until)
        return pack_roster(self._trust.book.message())


def let_in(trust: Trust, certificate: bytes, name: str, until: int = 0) -> None:
    """Make a device a member, and keep it."""

    def decide(book: RosterBook) -> bool:
        book.let_in(certificate, name, until)
        return True

    trust.change(decide)


def adopt(trust: Trust, roster: object) -> None:
    """Join a mesh, and keep it."""

    def decide(book: RosterBook) -> bool:
        book.adopt(roster)  # type: ignore[arg-type]
        return True

    trust.change(decide)


def own_name() -> str:
    """Of this device, for people."""
    return sanitise(platform.node(), limits.NAME_CHARS) or "device"
