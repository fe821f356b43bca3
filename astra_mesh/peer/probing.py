"""Measuring the links of a peer, for as long as they last."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import Final

from astra_mesh import limits
from astra_mesh.errors import MeshError
from astra_mesh.mesh.link import Link

log = logging.getLogger(__name__)

_ALIKE: Final = 1.25  # times: two measurements of one link may differ by as much
_SLOWER: Final = 2.0  # times as long is waited after each measurement that agrees
_JITTER: Final = 0.2  # of a wait, either way: the two ends do not stay in step


class Rhythm:
    """How long a link is left alone after a probe, without I/O and without a clock.

    What was measured while a device or a link was busy is soon measured again; where two agree,
    the next one comes later, up to PROBE_EVERY_S. A probe that took long makes the wait longer, so
    that a thin link is not kept busy by them.
    """

    def __init__(self) -> None:
        self.wait_s = self._own_s = limits.PROBE_AGAIN_S
        self._before: float | None = None

    def probed(self, bps: float | None, took_s: float) -> None:
        """A probe found this (None: nothing), and the link was busy with it for so long."""
        if bps is not None and self._before is not None and _alike(bps, self._before):
            self._own_s = min(self._own_s * _SLOWER, limits.PROBE_EVERY_S)
        else:
            self._own_s = limits.PROBE_AGAIN_S
        self._before = bps
        spared_s = min(took_s / limits.PROBE_SHARE, limits.PROBE_RARELY_S)
        self.wait_s = max(self._own_s, spared_s)


def _alike(one: float, other: float) -> bool:
    """Whether two throughputs are the same for every plan."""
    low, high = sorted(min(bps, limits.PLENTY_BPS) for bps in (one, other))
    return high <= _ALIKE * low


async def probe(link: Link, is_busy: Callable[[], bool]) -> None:
    """Measure a link, and again when its traffic has not for a while, or when it comes back from
    silence, until it is over.

    Args:
        link: Open.
        is_busy: Whether this peer works on requests: only the first probe does not wait for them.
    """
    rhythm = Rhythm()
    while True:
        outages = link.outages
        if not link.is_measured and not link.is_silent:
            rhythm.probed(*await _measured(link))
        if await link.wait_closed(rhythm.wait_s * random.uniform(1 - _JITTER, 1 + _JITTER)):
            return
        while is_busy():
            if await link.wait_closed(limits.PROBE_IDLE_S):
                return
        if link.outages > outages:
            rhythm = Rhythm()
            link.doubt()
            if await link.wait_closed(limits.PROBE_SETTLE_S):
                return


async def _measured(link: Link) -> tuple[float | None, float]:
    """What a probe found, if anything, and for how long the link was busy with it."""
    began = time.monotonic()
    try:
        bps = await link.probe()
    except MeshError as error:
        log.debug("no throughput of %s: %s", link.address, error.message)
        return None, time.monotonic() - began
    return bps, time.monotonic() - began
