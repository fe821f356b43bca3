"""Who may ask: this machine's own programs and pages, or whoever shows the token.

A browser on this machine runs pages of strangers. Such a page cannot ask the API: its requests
carry an ``Origin`` of another site, or say ``Sec-Fetch-Site: cross-site``; and a page whose name
was bound to this machine's address afterwards (DNS rebinding) carries that name as ``Host``.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import socket
from collections.abc import Mapping
from typing import Final

from yarl import URL

from astra_mesh.web.config import ApiConfig
from astra_mesh.web.errors import ApiError

# Without a token. The page holds nothing that is secret; what it asks for needs the token.
OPEN_PATHS: Final = frozenset({"/", "/health", "/docs", "/openapi.json"})
LINKED_PATHS: Final = frozenset({"/", "/docs"})  # that a page of another site may lead to
PAGE_FILES: Final = "/page/"
# Browsers give a WebSocket no header of one's own, but these words: "bearer." and the token in
# URL-safe base64 without padding.
_PROTOCOL_TOKEN: Final = "bearer."
_FOREIGN: Final = frozenset({"cross-site", "same-site"})


class Guard:
    """The checks of one API."""

    def __init__(self, config: ApiConfig) -> None:
        name = socket.gethostname().lower()
        own = {"localhost", name, name.partition(".")[0] + ".local"}
        self._names = own | {host.lower() for host in config.hosts}
        self._token = None if config.token is None else config.token.encode()

    def check(self, path: str, headers: Mapping[str, str]) -> None:
        """Let a request pass, or raise ApiError (403, 401) that says why not."""
        host = headers.get("Host", "")
        self._check_host(host)
        if not _is_link(path, headers):
            _check_origin(host, headers)
        if self._token is not None and path not in OPEN_PATHS and not path.startswith(PAGE_FILES):
            self._check_token(headers.get("Authorization") or _of_protocols(headers))

    def _check_host(self, host: str) -> None:
        name = _name_of(host)
        if name is None or not (name in self._names or _is_address(name)):
            raise ApiError(
                403,
                "this peer does not know itself by the name in the Host header; use localhost, an "
                "IP address or the machine's own name",
                "unknown_host",
            )

    def _check_token(self, header: str) -> None:
        kind, _, token = header.partition(" ")
        # Bytes of any kind compare in constant time; aiohttp hands over undecodable ones escaped.
        given = token.strip().encode("utf-8", "surrogateescape")
        assert self._token is not None
        if kind.lower() != "bearer" or not hmac.compare_digest(given, self._token):
            raise ApiError(
                401,
                "this peer wants its API token: send the header `Authorization: Bearer TOKEN` (the "
                "api_key of OpenAI's clients)",
                "invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


def check_protocol(headers: Mapping[str, str], protocol: str) -> None:
    """ApiError where a WebSocket's words lack its protocol, as those of a client that sends the
    token alone: aiohttp would write them to the log.
    """
    words = headers.get("Sec-WebSocket-Protocol")
    if words is not None and protocol not in (word.strip() for word in words.split(",")):
        raise ApiError(
            400,
            f"this WebSocket speaks {protocol}: name it in Sec-WebSocket-Protocol too, besides the "
            "word with the token",
            "wrong_protocol",
        )


def _of_protocols(headers: Mapping[str, str]) -> str:
    """The token of a WebSocket as an Authorization header would have it; "" if there is none."""
    for word in headers.get("Sec-WebSocket-Protocol", "").split(","):
        if word.strip().startswith(_PROTOCOL_TOKEN):
            coded = word.strip().removeprefix(_PROTOCOL_TOKEN)
            try:
                token = base64.urlsafe_b64decode(coded + "=" * (-len(coded) % 4))
            except (binascii.Error, ValueError):
                return ""
            return f"Bearer {token.decode('utf-8', 'surrogateescape')}"
    return ""


def _is_link(path: str, headers: Mapping[str, str]) -> bool:
    """Whether a person follows a link to the page: the browser shows it in place of the other.

    The other site learns nothing of it, and its scripts reach nothing in it. A form that is sent
    has an ``Origin``, a frame is no document.
    """
    shown = headers.get("Sec-Fetch-Mode"), headers.get("Sec-Fetch-Dest")
    return path in LINKED_PATHS and shown == ("navigate", "document") and "Origin" not in headers


def _check_origin(host: str, headers: Mapping[str, str]) -> None:
    origin = headers.get("Origin")
    own = origin is None or origin.lower() in (f"http://{host}".lower(), f"https://{host}".lower())
    if not own or headers.get("Sec-Fetch-Site", "").lower() in _FOREIGN:
        raise ApiError(
            403,
            "pages of other sites cannot use this peer; open the page that the peer itself serves, "
            "or ask from a program",
            "foreign_origin",
        )


def _name_of(host: str) -> str | None:
    """The name or address in a Host header."""
    try:
        return (URL(f"http://{host}").host or "").lower() or None
    except ValueError:
        return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True
