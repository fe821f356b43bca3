"""Measuring the links of a peer, for as long as they last."""

from __future__ import annotations

import logging
import random

from astra_mesh import limits
from astra_mesh.errors import MeshError
from astra_mesh.mesh.link import Link

log = logging.getLogger(__name__)


async def probe(link: Link) -> None:
    """Measure a link, and again when its traffic has not for a while, until it is over."""
    while True:
        try:
            if not link.is_measured and not link.is_silent:
                await link.probe()
        except MeshError as error:
            log.debug("no throughput of %s: %s", link.address, error.message)
        if await link.wait_closed(limits.PROBE_EVERY_S * random.uniform(0.8, 1.2)):
            return
