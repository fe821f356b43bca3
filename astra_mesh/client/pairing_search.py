"""Where a device with an open window may be: said with the code, or announced on this network."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Iterable
from typing import Final

from astra_mesh.client.addresses import parse_address
from astra_mesh.errors import AstraMeshError, PairingError
from astra_mesh.mesh.codes import Secret, read_secret
from astra_mesh.mesh.connect import Address
from astra_mesh.mesh.discovery import Discovery
from astra_mesh.mesh.pairing_guest import Paired, pair_any
from astra_mesh.mesh.trust import Trust
from astra_mesh.wire.messages import PeerId

log = logging.getLogger(__name__)

SEARCH_S: Final = 5.0  # announcements are repeated within it
_SETTLE_S: Final = 0.7  # after the first was found
_AGAIN_S: Final = 5.0  # between two tries with a join key


async def addresses_for(secret: Secret, at: Iterable[str] = ()) -> list[Address]:
    """Where to try a code or key, the most probable first.

    Raises:
        InputError: What was typed is no address.
        PairingError: Nobody is here.
    """
    said = [parse_address(text) for text in (*at, *secret.addresses)]
    found = said or await search()
    if not found:
        raise PairingError(
            "no other device was found on this network; name it with --at HOST:PORT (the other "
            "device shows its addresses), and check that both are in the same Wi-Fi"
        )
    return found


async def search() -> list[Address]:
    """One address of each peer that announces itself, within :data:`SEARCH_S`."""
    found: dict[PeerId, list[Address]] = {}
    first = asyncio.Event()

    def on_found(peer: PeerId, name: str, addresses: list[Address]) -> None:
        found[peer] = addresses
        first.set()

    me = PeerId(secrets.token_hex(32))
    watch = Discovery(me, "", None, on_found=on_found, on_gone=lambda peer: None)
    task = asyncio.create_task(watch.run(), name="astra_mesh search")
    try:
        async with asyncio.timeout(SEARCH_S):
            await first.wait()
            await asyncio.sleep(_SETTLE_S)
    except TimeoutError:
        pass
    finally:
        task.cancel()
        await asyncio.wait([task])
    return [addresses[0] for addresses in found.values()]


async def join_by_key(trust: Trust, key: str, at: Iterable[str] = ()) -> Paired | None:
    """For boards: try until a device takes the key; None if this device has paired before.

    Raises:
        InputError: It is no join key.
    """
    secret = read_secret(key)
    complained = False
    while trust.book.alone:
        try:
            return await pair_any(trust, secret, await addresses_for(secret, at))
        except AstraMeshError as error:
            log.log(
                logging.DEBUG if complained else logging.WARNING,
                "not joined yet, trying again: %s",
                error.message,
            )
            complained = True
        await asyncio.sleep(_AGAIN_S)
        await asyncio.to_thread(trust.refresh)
    return None
