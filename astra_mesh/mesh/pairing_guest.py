"""The side of a pairing that was given a code or join key: dials, proves, joins or takes in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from astra_mesh import limits
from astra_mesh.errors import MeshError, PairingError, ProtocolError
from astra_mesh.mesh.codes import Secret
from astra_mesh.mesh.connect import TLS_NAME, Address, first_of, no_tls, resolved
from astra_mesh.mesh.doorman import abandon
from astra_mesh.mesh.identity import (
    device_certificate,
    device_id,
    is_issued_by,
    read_certificate,
)
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
from astra_mesh.mesh.pairing_host import LATE, NewMember, call_itself, join, keep, sign_in
from astra_mesh.mesh.trust import Trust, pairing_tls
from astra_mesh.naming import device_name, labelled
from astra_mesh.wire.codec import sanitise
from astra_mesh.wire.messages import DeviceId

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]

_PROVEN: Final = {"two-meshes", "limit", LATE}  # what only who knows the code is told


@dataclass(frozen=True)
class Paired:
    """What came of it.

    Attributes:
        device: The id of the other device.
        address: Where it was reached.
        name: Of the other device.
        joined: Whether this device joined the other one's mesh (else the other joined this one's).
        members: Names of all devices of the mesh, with the first digits of their ids.
    """

    device: DeviceId
    address: Address
    name: str
    joined: bool
    members: tuple[str, ...]


async def pair_any(trust: Trust, secret: Secret, addresses: Sequence[Address]) -> Paired:
    """Pair with whoever knows the secret among these addresses, which are tried side by side.

    Raises:
        PairingError: Nobody does; the text is the most telling of theirs.
    """

    async def each() -> AsyncGenerator[list[Address], None]:
        for address in addresses:
            yield [address]

    paired = await pair_first(trust, secret, each())
    if paired is None:
        raise PairingError(
            "only this device itself answers at the addresses that were given: give the other "
            "device's"
        )
    return paired


async def pair_first(
    trust: Trust, secret: Secret, peers: AsyncGenerator[list[Address], None]
) -> Paired | None:
    """Pair with the first of these peers that knows the secret; None if there is no peer but those
    of this device.

    :data:`limits.PAIR_DIALS` are tried at once. Cancelling it leaves nothing open.

    Args:
        trust: Of this device.
        secret: That one of them showed.
        peers: The addresses of each; closed here.

    Raises:
        PairingError: None of them does; the text is the most telling of theirs.
    """
    won: list[Paired] = []
    errors: list[MeshError] = []
    attempts, room, decided = Attempts(), asyncio.Semaphore(limits.PAIR_DIALS), asyncio.Event()

    async def attempt(addresses: list[Address]) -> None:
        try:
            won.append(await attempts.pair(trust, secret, addresses))
            decided.set()
        except MeshError as error:
            errors.append(error)
        finally:
            room.release()

    async def all_of_them() -> None:
        async with aclosing(peers), asyncio.TaskGroup() as group:
            async for addresses in peers:
                await room.acquire()
                group.create_task(attempt(addresses))

    async with asyncio.TaskGroup() as group:
        task = group.create_task(all_of_them())
        task.add_done_callback(lambda _: decided.set())
        await decided.wait()
        task.cancel()
    others = [error for error in errors if not _is_own(error)]
    if not won and others:
        raise most_telling(others)
    return won[0] if won else None


def most_telling(errors: Sequence[MeshError]) -> MeshError:
    """Of what several devices said, that of the one that was meant."""

    def rank(error: MeshError) -> int:
        if not isinstance(error, Denied):
            return 1
        if error.why in _PROVEN and error.by:
            return 4
        return {"same-device": 0, "window": 2}.get(error.why, 3)

    return max(errors, key=rank)


def _is_own(error: MeshError) -> bool:
    return isinstance(error, Denied) and error.why == "same-device"


async def pair_at(trust: Trust, secret: Secret, address: Address) -> Paired:
    """Pair with the device whose peer listens there. Cancelling it leaves nothing open.

    Raises:
        PairingError: Nobody answers, or the answer is no.
    """
    return await Attempts().pair(trust, secret, [address])


class Attempts:
    """The tries of one search. A device may have several peers and addresses, but three tries: it
    is asked by one of them at a time, and no more once it said that the code is wrong.
    """

    def __init__(self) -> None:
        self._turns: dict[bytes, asyncio.Lock] = {}  # by the name of who issued a certificate
        self._denied: dict[bytes, str] = {}  # by the certificate of a peer
        self._wrong: list[bytes] = []  # certificates of devices that said so

    async def pair(self, trust: Trust, secret: Secret, addresses: Sequence[Address]) -> Paired:
        """As :func:`pair_at`, of a peer with several addresses. One may lead elsewhere, even to
        this device (bridges of containers): the others are tried too if one says no.
        """
        rest, errors = list(addresses), list[MeshError]()
        while rest:
            try:
                connection, address = await first_of(rest, _connect, _drop)
            except MeshError as error:
                errors.append(error)
                break
            rest.remove(address)
            try:
                return await self._ask(trust, secret, address, *connection)
            except MeshError as error:
                errors.append(error)
            finally:
                abandon(connection[1])
        raise most_telling(errors)

    async def _ask(
        self,
        trust: Trust,
        secret: Secret,
        address: Address,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> Paired:
        leaf = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        async with self._turns.setdefault(_issuer(leaf), asyncio.Lock()):
            if any(_issued(device, leaf) for device in self._wrong):
                raise Denied("wrong")
            if leaf in self._denied:
                raise Denied(self._denied[leaf], key=bool(secret.id))
            try:
                with _naming(address, limits.PAIR_EXCHANGE_S):
                    async with asyncio.timeout(limits.PAIR_EXCHANGE_S):
                        return await _pair(trust, secret, address, reader, writer)
            except Denied as error:
                self._denied[leaf] = error.why
                # Of its own peers only: else anybody could say so in the name of another device.
                if error.why == "wrong" and error.by and _issued(error.by, leaf):
                    self._wrong.append(error.by)
                if secret.id and error.why == "window":
                    raise Denied("window", key=True) from None
                raise


async def _connect(address: Address) -> Connection:
    """Once more where a connection is ended at once, as by a peer at which many knock."""
    with _naming(address, limits.HANDSHAKE_S):
        for pause_s in limits.PAIR_AGAIN_S:
            with suppress(ConnectionResetError, ConnectionAbortedError):
                return await _connect_once(address)
            await asyncio.sleep(pause_s)
        return await _connect_once(address)


async def _connect_once(address: Address) -> Connection:
    async with asyncio.timeout(limits.HANDSHAKE_S):
        host, port = await resolved(address)
        return await asyncio.open_connection(
            host, port, ssl=pairing_tls(), server_hostname=TLS_NAME
        )


async def _drop(connection: Connection) -> None:
    abandon(connection[1])


def _issuer(leaf: bytes) -> bytes:
    """Who says to have issued a certificate; of a strange one, itself."""
    try:
        return read_certificate(leaf).issuer.public_bytes()
    except ValueError:
        return leaf


def _issued(device: bytes, leaf: bytes) -> bool:
    """Whether a device signed a certificate."""
    try:
        return is_issued_by(read_certificate(leaf), device_certificate(device))
    except ValueError:
        return False


@contextmanager
def _naming(address: Address, patience_s: float) -> Iterator[None]:
    """Failures become a PairingError that says where."""
    host, port = address
    try:
        yield
        return
    except ProtocolError as error:
        raise PairingError(f"{host}, port {port}, sent {error.message}") from None
    except TimeoutError:
        why = f"no answer within {patience_s:g} s"
    except EOFError:
        why = "it ended the conversation"
    except OSError as error:
        why = no_tls(error) or error.strerror or str(error) or "it ended the connection at once"
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
    await send(writer, Knock(VERSION, secret.id, trust.device.certificate, trust.name, own))
    reply = await receive(reader, Reply)
    await asyncio.to_thread(exchange.finish, reply.spake, reply.certificate, secret.id)
    await asyncio.to_thread(trust.refresh)
    mac, signature = exchange.prove()
    await send(writer, Proof(mac, signature, trust.book.mesh, trust.book.alone))
    try:
        proof = await receive(reader, Proof, large=True)
    except Denied as error:
        error.by = reply.certificate
        raise
    if not exchange.is_proved(proof):
        raise PairingError(
            "the device that answered does not know the code: it may be another one than you mean"
        )
    name = sanitise(reply.name, limits.NAME_CHARS) or "device"
    if proof.roster and not trust.book.alone and proof.mesh != trust.book.mesh:
        denied = Denied("two-meshes")
        denied.by = reply.certificate
        raise denied
    if proof.roster:
        await join(trust, unpack_roster(proof.roster), reader, writer)
    else:
        await _take_in(trust, NewMember(reply.certificate, name), reader, writer)
    device = device_id(reply.certificate)
    now = {trust.device.id: trust.name, device: name}
    members = tuple(
        labelled(device_name(entry.name, [now.get(key, "")]), key)
        for key, entry in trust.members().items()
    )
    return Paired(device, address, name, bool(proof.roster), members)


async def _take_in(
    trust: Trust, new: NewMember, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Have the host in this mesh, once it says that it has the roster; then say that it is kept."""
    await asyncio.to_thread(call_itself, trust)
    roster = await asyncio.to_thread(sign_in, trust, new)
    await send(writer, Welcome(pack_roster(roster)))
    await receive(reader, Welcome)
    await asyncio.to_thread(keep, trust, new, roster)
    await send(writer, Welcome())
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(limits.CLOSE_TIMEOUT_S):
            await reader.read(1)  # until the host ends it: closing sooner could lose that word
