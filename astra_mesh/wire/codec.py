"""Frames to messages and back: the only place where bytes from a peer are parsed.

A frame is the msgpack array ``[type, body]`` in its canonical head: byte ``0x92``, then the type as
one byte. Size, number of items, nesting, numbers, structure and ranges are checked in this order,
so that nothing is allocated for a frame that is too large. Every failure is one
:class:`~astra_mesh.errors.ProtocolError`.
"""

from __future__ import annotations

from typing import Any, Final

import msgpack  # type: ignore[import-untyped]
import msgspec

from astra_mesh import limits
from astra_mesh.errors import ProtocolError
from astra_mesh.wire.messages import (
    TYPES,
    Ask,
    Codes,
    Credit,
    Hello,
    Message,
    Peers,
    Ping,
    Planned,
    Pong,
    Pooled,
    Positional,
    Propose,
    RequestId,
    Result,
    Roster,
    Status,
    Throughput,
    Token,
)
from astra_mesh.wire.validate import sanitise, validate

__all__ = ["AnyMessage", "decode", "encode", "hello_version", "peek", "sanitise"]

AnyMessage = Message | Positional

_HEAD: Final = 0x92  # msgpack array of two
_MAP_OVERHEAD: Final = 16 * limits.KIB  # map keys and texts around one large value
_INT_LIMIT: Final = 2**63
_FRONT_BYTES: Final = 32  # head of a map, "request", and a number

_NUMBERS: Final = {kind: number for number, kind in TYPES.items()}

# The largest frame of each type; types that are not listed are small maps.
_FRAME_BYTES: Final[dict[type[msgspec.Struct], int]] = {
    Propose: limits.FRAME_BYTES,
    Ask: limits.FRAME_BYTES,
    Hello: limits.CONTROL_FRAME_BYTES,
    Status: limits.CONTROL_FRAME_BYTES,
    Roster: limits.ROSTER_FRAME_BYTES,
    Planned: limits.CONTROL_FRAME_BYTES,
    Result: limits.CONTROL_FRAME_BYTES,
    Peers: limits.CONTROL_FRAME_BYTES,
    Codes: limits.CODES_DATA_BYTES + 64,
    Pooled: limits.VECTOR_BYTES + 64,
    Ping: limits.PING_PADDING_BYTES + 64,
    Token: 4 * limits.TOKEN_TEXT_CHARS + 64,
    Pong: 64,
    Credit: 64,
    Throughput: 64,
}
_PARSE_ERRORS: Final = (
    ValueError,  # with msgspec.ValidationError, UnicodeError and most of msgpack's
    TypeError,
    OverflowError,
    RecursionError,
    msgpack.UnpackException,
)


def encode(message: AnyMessage) -> bytes:
    """The frame of a message.

    Raises:
        ProtocolError: The message breaks a limit of the protocol; every peer would refuse it.
    """
    kind = type(message)
    number = _NUMBERS.get(kind)
    if number is None:
        raise ProtocolError(f"{kind.__name__} is not a message of its own")
    try:
        validate(message)
        body = msgspec.to_builtins(message, builtin_types=(bytes,))
        _check(body, limits.NESTING_DEPTH)
        frame: bytes = msgpack.packb([number, body], use_bin_type=True)
    except _PARSE_ERRORS as exc:
        raise ProtocolError(f"cannot send {kind.__name__}: {_sentence(exc)}") from exc
    if len(frame) > _frame_limit(kind):
        raise ProtocolError(f"cannot send {kind.__name__}: {len(frame)} bytes are too many")
    return frame


def decode(frame: bytes | bytearray | memoryview) -> AnyMessage:
    """The message of a frame.

    Raises:
        ProtocolError: Anything else than a well-formed message within all limits.
    """
    kind = _kind(frame)
    try:
        body = _unpack(frame, kind)
        # Without builtin_types, text would do for bytes, as base64.
        message = msgspec.convert(body, kind, strict=True, builtin_types=(bytes,))
        validate(message)
    except _PARSE_ERRORS as exc:
        raise ProtocolError(f"malformed {kind.__name__}: {_sentence(exc)}") from exc
    assert isinstance(message, Message | Positional)
    return message


