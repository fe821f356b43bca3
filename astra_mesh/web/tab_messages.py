"""What a tab and the peer that serves it say to each other beside the channels: JSON objects."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Final

import msgspec

from astra_mesh import limits
from astra_mesh.errors import ProtocolError
from astra_mesh.wire.messages import PeerId

VERSION: Final = 1
CHANNEL_BYTES: Final = 4  # before each payload, big endian

Number = Annotated[int, msgspec.Meta(ge=1, le=2 ** (8 * CHANNEL_BYTES) - 1)]


class Join(msgspec.Struct, frozen=True, tag_field="type", tag="join"):
    """The first message: the public key that the tab made, in base64, and its name."""

    key: str
    name: str = ""


class Open(msgspec.Struct, frozen=True, tag_field="type", tag="open"):
    """Open a channel; odd numbers, each higher than the one before."""

    channel: Number
    to: PeerId


class Close(msgspec.Struct, frozen=True, tag_field="type", tag="close"):
    """Close a channel."""

    channel: Number


_DECODER: Final = msgspec.json.Decoder(Join | Open | Close)


def read(text: str) -> Join | Open | Close:
    """A message of a tab.

    Raises:
        ProtocolError: It is none.
    """
    if len(text.encode(errors="surrogatepass")) > limits.TAB_CONTROL_BYTES:
        raise ProtocolError("a message that is too long")
    try:
        message: Join | Open | Close = _DECODER.decode(text)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ProtocolError(f"a message that is not understood: {error}") from None
    return message


def read_key(text: str) -> bytes:
    """The bytes of a key in base64.

    Raises:
        ProtocolError: It is no base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ProtocolError("a key that is not in base64") from None


def text_of(kind: str, **fields: Any) -> str:
    """A message to a tab."""
    return msgspec.json.encode({"type": kind} | fields).decode()


def framed(channel: int, payload: bytes) -> bytes:
    """A binary message, to either side."""
    return channel.to_bytes(CHANNEL_BYTES, "big") + payload


def unframed(message: bytes) -> tuple[int, bytes]:
    """Channel and payload of a binary message.

    Raises:
        ProtocolError: It is too short.
    """
    if len(message) < CHANNEL_BYTES:
        raise ProtocolError("a binary message without a channel")
    return int.from_bytes(message[:CHANNEL_BYTES], "big"), message[CHANNEL_BYTES:]
