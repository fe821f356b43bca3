"""What is there: models, health, figures."""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web

from astra_mesh._version import __version__
from astra_mesh.client import ModelEntry
from astra_mesh.client.answers import models_of
from astra_mesh.errors import UnknownModelError
from astra_mesh.peer import Peer
from astra_mesh.web.errors import ApiError
from astra_mesh.web.jsons import json_response
from astra_mesh.web.metrics import CONTENT_TYPE
from astra_mesh.web.state import STATE
from astra_mesh.wire.messages import names_of

_STARTED = int(time.time())  # OpenAI's clients want a time of creation


async def models(request: web.Request) -> web.Response:
    """Handle ``GET /v1/models``: the models that can be asked for here."""
    found = [_entry(one) for one in _models(request.app[STATE].peer)]
    return json_response({"object": "list", "data": found})


async def model(request: web.Request) -> web.Response:
    """Handle ``GET /v1/models/NAME``."""
    peer, name = request.app[STATE].peer, request.match_info["model"]
    if not name.isprintable():
        raise UnknownModelError("no model has such a name; /v1/models lists those here")
    wanted = peer.models.find(name[:200])
    found = [one for one in _models(peer) if one.id == wanted]
    named = [one for one in found if one.name == name] or found  # or asked for by its id
    return json_response(_entry(named[0]))


def _models(peer: Peer) -> list[ModelEntry]:
    """The models of this peer; a request for another one has no coordinator here."""
    own = {(name, offer.id) for offer in peer.models.offers() for name in names_of(offer)}
    return [one for one in models_of(peer.peer_list()) if (one.name, one.id) in own]


def _entry(one: ModelEntry) -> dict[str, Any]:
    about = {
        "id": one.id,
        "family": one.family,
        "tasks": [task.value for task in one.tasks],
        "peers": list(one.peers),
    }
    entry = {"id": one.name, "object": "model", "created": _STARTED, "owned_by": "astra_mesh"}
    return entry | {"x_astra_mesh": about}


async def health(request: web.Request) -> web.Response:
    """Handle ``GET /health``: says little, because it needs no token."""
    if not request.app[STATE].peer.port:
        raise ApiError(503, "the peer behind this API has stopped; start it again", "stopped")
    return json_response({"status": "ok", "version": __version__})


async def metrics(request: web.Request) -> web.Response:
    """Handle ``GET /metrics``."""
    state = request.app[STATE]
    text = state.metrics.text(len(state.peer.others()) + 1, len(state.peer.models.offers()))
    return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE})
