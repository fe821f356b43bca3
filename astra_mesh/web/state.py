"""What all handlers of one API share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from aiohttp import web

from astra_mesh.peer import Peer
from astra_mesh.web.body import Budget
from astra_mesh.web.config import ApiConfig
from astra_mesh.web.crowd import Crowd
from astra_mesh.web.door import Door
from astra_mesh.web.metrics import Metrics
from astra_mesh.web.tab_envelope import Envelopes
from astra_mesh.web.templates import Templates


@dataclass
class State:
    """One API."""

    peer: Peer
    config: ApiConfig
    door: Door
    metrics: Metrics
    crowd: Crowd
    templates: Templates = field(default_factory=Templates)
    budget: Budget = field(default_factory=Budget)
    envelopes: Envelopes = field(default_factory=Envelopes)
    pages: int = 0  # that look on
    tabs: int = 0  # that take part
    ending: bool = False  # it stops: pages are told to go


STATE: Final = web.AppKey("state", State)