def hello_version(frame: bytes | bytearray | memoryview) -> int | None:
    """The protocol version that a hello of *any* version states; None if it is no hello.

    ``version`` in the map of type 0 is the one field that all versions share, so that a mismatch is
    reported as such and not as a malformed message.
    """
    try:
        if _kind(frame) is not Hello:
            return None
        body = _unpack(frame, Hello)
    except (ProtocolError, *_PARSE_ERRORS):
        return None
    version = body.get("version") if isinstance(body, dict) else None
    return version if type(version) is int else None


def peek(frame: bytes | bytearray | memoryview) -> tuple[type[msgspec.Struct], RequestId | None]:
    """Type and request of a frame, read from its first bytes; no id where it is not in front.

    Raises:
        ProtocolError: The type is unknown, or the frame too long for it.
    """
    kind = _kind(frame)
    unpacker = msgpack.Unpacker()
    unpacker.feed(frame[2 : 2 + _FRONT_BYTES])
    try:
        unpacker.read_map_header()
        key, value = unpacker.unpack(), unpacker.unpack()
    except (*_PARSE_ERRORS, RuntimeError):
        return kind, None
    is_id = key == "request" and type(value) is int and 0 <= value < _INT_LIMIT
    return kind, RequestId(value) if is_id else None


def _kind(frame: bytes | bytearray | memoryview) -> type[msgspec.Struct]:
    if len(frame) > limits.FRAME_BYTES:
        raise ProtocolError(f"a frame of {len(frame)} bytes; {limits.FRAME_BYTES} are allowed")
    if len(frame) < 3 or frame[0] != _HEAD:
        raise ProtocolError("a frame that is no array of type and body")
    kind = TYPES.get(frame[1])
    if kind is None:
        raise ProtocolError(f"unknown message type {frame[1]}")
    if len(frame) > _frame_limit(kind):
        raise ProtocolError(f"{len(frame)} bytes are too many for {kind.__name__}")
    return kind


def _frame_limit(kind: type[msgspec.Struct]) -> int:
    return _FRAME_BYTES.get(kind, _MAP_OVERHEAD)


def _unpack(frame: bytes | bytearray | memoryview, kind: type[msgspec.Struct]) -> Any:
    """The body as plain Python values, all checks done that need no knowledge of its type."""
    large = kind in (Propose, Ask)
    size = len(frame)
    count = _Count()
    parts = msgpack.unpackb(
        frame,
        raw=False,
        strict_map_key=True,
        list_hook=count.array,
        object_pairs_hook=count.map,
        max_str_len=min(size, limits.TEXT_BYTES),
        max_bin_len=size,
        max_array_len=min(size, limits.ARRAY_ITEMS if large else limits.CONTROL_ARRAY_ITEMS),
        max_map_len=min(size, limits.MAP_ITEMS),
        max_ext_len=0,
    )
    body = parts[1]
    _check(body, limits.NESTING_DEPTH)
    return body


class _Count:
    """Hooks of the unpacker: stop at too many items, refuse a key that comes twice."""

    def __init__(self) -> None:
        self._left = limits.FRAME_ITEMS

    def array(self, items: list[Any]) -> list[Any]:
        self._take(len(items))
        return items

    def map(self, pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
        self._take(len(pairs))
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("a key occurs twice")
        return result

    def _take(self, items: int) -> None:
        self._left -= items + 1
        if self._left < 0:
            raise ValueError("too many items")


def _check(value: Any, depth: int) -> None:
    """Numbers are finite, not negative and below 2**63; nesting ends; all is plain data."""
    kind = type(value)
    if kind is int:
        if not 0 <= value < _INT_LIMIT:
            raise ValueError("an integer is negative or too large")
    elif kind is float:
        if not 0.0 <= value < float("inf"):
            raise ValueError("a number is negative or not finite")
    elif kind is list or kind is dict:
        if depth == 0:
            raise ValueError("nested too deeply")
        _check_items(value if kind is list else list(value.values()), depth - 1)
        if kind is dict and not all(type(key) is str for key in value):
            raise ValueError("a map key is not text")
    elif value is not None and kind not in (str, bytes, bool):
        raise ValueError("a value of a type that the protocol does not use")


def _check_items(items: list[Any], depth: int) -> None:
    if set(map(type, items)) == {int}:  # token ids: 100,000 of them must not take long
        _check(min(items), depth)
        _check(max(items), depth)
        return
    for item in items:
        _check(item, depth)


def _sentence(exc: BaseException) -> str:
    return sanitise(str(exc) or type(exc).__name__, 200)
