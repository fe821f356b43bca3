"""How two devices that know one secret come to trust each other: SPAKE2 over TLS, in four messages.

The *guest* dials and goes first; the *host* has the window or join key open. The secret never
crosses the wire, and each run tests one guess. What both sides prove to each other covers both
devices' certificates and the certificate of the TLS connection, so nobody can stand in between.
This module holds what is said and proved; :mod:`.pairing_host` and :mod:`.pairing_guest` say it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import struct
from typing import Final, TypeVar

import msgspec
from spake2 import SPAKE2_A, SPAKE2_B  # type: ignore[import-untyped]

from astra_mesh import limits
from astra_mesh.errors import PairingError, ProtocolError
from astra_mesh.mesh.identity import DeviceKey, device_certificate, verify
from astra_mesh.wire.codec import decode, encode, sanitise
from astra_mesh.wire.messages import Roster

VERSION: Final = 1
_WHAT: Final = b"astra-mesh pairing 1"
_SMALL: Final = 4 * limits.KIB  # messages before both sides are sure of each other
_SPAKE_BYTES: Final = 33
_LENGTH: Final = struct.Struct(">I")

T = TypeVar("T", bound=msgspec.Struct)


class Knock(msgspec.Struct, tag="knock"):
    """Guest: who wants in, by which invitation."""

    version: int
    invitation: bytes  # id of a join key; empty for a code
    certificate: bytes
    name: str
    spake: bytes


class Reply(msgspec.Struct, tag="reply"):
    """Host: who answers."""

    certificate: bytes
    name: str
    spake: bytes


class Proof(msgspec.Struct, tag="proof"):
    """Guest, then host: that the secret is known and the certificate's key is held."""

    mac: bytes
    signature: bytes
    mesh: bytes  # which mesh this side is in
    alone: bool  # and whether it is the only device there
    roster: bytes = b""  # a frame with a Roster: the other side is in it, if it says Welcome


class Closed(msgspec.Struct, tag="closed"):
    """Host: no."""

    why: str  # "window", "same-device", "wrong", "two-meshes", "limit", or a sentence


class Welcome(msgspec.Struct, tag="welcome"):
    """From who is joined: the roster (of a guest), and in the end that the other side is kept. From
    who joins: that it has the roster.
    """

    roster: bytes = b""


Message = Knock | Reply | Proof | Closed | Welcome


class Exchange:
    """The secret arithmetic of one side. It blocks for some 10 ms, on a slow board 100 ms.

    Args:
        device: Of this side.
        password: The secret.
        guest: Which side this is.
        channel: The certificate (DER) with which the host's peer serves the TLS connection.
    """

    def __init__(self, device: DeviceKey, password: bytes, guest: bool, channel: bytes) -> None:
        self._device, self._password = device, password
        self._guest, self._channel = guest, channel
        self._key = self._transcript = b""

    def begin(self) -> bytes:
        """The message of SPAKE2. Its identities go into the proofs instead of its own fields."""
        kind = SPAKE2_A if self._guest else SPAKE2_B
        self._spake = kind(self._password)
        own: bytes = self._spake.start()
        self._own = own
        return own

    def finish(self, other: bytes, certificate: bytes, invitation: bytes) -> None:
        """Take the other side's message.

        Raises:
            ProtocolError: It is none.
        """
        try:
            if len(other) != _SPAKE_BYTES:
                raise ValueError
            self._certificate = device_certificate(certificate)
            key: bytes = self._spake.finish(other)
        except Exception as exc:  # the library asserts as well as raises
            raise ProtocolError("a pairing message that is malformed") from exc
        ours, theirs = (self._device.certificate, self._own), (certificate, other)
        parts = (*ours, *theirs) if self._guest else (*theirs, *ours)
        digest = hashlib.sha256(_WHAT)
        for part in (*parts, self._channel, invitation):
            digest.update(_LENGTH.pack(len(part)) + part)
        self._transcript = digest.digest()
        self._key = key

    def prove(self) -> tuple[bytes, bytes]:
        """MAC and signature of this side."""
        return self._mac(self._guest), self._device.sign(self._signed(self._guest))

    def is_proved(self, proof: Proof) -> bool:
        """Whether the other side knows the secret and holds its key."""
        if not hmac.compare_digest(proof.mac, self._mac(not self._guest)):
            return False
        return verify(self._certificate, proof.signature, self._signed(not self._guest))

    def _mac(self, guest: bool) -> bytes:
        return hmac.digest(self._key, self._signed(guest), "sha256")

    def _signed(self, guest: bool) -> bytes:
        return _WHAT + (b" guest " if guest else b" host ") + self._transcript


# --- messages on the wire -------------------------------------------------------------------------


async def send(writer: asyncio.StreamWriter, message: Message) -> None:
    """Write one message: its length in four bytes, then MessagePack."""
    data = msgspec.msgpack.encode(message)
    writer.write(_LENGTH.pack(len(data)) + data)
    await writer.drain()


async def receive(reader: asyncio.StreamReader, kind: type[T], large: bool = False) -> T:
    """Read one message of a type.

    Raises:
        PairingError: The other side said no.
        ProtocolError: It sent something else.
        EOFError: It is gone (asyncio.IncompleteReadError).
    """
    limit = limits.PAIR_FRAME_BYTES if large else _SMALL
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > limit:
        raise ProtocolError("a pairing message that is too large")
    return parse(await reader.readexactly(length), kind)


def parse(data: bytes, kind: type[T]) -> T:
    """One message; raises as :func:`receive`."""
    try:
        message = msgspec.msgpack.decode(data, type=Message)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise ProtocolError("a pairing message that is malformed") from exc
    if isinstance(message, Closed):
        raise Denied(message.why, heard=True)
    if not isinstance(message, kind):
        raise ProtocolError(f"{type(message).__name__} instead of {kind.__name__}")
    return message


_DENIALS: Final = {
    "window": "no pairing window is open there: run `astra-mesh pair` on that device first",
    "key": (
        "that device does not take this join key: it was used as often as it may be, its time is "
        "over, it was closed, or another device made it. Run `astra-mesh pair --join-key` on the "
        "other device for a new one"
    ),
    "same-device": "both ends are the same device and user; they need no pairing",
    "wrong": (
        "the code is wrong: that device shows another one. Look at it again; three wrong ones "
        "close its window"
    ),
    "two-meshes": (
        "both devices belong to a mesh with other devices already; on one of them run "
        "`astra-mesh unpair --leave` first"
    ),
    "limit": (
        "that device lets in for a limited time only, but it is alone: it would have joined the "
        "mesh of this one, and for good. Nothing was changed. Show the code here instead: "
        "astra-mesh pair --for TIME"
    ),
}


class Denied(PairingError):
    """The host said no; ``why`` is its word for the reason, ``by`` its certificate if it showed one
    before. What is no known word is marked as said by whoever answered: it may be a stranger.

    Args:
        why: The word, or a sentence.
        heard: Whether the other side said it, not this one.
        key: Whether it is about a join key, of which no window is said.
    """

    def __init__(self, why: str, heard: bool = False, key: bool = False) -> None:
        meant = "key" if key and why == "window" else why
        super().__init__(_DENIALS.get(meant) or f"the other device says: {sanitise(why)!a}")
        self.why, self.heard, self.by = why, heard, b""


def pack_roster(roster: Roster) -> bytes:
    """A roster, for a message."""
    return encode(roster)


def unpack_roster(data: bytes) -> Roster:
    """The inverse; ProtocolError for anything else."""
    message = decode(data)
    if not isinstance(message, Roster):
        raise ProtocolError("a pairing without a roster")
    return message
