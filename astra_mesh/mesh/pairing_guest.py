"""The side of a pairing that was given a code or join key: dials, proves, joins or takes in."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from astra_mesh import limits
from astra_mesh.errors import MeshError, PairingError, ProtocolError
from astra_mesh.mesh.codes import Secret
from astra_mesh.mesh.connect import Address, no_tls
from astra_mesh.mesh.doorman import abandon
from astra_mesh.mesh.identity import device_id
from astra_mesh.mesh.pairing import (
    VERSION,
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
from astra_mesh.mesh.pairing_host import NewMember, join, keep, own_name, sign_in
from astra_mesh.mesh.trust import Trust, pairing_tls
from astra_mesh.naming import Names
from astra_mesh.wire.codec import sanitise
from astra_mesh.wire.messages import DeviceId


@dataclass(frozen=True)
class Paired:
    """What came of it.

    Attributes:
        device: The id of the other device.
        address: Where it was reached.
        name: Of the other device.
        joined: Whether this device joined the other one's mesh (else the other joined this one's).
        members: Names of all devices of the mesh, with digits of the id where two have the same.
    """

    device: DeviceId
    address: Address
    name: str
    joined: bool
    members: tuple[str, ...]


async def pair_any(trust: Trust, secret: Secret, addresses: Sequence[Address]) -> Paired:
    """Pair with whoever knows the secret among these addresses.

    Raises:
        PairingError: Nobody does; the text is the most telling of theirs.
    """
    errors: list[MeshError] = []
    for address in addresses:
        try:
            return await pair_at(trust, secret, address)
        except MeshError as error:
            errors.append(error)
    raise most_telling(errors) or PairingError("no device was named to pair with")


def most_telling(errors: Sequence[MeshError]) -> MeshError | None:
    """Of what several devices said, that of the one that was meant."""

    def rank(error: MeshError) -> int:
        if not isinstance(error, Denied):
            return 1
        return {"same-device": 0, "window": 2}.get(error.why, 3)

    return max(errors, key=rank, default=None)


async def pair_at(trust: Trust, secret: Secret, address: Address) -> Paired:
    """Pair with the device whose peer listens there. Cancelling it leaves nothing open.

    Raises:
        PairingError: Nobody answers, or the answer is no.
    """
    host, port = address
    try:
        async with asyncio.timeout(limits.PAIR_EXCHANGE_S):
            reader, writer = await asyncio.open_connection(
                host, port, ssl=pairing_tls(), server_hostname="astra-mesh"
            )
            try:
                return await _pair(trust, secret, address, reader, writer)
            finally:
                abandon(writer)
    except ProtocolError as error:
        raise PairingError(f"{host}, port {port}, sent {error.message}") from None
    except TimeoutError:
        why = f"no answer within {limits.PAIR_EXCHANGE_S:g} s"
    except EOFError:
        why = "it ended the conversation"
    except OSError as error:
        why = no_tls(error) or error.strerror or str(error)
    raise PairingError(f"cannot pair with what listens at {host}, port {port}: {why}")


async def _pair(
    trust: Trust,
    secret: Secret,
    address: Address,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> Paired:
    channel = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    exchange = Exchange(trust.device, secret.password, guest=True, channel=channel)
    own = await asyncio.to_thread(exchange.begin)
    await send(writer, Knock(VERSION, secret.id, trust.device.certificate, own_name(), own))
    reply = await receive(reader, Reply)
    await asyncio.to_thread(exchange.finish, reply.spake, reply.certificate, secret.id)
    await asyncio.to_thread(trust.refresh)
    mac, signature = exchange.prove()
    await send(writer, Proof(mac, signature, trust.book.mesh, trust.book.alone))
    proof = await receive(reader, Proof, large=True)
    if not exchange.is_proved(proof):
        raise PairingError(
            "the device that answered does not know the code: it may be another one than you mean"
        )
    name = sanitise(reply.name, limits.NAME_CHARS) or "device"
    if proof.roster and not trust.book.alone and proof.mesh != trust.book.mesh:
        raise Denied("two-meshes")
    if proof.roster:
        await join(trust, unpack_roster(proof.roster), reader, writer)
    else:
        await _take_in(trust, NewMember(reply.certificate, name), reader, writer)
    called = {str(key): entry.name for key, entry in trust.members().items()}
    members = tuple(map(Names(called), called))
    device = device_id(reply.certificate)
    return Paired(device, address, name, bool(proof.roster), members)


async def _take_in(
    trust: Trust, new: NewMember, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Have the host in this mesh, once it says that it has the roster; then say that it is kept."""
    roster = await asyncio.to_thread(sign_in, trust, new)
    await send(writer, Welcome(pack_roster(roster)))
    await receive(reader, Welcome)
    await asyncio.to_thread(keep, trust, new, roster)
    await send(writer, Welcome())
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(limits.CLOSE_TIMEOUT_S):
            await reader.read(1)  # until the host ends it: closing sooner could lose that word
