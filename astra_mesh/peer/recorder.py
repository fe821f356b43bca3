"""Writing down when each step of each request happened, for benchmarks and the laboratory."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astra_mesh.peer.exchange import MeshExchange
from astra_mesh.wire.messages import PeerId, RequestId

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recorder:
    """Writes one JSON file for each request that a peer answers or takes part in.

    Files of one request have the same name in every peer's folder: the id that peers use.
    """

    folder: Path
    peer: PeerId
    name: str

    async def write(self, request: RequestId, exchange: MeshExchange) -> None:
        """Keep what was noted, however the request ended; a full disk is only logged."""
        if exchange.timeline is not None:
            document = {**self._about(request, exchange), **exchange.timeline.document()}
            await asyncio.to_thread(self._write, f"{request:016x}.json", document)

    def _about(self, request: RequestId, exchange: MeshExchange) -> dict[str, Any]:
        layout, shard = exchange.layout, exchange.shard
        return {
            "request": f"{request:016x}",
            "peer": self.peer,
            "name": self.name,
            "shard": shard,
            "answering": layout.answering() == shard,
            "bounds": [list(bound) for bound in layout.bounds],
            "peers": exchange.peers,
        }

    def _write(self, name: str, document: dict[str, Any]) -> None:
        beside = self.folder / f".{name}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps(document))
            beside.replace(self.folder / name)
        except OSError as error:
            log.warning("a request is not recorded: %s", error)
