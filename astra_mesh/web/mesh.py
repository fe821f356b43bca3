"""``/v1/mesh``: the peers of the mesh and their links, as the peer behind the API sees them."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from astra_mesh.web.jsons import json_response
from astra_mesh.web.state import STATE
from astra_mesh.wire.messages import LinkInfo, PeerInfo, names_of


async def mesh(request: web.Request) -> web.Response:
    """Handle ``GET /v1/mesh``."""
    found = request.app[STATE].peer.peer_list()
    peers = [
        peer_entry(one) | {"holds": [name for offer in one.models for name in names_of(offer)]}
        for one in found
    ]
    return json_response({"object": "mesh", "peers": peers})


def peer_entry(one: PeerInfo) -> dict[str, Any]:
    """One peer: its link from here, and what it tells of its own links."""
    return {
        "id": one.peer,
        "name": one.name,
        "self": one.self,
        "address": one.address,
        "via": one.via,
        "system": one.device.system,
        "cores": one.device.cores,
        "host": one.device.host,
        "round_trip_s": _rounded(one.round_trip_s),
        "send_bps": _rounded(one.send_bps),
        "receive_bps": _rounded(one.receive_bps),
        "links": [_link_entry(link) for link in one.links],
    }


def _link_entry(one: LinkInfo) -> dict[str, Any]:
    return {
        "id": one.peer,
        "round_trip_s": _rounded(one.round_trip_s),
        "send_bps": _rounded(one.send_bps),
    }


def _rounded(value: float | None) -> float | None:
    """Three digits: what changes less is no news."""
    return None if value is None else float(f"{value:.3g}")
