"""The sealed channel between a browser tab and a peer, without I/O and without a clock.

The peer that serves a tab relays what the two say to each other; they agree on keys that it does
not learn, and prove who they are by their certificates. Three messages (docs/browser-peer.md)::

    opener -> answerer  "amt1" || ephemeral key || certificate
    answerer -> opener  "amt1" || ephemeral key || certificate || signature of both messages
    opener -> answerer  signature of both messages

A signature covers both ephemeral keys and both certificates (as in SIGMA, Krawczyk 2003). Each
later message is one frame of the protocol under ChaCha20-Poly1305 (RFC 8439) with a counter as
nonce: one that was altered, left out, repeated or moved does not open.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from astra_mesh import limits
from astra_mesh.errors import ProtocolError
from astra_mesh.mesh.identity import Identity, peer_id, read_certificate, read_point, verify
from astra_mesh.wire.messages import PeerId

_MAGIC: Final = b"amt1"
_ABOUT: Final = b"astra-mesh tab 1"
_KEY_BYTES: Final = 32
_NUMBER_BYTES: Final = 32  # each half of a signature
_SIGNATURE_BYTES: Final = 2 * _NUMBER_BYTES
_CERTIFICATE_AT: Final = len(_MAGIC) + limits.POINT_BYTES + 2

Sign = Callable[[bytes], bytes]  # ECDSA with SHA-256, the signature in DER


@dataclass(frozen=True, slots=True)
class Speaker:
    """One end of a channel: its certificate (DER) and what signs with the key in it."""

    certificate: bytes
    sign: Sign = field(repr=False)

    @classmethod
    def of(cls, identity: Identity) -> Speaker:
        """A peer."""
        key = serialization.load_pem_private_key(identity.key_pem, password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return cls.with_key(ssl.PEM_cert_to_DER_cert(identity.certificate_pem.decode()), key)

    @classmethod
    def with_key(cls, certificate: bytes, key: ec.EllipticCurvePrivateKey) -> Speaker:
        """An end whose key is at hand."""
        return cls(certificate, lambda data: key.sign(data, ec.ECDSA(hashes.SHA256())))


class Channel:
    """What both ends have after the handshake: frames are sealed and opened in order."""

    def __init__(self, sending: bytes, receiving: bytes) -> None:
        self._sending, self._receiving = ChaCha20Poly1305(sending), ChaCha20Poly1305(receiving)
        self._sent = self._received = 0

    def seal(self, frame: bytes) -> bytes:
        """The next message to the other end."""
        sealed = self._sending.encrypt(_nonce(self._sent), frame, None)
        self._sent += 1
        return sealed

    def open(self, message: bytes) -> bytes:
        """The frame in the next message of the other end.

        Raises:
            ProtocolError: It is not what the other end sent, or not in its order. The channel is
                of no use any more.
        """
        try:
            frame = self._receiving.decrypt(_nonce(self._received), message, None)
        except InvalidTag:
            raise ProtocolError("a sealed message that was altered on its way") from None
        self._received += 1
        return frame


class Opener:
    """The end that begins. Single-use: send :attr:`first`, give the answer to :meth:`finish`.

    Args:
        me: This end.
        expected: Who must answer.
        ephemeral: A fresh key by default (fixed in test vectors).
    """

    def __init__(
        self,
        me: Speaker,
        expected: PeerId,
        ephemeral: ec.EllipticCurvePrivateKey | None = None,
    ) -> None:
        self._me, self._expected = me, expected
        self._ephemeral = ephemeral or ec.generate_private_key(ec.SECP256R1())
        self.first = _introduction(self._ephemeral, me.certificate)

    def finish(self, second: bytes) -> tuple[bytes, Channel]:
        """The third message, to be sent, and the channel.

        Raises:
            ProtocolError: The answer is malformed, of another peer, or was altered.
        """
        answer, signature = second[:-_SIGNATURE_BYTES], second[-_SIGNATURE_BYTES:]
        point, certificate = _read_introduction(answer)
        if peer_id(certificate) != self._expected:
            raise ProtocolError(
                f"peer {peer_id(certificate)[:8]} answers instead of {self._expected[:8]}"
            )
        _check(certificate, signature, _answered(self.first, answer))
        third = _raw(self._me.sign(_opened(self.first, second)))
        return third, Channel(*_keys(self._ephemeral, point, self.first, second))


class Answerer:
    """The end that is spoken to. Single-use: :attr:`certificate` is to be judged before the
    channel is used, and proven only when :meth:`finish` returns.

    Args:
        me: This end.
        first: What came.
        ephemeral: A fresh key by default (fixed in test vectors).

    Raises:
        ProtocolError: ``first`` is malformed.
    """

    def __init__(
        self, me: Speaker, first: bytes, ephemeral: ec.EllipticCurvePrivateKey | None = None
    ) -> None:
        point, self.certificate = _read_introduction(first)
        mine = ephemeral or ec.generate_private_key(ec.SECP256R1())
        answer = _introduction(mine, me.certificate)
        self.second = answer + _raw(me.sign(_answered(first, answer)))
        self._opened = _opened(first, self.second)
        receiving, sending = _keys(mine, point, first, self.second)
        self._channel = Channel(sending, receiving)

    def finish(self, third: bytes) -> Channel:
        """The channel.

        Raises:
            ProtocolError: Whoever speaks does not have the certificate's key, or something was
                altered.
        """
        _check(self.certificate, third, self._opened)
        return self._channel


def certificate_of(first: bytes) -> bytes:
    """The certificate (DER) that an opener shows; who relays may look at it too.

    Raises:
        ProtocolError: ``first`` is malformed.
    """
    return _read_introduction(first)[1]


# --- messages -------------------------------------------------------------------------------------


def _introduction(ephemeral: ec.EllipticCurvePrivateKey, certificate: bytes) -> bytes:
    point = ephemeral.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    return _MAGIC + point + len(certificate).to_bytes(2, "big") + certificate


def _read_introduction(message: bytes) -> tuple[ec.EllipticCurvePublicKey, bytes]:
    """Ephemeral key and certificate; the latter may be anybody's."""
    certificate = message[_CERTIFICATE_AT:]
    if not message.startswith(_MAGIC):
        raise ProtocolError("a channel that begins with something else, or of another version")
    if len(certificate) != int.from_bytes(message[_CERTIFICATE_AT - 2 : _CERTIFICATE_AT], "big"):
        raise ProtocolError("a channel that begins with a message of a wrong length")
    try:
        read_certificate(certificate)
        return read_point(message[len(_MAGIC) : _CERTIFICATE_AT - 2]), certificate
    except ValueError as error:
        raise ProtocolError(f"a channel that begins with {error}") from None


