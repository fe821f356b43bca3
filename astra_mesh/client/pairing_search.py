"""Where a device with an open window may be: said with the code, or announced on this network."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Iterable
from typing import Final

from astra_mesh import limits
from astra_mesh.client.addresses import parse_address
from astra_mesh.errors import AstraMeshError, PairingError
from astra_mesh.mesh.codes import Secret, read_key
from astra_mesh.mesh.connect import Address
from astra_mesh.mesh.discovery import Discovery
from astra_mesh.mesh.meeting import MeetingPlaces
from astra_mesh.mesh.pairing_guest import Paired, pair_any, pair_first
from astra_mesh.mesh.trust import Trust
from astra_mesh.wire.messages import PeerId

log = logging.getLogger(__name__)

SEARCH_S: Final = 5.0  # announcements are repeated within it
_AGAIN_S: Final = 5.0  # between two tries with a join key


async def pair_nearby(
    trust: Trust, secret: Secret, at: Iterable[str] = (), *, field: str = "--at HOST:PORT"
) -> Paired:
    """Pair where it was said, else with whoever on this network knows the secret.

    An address that was said is kept: peers of this device dial it from then on.

    Args:
        trust: Of this device.
        secret: That the other device showed.
        at: Addresses of the other device; empty: it is looked for.
        field: How a person says such an address, for the error.

    Raises:
        InputError: What was typed is no address.
        PairingError: Nobody is here, or none of them knows it.
        IdentityError: The address cannot be kept.
    """
    said = [parse_address(text) for text in (*at, *secret.addresses)]
    if said:
        paired = await pair_any(trust, secret, said)
        places = MeetingPlaces(trust.folder)
        await asyncio.to_thread(places.keep, paired.device, paired.address)
        return paired
    paired_here = await pair_first(trust, secret, search())
    if paired_here is not None:
        return paired_here
    raise PairingError(
        f"no other device was found on this network; give its address too ({field}): it shows that "
        "beside the code. And check that both are in the same Wi-Fi"
    )


async def search() -> AsyncGenerator[list[Address], None]:
    """The addresses of each peer that announces itself within :data:`SEARCH_S`, as it is found;
    more of them later, also where somebody else announced other ones under its id before.
    """
    places: asyncio.Queue[list[Address]] = asyncio.Queue(limits.CANDIDATES)
    known: set[tuple[PeerId, Address]] = set()

    def on_found(peer: PeerId, name: str, addresses: list[Address]) -> None:
        fresh = [address for address in addresses if (peer, address) not in known]
        if fresh and not places.full():
            known.update((peer, address) for address in fresh)
            places.put_nowait(fresh)

    me = PeerId(secrets.token_hex(32))
    watch = Discovery(me, "", None, on_found=on_found, on_gone=lambda peer: None)
    task = asyncio.create_task(watch.run(), name="astra_mesh search")
    end = asyncio.get_running_loop().time() + SEARCH_S
    try:
        while True:
            try:
                async with asyncio.timeout_at(end):
                    place = await places.get()
            except TimeoutError:
                return
            yield place
    finally:
        task.cancel()
        await asyncio.wait([task])


async def join_by_key(trust: Trust, key: str, at: Iterable[str] = ()) -> Paired | None:
    """For boards: try until a device takes the key; None if this device has paired before.

    Raises:
        InputError: It is no join key.
    """
    secret = read_key(key)
    complained = False
    while trust.book.alone:
        try:
            return await pair_nearby(trust, secret, at)
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
