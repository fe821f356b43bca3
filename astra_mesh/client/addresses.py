"""Addresses as people type them."""

from __future__ import annotations

import re
from typing import Final

from astra_mesh.errors import InputError
from astra_mesh.mesh.connect import Address

DEFAULT_PORT: Final = 7475

_PORT: Final = (  # up to 65535, and not 0
    r"(?!0+(?:\s|$))(?:[0-5]?[0-9]{1,4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
)
_FORM: Final = re.compile(
    r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+(?:%\w+)?)\]|(?P<host>[\w.-]+))"
    rf"(?::(?P<port>{_PORT}))?"
    r"|(?P<bare>[0-9A-Fa-f.]*(?::[0-9A-Fa-f.]*){2,}(?:%\w+)?)"
)
PATTERN: Final = rf"^\s*(?:{re.sub('[?]P<[a-z0-9]+>', '?:', _FORM.pattern)})\s*$"  # for a schema
_URL: Final = re.compile(r"[a-z]+://", re.IGNORECASE)


def parse_address(text: str) -> Address:
    """``host``, ``host:port``, ``[IPv6]``, ``[IPv6]:port`` as host and port (default 7475).

    Raises:
        InputError: It is none of these.
    """
    match = _FORM.fullmatch(text.strip())
    if _URL.match(text.strip()):
        raise InputError(
            f"{text[:100]!a} is an address of a page or of the API, and a peer is asked at a port "
            f"of its own: give HOST or HOST:PORT without http:// ({DEFAULT_PORT} unless said "
            "otherwise; `astra-mesh peer` prints its own behind `at`)"
        )
    if match is None:
        raise InputError(
            f"{text[:100]!a} is no address of a peer: use HOST, HOST:PORT or [IPv6]:PORT"
        )
    return match["ipv6"] or match["host"] or match["bare"], int(match["port"] or DEFAULT_PORT)
