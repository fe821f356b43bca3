"""What a person may choose about the API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from astra_mesh import limits
from astra_mesh.errors import InputError

DEFAULT_PORT: Final = 7476  # the one after the peer's
LOOPBACK: Final = ("127.0.0.1", "::1")


@dataclass(frozen=True)
class ApiConfig:
    """Settings of the API of one peer.

    Attributes:
        port: None: :data:`DEFAULT_PORT`, or any free port if that is taken. 0: any free port.
        token: Who shows it may ask from other machines. None: only this machine, without a token.
        hosts: Names of this machine under which it may be reached, beside those it knows.
        keepalive_s: A stream without news sends a comment after so long.
        request_s: The longest that one request may take.
        write_s: A reader of a stream that takes nothing for so long is dropped.
        header_s: The longest that the header of a connection's first request may take to come.
        body_s: The longest that the body of a request may take to come.
    """

    port: int | None = None
    token: str | None = None
    hosts: tuple[str, ...] = ()
    keepalive_s: float = limits.API_KEEPALIVE_S
    request_s: float = limits.API_REQUEST_S
    write_s: float = limits.API_WRITE_S
    header_s: float = limits.API_HEADER_S
    body_s: float = limits.API_BODY_S

    def __post_init__(self) -> None:
        if self.token is not None:
            check_token(self.token)


def check_token(token: str) -> None:
    """InputError for a token that could be guessed, or that no header can carry."""
    fine = token.isascii() and token.isprintable() and " " not in token
    if not fine or len(token) < limits.API_TOKEN_CHARS:
        raise InputError(
            f"an API token has at least {limits.API_TOKEN_CHARS} printable ASCII characters and no "
            'space; `python3 -c "import secrets; print(secrets.token_urlsafe())"` makes one'
        )
