"""What a running peer does about trust: its TLS, and news of the roster."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from contextlib import suppress

from astra_mesh import limits
from astra_mesh.errors import IdentityError
from astra_mesh.mesh.connect import Secure
from astra_mesh.mesh.identity import Identity
from astra_mesh.mesh.sealed import Speaker
from astra_mesh.mesh.told import Told
from astra_mesh.mesh.trust import TlsPair, Trust
from astra_mesh.wire.messages import DeviceId, Roster

log = logging.getLogger(__name__)


class Security:
    """The trust of a device, as one of its peers uses it. Making it blocks.

    Args:
        trust: Of the device.
        identity: Of the peer.
    """

    def __init__(self, trust: Trust, identity: Identity) -> None:
        self.trust, self.identity = trust, identity
        self.speaker = Speaker.of(identity)
        self._tls: TlsPair = trust.tls(identity)
        self._members = frozenset(trust.members())
        self._turn = asyncio.Lock()  # one change is carried through before the next

    def server(self) -> ssl.SSLContext:
        """For connections that come in now."""
        return self._tls.server

    def dialling(self) -> Secure:
        """For the next dial."""
        return Secure(self._tls.client, self.trust.whose_connection)

    async def watch(self, on_change: Callable[[], None]) -> None:
        """Until cancelled: see when this process changed the roster, look whether another one did,
        or whether a membership ran out.
        """
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        self.trust.on_change = lambda: loop.call_soon_threadsafe(changed.set)
        complained = False
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(limits.TRUST_POLL_S):
                        await changed.wait()
                changed.clear()
                try:
                    await asyncio.to_thread(self.trust.refresh)
                    complained = False
                except IdentityError as error:
                    if not complained:
                        log.error("%s", error.message)
                    complained = True
                await self._follow(on_change)
        finally:
            self.trust.on_change = lambda: None

    async def take(self, roster: Roster, sender: DeviceId, on_change: Callable[[], None]) -> None:
        """News from a member.

        Raises:
            ProtocolError: They are forged or malformed.
            IdentityError: They cannot be kept.
        """
        await asyncio.to_thread(self.trust.merge, roster, sender)
        await self._follow(on_change)

    async def settle(self, on_change: Callable[[], None]) -> None:
        """If this device is leaving its mesh: forget that now.

        Raises:
            IdentityError: It cannot be kept.
        """
        await asyncio.to_thread(self.trust.settle)
        await self._follow(on_change)

    async def note_told(self, roster: Roster, sender: DeviceId) -> None:
        """Keep that a device knows that this one leaves, if its roster says so.

        Raises:
            IdentityError: It cannot be kept.
        """
        book = self.trust.book
        if book.is_heard_in(roster):
            told = Told(self.trust.folder, book.farewell)
            await asyncio.to_thread(told.note, sender)

    async def _follow(self, on_change: Callable[[], None]) -> None:
        async with self._turn:
            members = frozenset(self.trust.members())
            if self._tls.version == self.trust.version and members == self._members:
                return
            self._tls = await asyncio.to_thread(self.trust.tls, self.identity)
            self._members = members
            on_change()
