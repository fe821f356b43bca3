"""Pairing where it was said, else with whoever on this network knows the code or key."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import Final

from astra_mesh.client.addresses import parse_address
from astra_mesh.client.nearby import search
from astra_mesh.errors import AstraMeshError, PairingError
from astra_mesh.mesh.codes import Secret, read_key
from astra_mesh.mesh.connect import Address, show_address
from astra_mesh.mesh.invitations import Invitations
from astra_mesh.mesh.meeting import MeetingPlaces
from astra_mesh.mesh.pairing_guest import Paired, pair_any, pair_first
from astra_mesh.mesh.trust import Trust

log = logging.getLogger(__name__)

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
    await asyncio.to_thread(_check_not_own, trust, secret)
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


def _check_not_own(trust: Trust, secret: Secret) -> None:
    window = Invitations(trust.folder).window()
    if window is not None and window.password == secret.password:
        raise PairingError(
            "this device itself shows that code: give it to `astra-mesh pair CODE` on the other one"
        )


async def join_by_key(
    trust: Trust, key: str, at: Iterable[str] = (), names: Sequence[Address] = ()
) -> Paired | None:
    """For boards: try until a device takes the key; None if this device has paired before.

    Args:
        trust: Of this device.
        key: That the other device made.
        at: Addresses of it.
        names: Each with an address for every peer, one of which may be that device.

    Raises:
        InputError: It is no join key.
    """
    secret = read_key(key)
    complained = False
    while trust.book.alone:
        try:
            places = [*at, *await _behind(names)]
            return await pair_nearby(trust, secret, places, field="--peer HOST:PORT")
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


async def _behind(names: Sequence[Address]) -> list[str]:
    """The addresses that stand behind names now."""
    from astra_mesh.peer.names import addresses_of

    found: set[Address] = set()
    for host, port in names:
        try:
            found |= await addresses_of(host, port)
        except (OSError, TimeoutError) as error:
            why = str(error) or "no answer"
            raise PairingError(f"the name {host} (--peers-at) has no address: {why}") from error
    return [show_address(address) for address in sorted(found)]
