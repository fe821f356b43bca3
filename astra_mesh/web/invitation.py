"""Addresses of the page for other devices, and ``/tab/invitation``: one that asks a phone to join.

What follows the # stays in the browser: it is sent to nobody.
"""

from __future__ import annotations

import asyncio
from typing import Final
from urllib.parse import quote

from aiohttp import web

from astra_mesh.mesh.connect import show_address
from astra_mesh.mesh.interfaces import is_loopback
from astra_mesh.peer.places import is_alone, is_link_local, own_hosts
from astra_mesh.web.errors import ApiError
from astra_mesh.web.jsons import json_response
from astra_mesh.web.qr import drawing
from astra_mesh.web.state import STATE

PATH: Final = "/tab/invitation"


def page_urls(listen: str | None, port: int, token: str, word: str = "") -> list[str]:
    """Where other devices open the page, the likeliest first.

    Args:
        listen: the one address that the peer listens on; None: all.
        port: of the API.
        token: that they need.
        word: what the page is to do first ("lend").
    """
    # Browsers take no link-local address of IPv6: it needs the name of an interface.
    hosts = [host for host in own_hosts(listen) if not is_link_local(host)]
    about = "&".join([*([word] if word else []), f"token={quote(token, safe='')}"])
    return [f"http://{show_address((host, port))}/#{about}" for host in hosts]


async def invitation(request: web.Request) -> web.Response:
    """Handle ``GET /tab/invitation``: an address that asks a phone to join, and its QR."""
    state = request.app[STATE]
    if state.config.token is None:
        text = (
            "only this machine can open this page; start the peer with `astra-mesh peer --lan`, "
            "and phones in the same network can"
        )
        raise ApiError(409, text, "this_machine_only")
    assert request.transport is not None
    port = request.transport.get_extra_info("sockname")[1]
    listen = state.peer.config.listen
    address = await asyncio.to_thread(_inviting, listen, port, state.config.token)
    return json_response({"object": "invitation", "address": address, "qr": drawing(address)})


def _inviting(listen: str | None, port: int, token: str) -> str:
    urls = page_urls(listen, port, token, "lend")
    if listen and is_loopback(listen):
        text = (
            f"no phone can open the page: this peer listens on {listen} only; start it without "
            "--listen, or with --listen and this machine's address in the phone's network"
        )
        raise ApiError(409, text, "no_address")
    if not urls or is_alone(listen):
        text = "this machine has no address in a network, so no phone can open the page: connect it"
        raise ApiError(409, text, "no_address")
    return urls[0]
