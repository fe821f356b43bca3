"""What the log is told about links and models that fail: once, however often they do."""

from __future__ import annotations

import logging

from astra_mesh import limits
from astra_mesh.errors import MeshError, PeerLostError
from astra_mesh.mesh.link import Link

log = logging.getLogger(__name__)


class Complaints:
    """Warnings of one peer."""

    def __init__(self) -> None:
        self._made: set[str] = set()

    def never_opened(
        self, link: Link, error: MeshError | None, *, dialled: bool, linked: bool
    ) -> None:
        """A link without a hello. Those that come in have another port each time; who only looks
        whether this peer answers (``doctor``, ``pair --list``) is no trouble, and neither is a
        link to a peer that is ``linked`` by another one.
        """
        if link.looked_only:
            log.debug("%s looked whether this peer answers", link.address)
            return
        why = error.message if error is not None else "it left without a hello"
        if linked and isinstance(error, PeerLostError):
            log.debug("%s, to which there is another link: %s", link.address, why)
            return
        place = link.address if dialled else link.address.rpartition(":")[0] or link.address
        self.make(f"{place}: {why}")

    def make(self, text: str) -> None:
        """Warn once: what fails is tried again for ever, and others may knock as often."""
        if text in self._made or len(self._made) >= limits.CANDIDATES:
            log.debug("%s", text)
            return
        self._made.add(text)
        log.warning("%s", text)
