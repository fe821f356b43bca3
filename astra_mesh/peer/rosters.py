"""Rosters on the links of a peer: what it tells others, and what they tell it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from astra_mesh.errors import MeshError, ProtocolError
from astra_mesh.mesh.link import Link
from astra_mesh.mesh.trust import Known
from astra_mesh.peer import tasks
from astra_mesh.peer.security import Security
from astra_mesh.wire.messages import Reason, Role, Roster

log = logging.getLogger(__name__)


class Rosters:
    """Sends and takes rosters.

    Args:
        security: Of the peer.
        on_change: called when a roster changed whom this device trusts.
    """

    def __init__(self, security: Security, on_change: Callable[[], None]) -> None:
        self._security, self._on_change = security, on_change
        self._waiting: dict[Link, Roster] = {}  # that came and were not judged yet

    def tell(self, link: Link, known: Known) -> None:
        """Other devices are told whom this one trusts. Programs of this device read its file, and
        tabs need not know. Who is in another mesh, since this device left, is told nothing.
        """
        trust = self._security.trust
        is_peer = link.peer is not None and link.peer.role is Role.PEER
        is_other = known.device != trust.device.id and known.via is None
        if is_peer and is_other and link.is_open and trust.book.knows(known.device):
            link.send(trust.book.message())

    def came(self, group: asyncio.TaskGroup, link: Link, known: Known, roster: Roster) -> None:
        """One at a time is judged for each link, and of those that wait only the newest."""
        busy = link in self._waiting
        self._waiting[link] = roster
        if not busy:
            tasks.start(group, "the roster", self._take, link, known)

    async def _take(self, link: Link, known: Known) -> None:
        taken: Roster | None = None
        try:
            while (roster := self._waiting[link]) is not taken:
                taken = roster
                await self._security.note_told(roster, known.device)
                await self._security.take(roster, known.device, self._on_change)
        except ProtocolError as error:
            link.refuse(Reason.BAD_MESSAGE, error.message, error)
        except MeshError as error:
            log.error("%s", error.message)
        finally:
            del self._waiting[link]
