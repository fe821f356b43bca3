"""What a tab asks its host about other peers' requests, sealed: pages are served over plain HTTP,
and what the mesh says to a tab is for nobody else on the line.

The host makes a key when its API starts, and says its point when it welcomes a tab. Each question
has a key of its own (ECDH on P-256, HKDF with SHA-256); question and answer are one message each
under ChaCha20-Poly1305 (RFC 8439), with the path of the question as additional data, so that it
cannot be asked elsewhere::

    question  ephemeral point || sealed body
    answer    sealed body

Errors are answered in the clear, as by all of the API.
"""

from __future__ import annotations

import hashlib
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from astra_mesh.errors import ProtocolError
from astra_mesh.limits import POINT_BYTES
from astra_mesh.mesh.identity import read_point

_ABOUT: Final = b"astra-mesh tab 1 rows"
_KEY_BYTES: Final = 32
_NONCE: Final = bytes(12)  # each key seals one message


class Envelopes:
    """The host's end; one for all its tabs."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.point = point_of(self._key)  # (65 bytes, uncompressed) for whoever asks

    def open(self, message: bytes, path: str) -> tuple[bytes, Envelope]:
        """A question's body, and what its answer goes into.

        Raises:
            ProtocolError: It is none, was altered, or is of another path or to another key.
        """
        point = message[:POINT_BYTES]
        try:
            theirs = read_point(point)
        except ValueError as error:
            raise ProtocolError(f"a sealed question that begins with {error}") from None
        asking, answering = keys(self._key, theirs, point, self.point)
        body = Envelope(asking, path).open(message[POINT_BYTES:])
        return body, Envelope(answering, path)


class Envelope:
    """Seals, or opens, one message."""

    def __init__(self, key: bytes, path: str) -> None:
        self._cipher, self._about = ChaCha20Poly1305(key), path.encode()

    def seal(self, body: bytes) -> bytes:
        """The message."""
        return self._cipher.encrypt(_NONCE, body, self._about)

    def open(self, message: bytes) -> bytes:
        """The body; ProtocolError if it was altered."""
        try:
            return self._cipher.decrypt(_NONCE, message, self._about)
        except InvalidTag:
            raise ProtocolError(
                "a sealed message that was altered, or is for a peer that was started again since"
            ) from None


def question(body: bytes, path: str, point: bytes) -> tuple[bytes, Envelope]:
    """A tab's end: the message to a host with this point, and what opens the answer."""
    key = ec.generate_private_key(ec.SECP256R1())
    mine = point_of(key)
    asking, answering = keys(key, read_point(point), mine, point)
    return mine + Envelope(asking, path).seal(body), Envelope(answering, path)


def keys(
    mine: ec.EllipticCurvePrivateKey,
    theirs: ec.EllipticCurvePublicKey,
    asker: bytes,
    host: bytes,
) -> tuple[bytes, bytes]:
    """For the question, and for the answer; ``asker`` and ``host`` are both ends' points."""
    salt = hashlib.sha256(asker + host).digest()
    derive = HKDF(hashes.SHA256(), length=2 * _KEY_BYTES, salt=salt, info=_ABOUT)
    both = derive.derive(mine.exchange(ec.ECDH(), theirs))
    return both[:_KEY_BYTES], both[_KEY_BYTES:]


def point_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Uncompressed, 65 bytes."""
    form = serialization.PublicFormat.UncompressedPoint
    return key.public_key().public_bytes(serialization.Encoding.X962, form)
