"""Who has a model: among the peers that the asked one knows, and among those that they know."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from string import hexdigits
from typing import TYPE_CHECKING, Final

from astra_mesh import limits
from astra_mesh.client.addresses import parse_address
from astra_mesh.errors import InputError, MeshError, UnknownModelError
from astra_mesh.mesh.connect import Address, Secure
from astra_mesh.mesh.interfaces import is_loopback
from astra_mesh.mesh.timings import Timings
from astra_mesh.wire.messages import ModelId, PeerId, PeerInfo, names_of

if TYPE_CHECKING:
    from pathlib import Path

    from astra_mesh.client.mesh import Mesh

_ID_DIGITS: Final = 8  # of an id, at least: fewer are names
_LOOK_S: Final = 0.2  # between two looks who came


@dataclass(frozen=True)
class Holder:
    """A peer that has the model."""

    name: str
    address: Address
    secure: Secure | None = None  # None: without TLS, for tests


@dataclass(frozen=True)
class Holders:
    """A model, and who has it."""

    model: ModelId
    name: str
    peers: tuple[Holder, ...]


def holders_of(
    wanted: str, peers: Sequence[PeerInfo], asked: Address, secure: Secure | None = None
) -> Holders:
    """Who has a model, by one of its names or the first digits of its id.

    Those that call it otherwise come last: their tokenizers and codebooks may be others.

    Args:
        wanted: Name or id.
        peers: The mesh as the peer at ``asked`` sees it.
        asked: Where that one was asked.
        secure: How members are dialled.

    Raises:
        UnknownModelError: Nobody has it.
        InputError: Several models have this name.
    """
    found: dict[ModelId, tuple[str, list[Holder]]] = {}
    for peer in peers:
        address = place_of(peer, asked)
        for offer in peer.models if address is not None else ():
            named = wanted in names_of(offer)
            if address is not None and (named or _is_start(wanted, offer.id)):
                name = wanted if named else offer.name
                holders = found.setdefault(offer.id, (name, []))[1]
                holders.append(Holder(peer.name, address, secure))
    if not found:
        names = sorted({one for peer in peers for offer in peer.models for one in names_of(offer)})
        raise UnknownModelError(
            f"no peer here has a model {wanted[:100]!a}; they have: {', '.join(names) or 'none'}. "
            f"{_hint(wanted)}"
        )
    if len(found) > 1:
        ids = ", ".join(model[:12] for model in found)
        raise InputError(f"several models are called {wanted[:100]!a}; name one by its id: {ids}")
    ((model, (name, holders)),) = found.items()
    return Holders(model, name, (*holders, *_others(model, holders, peers, asked, secure)))


def _others(
    model: ModelId,
    known: Sequence[Holder],
    peers: Sequence[PeerInfo],
    asked: Address,
    secure: Secure | None,
) -> Iterator[Holder]:
    """Who also has a model, by whatever name."""
    places = {one.address for one in known}
    for peer in peers:
        address = place_of(peer, asked)
        held = any(offer.id == model for offer in peer.models)
        if held and address is not None and address not in places:
            yield Holder(peer.name, address, secure)


def place_of(peer: PeerInfo, asked: Address) -> Address | None:
    """Where a peer of a list can be dialled from here; None: nowhere.

    Args:
        peer: As the peer at ``asked`` sees it, for whom its own machine is the loopback.
        asked: Where that one was asked.
    """
    if peer.self:
        return asked
    if peer.via or not peer.port:
        return None
    try:
        host, _ = parse_address(peer.address)
    except InputError:
        return None
    return (asked[0] if is_loopback(host) else host), peer.port


def _is_start(wanted: str, model: ModelId) -> bool:
    return len(wanted) >= _ID_DIGITS and model.startswith(wanted.lower())


def _hint(wanted: str) -> str:
    """What may have been meant."""
    if len(wanted) < _ID_DIGITS and not set(wanted.lower()) - set(hexdigits):
        return f"Of an id, the first {_ID_DIGITS} digits are needed"
    return "A repository of the hub has a slash: ORG/NAME"


async def seek(
    wanted: str, mesh: Mesh, secure: Secure | None = None, trust_dir: Path | None = None
) -> Holders:
    """Who has a model, however far away: peers that the asked one has no link to are asked too.

    Raises:
        UnknownModelError: Nobody has it.
        InputError: Several models have this name.
        MeshError: The asked peer went away.
    """
    peers = await mesh.peers()
    end = asyncio.get_running_loop().time() + limits.SEEK_S
    while True:
        try:
            return holders_of(wanted, peers, mesh.peer_address, secure)
        except UnknownModelError as error:
            unknown = error
        # The peer inside this process began a moment ago, and others come one after the other.
        if not mesh.embedded or asyncio.get_running_loop().time() > end:
            break
        await asyncio.sleep(_LOOK_S)
        peers = await mesh.peers()
    async with aclosing(_beyond(peers, mesh.peer_address, trust_dir)) as others:
        async for further, asked in others:
            with suppress(UnknownModelError):
                far = holders_of(wanted, further, asked, secure)
                near = _others(far.model, far.peers, peers, mesh.peer_address, secure)
                return Holders(far.model, far.name, (*far.peers, *near))
    raise unknown


async def _beyond(
    peers: Sequence[PeerInfo], asked: Address, trust_dir: Path | None
) -> AsyncGenerator[tuple[list[PeerInfo], Address], None]:
    """What the other peers see, the nearest first, and where each was asked."""
    known: set[PeerId] = set()
    places = deque(_new(peers, asked, known))
    for _ in range(limits.SEEK_PEERS):
        if not places:
            return
        place = places.popleft()
        further = await _list(place, trust_dir)
        if further:
            yield further, place
        places += _new(further, place, known)


def _new(peers: Iterable[PeerInfo], asked: Address, known: set[PeerId]) -> Iterator[Address]:
    """Where those can be asked that were not known yet."""
    for peer in peers:
        place = place_of(peer, asked)
        if peer.peer not in known:
            known.add(peer.peer)
            if place is not None and not peer.self:
                yield place


async def _list(place: Address, trust_dir: Path | None) -> list[PeerInfo]:
    """The mesh as the peer there sees it; empty if it does not answer."""
    from astra_mesh.client.mesh import Mesh

    timings = Timings(dial_s=limits.CLIENT_MOVE_S)
    try:
        async with Mesh(place, timings=timings, trust_dir=trust_dir, stays=True) as mesh:
            return await mesh.peers()
    except MeshError:
        return []
