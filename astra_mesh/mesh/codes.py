"""Pairing codes that people type, join keys for boards without a keyboard, and the text of a QR."""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final
from urllib.parse import parse_qs, urlencode, urlsplit

from astra_mesh.errors import InputError

# 31 characters, a prime, so that the check digit finds every wrong character and every swap of two.
# I, L, O, 0 and 1 are missing: they look alike.
ALPHABET: Final = "23456789ABCDEFGHJKMNPQRSTUVWXYZ"
CODE_CHARS: Final = 8  # seven at random (27,500 million codes) and the check digit
_DISTINCT: Final = 4  # characters of a code, at least
_KEY_PREFIX: Final = "amk"
_KEY_BYTES: Final = 16
_KEY_CHECK_BYTES: Final = 4
_SCHEME: Final = "astra-mesh"


@dataclass(frozen=True)
class Secret:
    """What both sides of a pairing know.

    Attributes:
        text: Of the code or key, as it is shown.
        id: Of a join key, so that a device knows which of its keys is meant; empty for a code,
            of which a device has one at a time.
        addresses: Where to go with it, if that was said; "host:port".
    """

    text: str
    id: bytes
    password: bytes
    addresses: tuple[str, ...] = ()


def new_code() -> str:
    """A fresh pairing code, as it is shown: ``K7QM-2XR8``."""
    while True:
        body = "".join(secrets.choice(ALPHABET) for _ in range(CODE_CHARS - 1))
        if not _is_trivial(body):
            return _grouped(body + _check_digit(body))


def new_key() -> str:
    """A fresh join key."""
    data = secrets.token_bytes(_KEY_BYTES)
    text = base64.b32encode(data + _key_check(data)).decode().rstrip("=").lower()
    return f"{_KEY_PREFIX}-{text}"


def read_secret(text: str) -> Secret:
    """A code, a join key or the text of a QR, as somebody typed it.

    Raises:
        InputError: It is none of these, or was mistyped.
    """
    text = text.strip()
    if text.lower().startswith(f"{_SCHEME}:"):
        return _read_uri(text)
    if text.lower().startswith(f"{_KEY_PREFIX}-"):
        return _read_key(text.lower())
    return _read_code(text)


def read_key(text: str) -> Secret:
    """A join key, as a peer is given it when it starts; else as :func:`read_secret`.

    Raises:
        InputError: It is none. The text, which may be a key that lacks a part, is not repeated.
    """
    try:
        return read_secret(text)
    except InputError:
        if text.strip().lower().startswith(f"{_KEY_PREFIX}-"):
            raise
        raise InputError(
            f"this is no join key: one begins with {_KEY_PREFIX}- and is long; `astra-mesh pair "
            "--join-key`, on a device of the mesh, makes one"
        ) from None


def as_uri(secret: str, addresses: Sequence[str]) -> str:
    """The text of a QR."""
    query = [("code", secret), *(("at", address) for address in addresses)]
    return f"{_SCHEME}://pair?{urlencode(query)}"


def _read_uri(text: str) -> Secret:
    try:
        query = parse_qs(urlsplit(text).query, max_num_fields=16)
    except ValueError:
        query = {}
    said = {name.lower(): values for name, values in query.items()}
    if "code" not in said:
        raise InputError(
            "the text that was scanned or copied begins as that of a pairing and holds no code: "
            "scan all of the picture anew, or type the code that stands below it"
        )
    inner = read_secret_part(said["code"][0])
    return Secret(inner.text, inner.id, inner.password, tuple(said.get("at", ())))


def read_secret_part(text: str) -> Secret:
    """A code or join key without an address; raises as :func:`read_secret`."""
    key = text.lower().startswith(f"{_KEY_PREFIX}-")
    return _read_key(text.lower()) if key else _read_code(text)


def _read_code(text: str) -> Secret:
    code = "".join(text.upper().split()).replace("-", "")
    if len(code) != CODE_CHARS or not set(code) <= set(ALPHABET):
        raise InputError(
            f"{text[:40]!a} is no pairing code: it has {CODE_CHARS} letters and digits, never "
            "0, 1, I, L or O. `astra-mesh pair` on the other device shows one"
        )
    if _check_digit(code[:-1]) != code[-1]:
        raise InputError(f"the code {_grouped(code)} was mistyped: its check digit does not fit")
    if _is_trivial(code[:-1]):  # a try that would count there for nothing
        raise InputError(
            f"the code {_grouped(code)} was mistyped: no device shows such a simple one"
        )
    return Secret(_grouped(code), b"", code.encode())


def _read_key(text: str) -> Secret:
    body = text.partition("-")[2].upper()
    try:
        data = base64.b32decode(body + "=" * (-len(body) % 8))
    except (binascii.Error, ValueError):
        data = b""
    secret, check = data[:_KEY_BYTES], data[_KEY_BYTES:]
    if len(secret) != _KEY_BYTES or check != _key_check(secret):
        raise InputError(
            "this is no join key, or a part of it is missing: copy all of what "
            "`astra-mesh pair --join-key` printed"
        )
    return Secret(text, hashlib.sha256(b"id" + secret).digest()[:8], secret)


def _key_check(data: bytes) -> bytes:
    return hashlib.sha256(b"check" + data).digest()[:_KEY_CHECK_BYTES]


def _check_digit(body: str) -> str:
    """Weighted sum modulo 31: no single error and no swap leaves it as it is."""
    total = sum(weight * ALPHABET.index(char) for weight, char in enumerate(body, start=2))
    return ALPHABET[total % len(ALPHABET)]


def _is_trivial(body: str) -> bool:
    """Few different characters, or a run of neighbours: what people guess and what is misread."""
    places = [ALPHABET.index(char) for char in body]
    steps = {after - before for before, after in pairwise(places)}
    return len(set(body)) < _DISTINCT or len(steps) == 1


def _grouped(code: str) -> str:
    return f"{code[:4]}-{code[4:]}"
