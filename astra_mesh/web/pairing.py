"""``/v1/pairing``: what ``astra-mesh pair`` and ``unpair`` do, for the page.

Whoever may use the API (this machine, or who has the token) may decide who is in the mesh. The code
is told once, to whoever opened the window.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from astra_mesh.client import farewell
from astra_mesh.client.addresses import parse_address
from astra_mesh.client.farewell_words import NO_MESH, what_remains
from astra_mesh.client.pairing_post import post_at
from astra_mesh.client.pairing_search import pair_nearby
from astra_mesh.errors import NoPeerError
from astra_mesh.mesh.codes import as_uri, new_code, read_secret
from astra_mesh.mesh.invitations import Invitations
from astra_mesh.mesh.pairing_host import check_may_let_in, check_may_shut_out
from astra_mesh.mesh.roster import RosterBook
from astra_mesh.mesh.trust import Trust
from astra_mesh.naming import device_name
from astra_mesh.peer.view import names_by_device
from astra_mesh.web.body import decode
from astra_mesh.web.errors import ApiError, blaming
from astra_mesh.web.jsons import json_response
from astra_mesh.web.qr import drawing
from astra_mesh.web.requests import JoinRequest, NothingRequest, UnpairRequest
from astra_mesh.web.state import STATE
from astra_mesh.wire.messages import DeviceId


async def show(request: web.Request) -> web.Response:
    """Handle ``GET /v1/pairing``: the devices, and how the window stands."""
    return json_response(await _status(request))


async def open_window(request: web.Request, data: bytes) -> web.Response:
    """Handle ``POST /v1/pairing/open``: a window of two minutes; the only answer with its code."""
    decode(data, NothingRequest)
    trust, code = _trust(request), new_code()
    await asyncio.to_thread(trust.refresh)
    check_may_let_in(trust)
    peer = request.app[STATE].peer
    post = post_at(peer.config.listen, peer.port)
    uri = as_uri(code, post.far)
    await asyncio.to_thread(Invitations(trust.folder).open_window, read_secret(code))
    status = await _status(request)
    return json_response(
        status
        | {"code": code, "uri": uri, "addresses": list(post.near), "note": post.note}
        | {"qr": drawing(uri)}
    )


async def close(request: web.Request, data: bytes) -> web.Response:
    """Handle ``POST /v1/pairing/close``: the code holds no more; join keys stay."""
    decode(data, NothingRequest)
    trust = _trust(request)
    await asyncio.to_thread(Invitations(trust.folder).close, b"")
    return json_response(await _status(request))


async def join(request: web.Request, data: bytes) -> web.Response:
    """Handle ``POST /v1/pairing/join``: use the code that another device shows."""
    asked, trust = decode(data, JoinRequest), _trust(request)
    for place, text in enumerate(asked.at):
        with blaming(f"at[{place}]"):
            parse_address(text)
    with blaming("code"):  # it may hold addresses too
        secret = read_secret(asked.code)
        beside = "HOST:PORT, in the field beside it"
        paired = await pair_nearby(trust, secret, asked.at, field=beside)
    about = {"paired": paired.name, "paired_id": paired.device}
    return json_response(await _status(request) | about)


async def unpair(request: web.Request, data: bytes) -> web.Response:
    """Handle ``POST /v1/pairing/unpair``: shut a device out, everywhere."""
    asked, trust = decode(data, UnpairRequest), _trust(request)

    def decide(book: RosterBook) -> bool:
        found = [key for key, _ in book.find(asked.id) if key == asked.id]
        if not found:
            text = "no other device of this mesh has this id; /v1/pairing lists them"
            raise ApiError(404, text, "device_not_found", "id")
        check_may_shut_out(book, trust.device.id)
        book.shut_out(found[0])
        return True

    await asyncio.to_thread(trust.change, decide)
    return json_response(await _status(request))


async def leave(request: web.Request, data: bytes) -> web.Response:
    """Handle ``POST /v1/pairing/leave``: take this device out of its mesh, telling the others."""
    decode(data, NothingRequest)
    trust = _trust(request)
    await asyncio.to_thread(trust.refresh)
    if trust.book.alone and not trust.book.is_leaving:
        raise ApiError(409, NO_MESH, "no_mesh")
    running = names_by_device(request.app[STATE].peer)  # nobody is linked afterwards
    said = what_remains(await farewell.leave(trust), trust.device.id, running)
    return json_response(await _status(request) | {"said": said})


def _trust(request: web.Request) -> Trust:
    trust = request.app[STATE].peer.trust
    if trust is None:
        raise NoPeerError("this peer is not started yet; ask again in a second")
    return trust


async def _status(request: web.Request) -> dict[str, Any]:
    peer, trust = request.app[STATE].peer, _trust(request)
    return await asyncio.to_thread(_read_status, trust, names_by_device(peer))


def _read_status(trust: Trust, running: Mapping[DeviceId, list[str]]) -> dict[str, Any]:
    """With the names of the peers that run now, by device. Blocks."""
    trust.refresh()
    window = Invitations(trust.folder).window()
    devices = [
        {
            "id": key,
            "name": device_name(one.name, running.get(key, ())),
            "peers": running.get(key, []),
            "self": key == trust.device.id,
            "until": one.until or None,
        }
        for key, one in trust.members().items()
    ]
    shown = None
    if window is not None:
        shown = {
            "open": not window.came and not window.refused and not window.guessed_out,
            "until": window.until,  # of two windows never the same
            "seconds_left": max(0, round(window.until - time.time())),
            "tries_left": window.tries,
            "came": window.came,
            "came_ids": window.devices,
        }
    return {"object": "pairing", "devices": devices, "window": shown}