def _answered(first: bytes, answer: bytes) -> bytes:
    """What an answerer signs."""
    return _ABOUT + b" answer" + hashlib.sha256(first + answer).digest()


def _opened(first: bytes, second: bytes) -> bytes:
    """What an opener signs."""
    return _ABOUT + b" open" + hashlib.sha256(first + second).digest()


# --- cryptography ---------------------------------------------------------------------------------


def _keys(
    mine: ec.EllipticCurvePrivateKey, theirs: ec.EllipticCurvePublicKey, first: bytes, second: bytes
) -> tuple[bytes, bytes]:
    """For what the opener sends, and for what the answerer sends."""
    salt = hashlib.sha256(first + second).digest()
    derive = HKDF(hashes.SHA256(), length=2 * _KEY_BYTES, salt=salt, info=_ABOUT)
    both = derive.derive(mine.exchange(ec.ECDH(), theirs))
    return both[:_KEY_BYTES], both[_KEY_BYTES:]


def _nonce(number: int) -> bytes:
    return bytes(4) + number.to_bytes(8, "big")


def _raw(signature: bytes) -> bytes:
    """A signature in DER as its two numbers, 32 bytes each."""
    return b"".join(
        number.to_bytes(_NUMBER_BYTES, "big") for number in utils.decode_dss_signature(signature)
    )


def _check(certificate: bytes, signature: bytes, data: bytes) -> None:
    """Refuse a signature (raw) that the certificate's key did not make."""
    r, s = (
        int.from_bytes(half, "big")
        for half in (signature[:_NUMBER_BYTES], signature[_NUMBER_BYTES:])
    )
    good = len(signature) == _SIGNATURE_BYTES and verify(
        read_certificate(certificate), utils.encode_dss_signature(r, s), data
    )
    if not good:
        raise ProtocolError("a channel whose beginning was altered, or of somebody else")
