"""The API and page for other devices: a token that stays the same, and addresses that hold it."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from astra_mesh.errors import InputError, MeshError

if TYPE_CHECKING:
    from astra_mesh.peer import Peer
    from astra_mesh.web import ApiConfig

_BYTES: Final = 15  # 120 random bits: 20 characters


def check_api(context: Any, where: str = "") -> None:
    """Whether the options of the page and the API go together; variables may be set for others.

    Args:
        context: Of the command `peer`, with its options.
        where: Put before the sentence.

    Raises:
        InputError: There is to be no API, and something was typed that is for it.
    """
    if context.params["api"]:
        return
    for name in ("lan", "api_token", "api_port"):
        value, source = context.params[name], context.get_parameter_source(name)
        is_given = value is not None and value is not False  # 0 is a port
        if is_given and source.name == "COMMANDLINE":
            option = "--" + name.replace("_", "-")
            raise InputError(
                f"{where}--no-api does not go with {option}: there will be no page and no API; "
                "say one of them"
            )


def api_config(port: int | None, token: str | None, lan: bool, state: Path | None) -> ApiConfig:
    """Settings of the API from the options of ``astra-mesh peer``.

    Raises:
        InputError: The token cannot be used.
        MeshError: The kept token cannot be read or written.
    """
    from astra_mesh.web import ApiConfig

    if lan and not token:
        token = kept_token(state)
    return ApiConfig(port=port, token=token or None)


def kept_token(state: Path | None) -> str:
    """The token of this user's peers; made at its first use, readable by this user only."""
    import platformdirs

    from astra_mesh.client.keys import TOKEN_FILE
    from astra_mesh.mesh.files import make_folder
    from astra_mesh.mesh.identity import protect
    from astra_mesh.web.config import check_token

    folder = state or Path(platformdirs.user_state_path("astra-mesh"))
    path = folder / TOKEN_FILE
    try:
        if path.exists():
            protect(path)
            token = path.read_text("ascii", errors="replace").strip()
            check_token(token)
            return token
        make_folder(folder)
        token = secrets.token_urlsafe(_BYTES)
        beside = folder / f".{TOKEN_FILE}.{os.getpid()}"
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(token + "\n")
        beside.replace(path)
    except OSError as error:
        raise MeshError(
            f"the token for other devices cannot be kept in {path}: {error.strerror}; name one "
            "with ASTRA_MESH_API_TOKEN instead"
        ) from error
    return token


def closed_to_others(peer: Peer, config: ApiConfig) -> str:
    """Why no other device can open the page although it should; "" if they can."""
    from astra_mesh.mesh.interfaces import is_loopback
    from astra_mesh.peer.places import is_alone

    listen = peer.config.listen
    if config.token is None or not is_alone(listen):
        return ""
    if listen and is_loopback(listen):
        return f"no other device can open the page: this peer listens on {listen} only (--listen)"
    return (
        "no other device can open the page: this machine has no address in a network; connect it, "
        "then start the peer again"
    )


def api_addresses(peer: Peer, config: ApiConfig, api: str) -> list[str]:
    """Where programs find the API: those of other devices first, if they may use it."""
    if config.token is None:
        return [api]
    from astra_mesh.mesh.connect import show_address
    from astra_mesh.mesh.interfaces import is_loopback
    from astra_mesh.peer.places import own_hosts

    port = _port_of(api)
    hosts = own_hosts(peer.config.listen, link_local=False)
    far = [show_address((host, port)) for host in hosts if not is_loopback(host)]
    return list(dict.fromkeys([*(f"http://{address}/v1" for address in far), api]))


def _port_of(api: str) -> int:
    return int(api.removesuffix("/v1").rpartition(":")[2])


def page_addresses(peer: Peer, config: ApiConfig, api: str) -> list[str]:
    """Where people open the page: on this machine, or with the token on any device nearby."""
    if config.token is None:
        return [api.removesuffix("v1")]
    from astra_mesh.web.invitation import page_urls

    return page_urls(peer.config.listen, _port_of(api), config.token)
