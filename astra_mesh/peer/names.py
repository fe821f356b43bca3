"""Finding peers through one name that stands for all, as the headless service of a cluster."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence

from astra_mesh import limits
from astra_mesh.mesh.connect import Address

log = logging.getLogger(__name__)


async def watch_names(
    names: Sequence[Address],
    came: Callable[[str, int], None],
    went: Callable[[str, int], None],
) -> None:
    """Ask for the addresses of names again and again, until cancelled.

    Args:
        names: Host name and port of the peers behind it.
        came: Called with each address that is new.
        went: Called with each that is no longer behind its name.
    """
    known: set[Address] = set()
    complaint = ""
    while True:
        here: set[Address] = set()
        for host, port in names:
            try:
                here |= await addresses_of(host, port)
            except (OSError, TimeoutError) as error:
                here |= known  # the name server is away; what it said last may still hold
                text = f"the name {host} has no address ({str(error) or 'no answer'}); trying again"
                log.log(logging.DEBUG if text == complaint else logging.WARNING, "%s", text)
                complaint = text
        tell_changes(known, here, came, went)
        known = here
        await asyncio.sleep(limits.NAMES_POLL_S)


def tell_changes(
    before: set[Address],
    now: set[Address],
    came: Callable[[str, int], None],
    went: Callable[[str, int], None],
) -> None:
    """Call with each address that is new, and with each that is there no more."""
    for address in sorted(now - before):
        came(*address)
    for address in sorted(before - now):
        went(*address)


async def addresses_of(host: str, port: int) -> set[Address]:
    """All that stand behind a name now.

    Raises:
        OSError, TimeoutError: None, or the name server does not answer.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(limits.RESOLVE_TIMEOUT_S):
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return {(str(place[0]), port) for *_, place in found}
