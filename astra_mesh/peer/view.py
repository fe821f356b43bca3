"""The mesh as one of its peers sees it, for clients."""

from __future__ import annotations

from typing import TYPE_CHECKING

from astra_mesh import limits
from astra_mesh.mesh.connect import Address, show_address
from astra_mesh.mesh.link import Link
from astra_mesh.peer.places import TAB, dial_address, is_link_local
from astra_mesh.wire.codec import sanitise
from astra_mesh.wire.messages import (
    DeviceId,
    Hello,
    LinkInfo,
    ModelId,
    PeerId,
    PeerInfo,
    names_of,
)

if TYPE_CHECKING:
    from astra_mesh.peer.peer import Peer


def peer_list(peer: Peer) -> list[PeerInfo]:
    """The peer itself first."""
    mine = PeerInfo(
        peer=peer.id,
        name=peer.name,
        address=f"port {peer.port}",
        self=True,
        device=peer.device,
        models=peer.models.offers(),
        port=peer.port,
    )
    return [mine, *(_info(peer, link, hello) for link, hello in _linked(peer))]


def names_by_device(peer: Peer) -> dict[DeviceId, list[str]]:
    """Names of the peers that run now, of this one too, on each device of the mesh."""
    assert peer.trust is not None
    found = {peer.trust.device.id: [peer.name]}
    for other, hello in peer.others().items():
        if (device := peer.device_of(other)) is not None:
            found.setdefault(device, []).append(sanitise(hello.name, limits.NAME_CHARS))
    return found


def holders_of(peer: Peer, name: str) -> list[tuple[str, ModelId]]:
    """Names of other peers that offer a model by that name, and its id there."""
    return [
        (hello.name, offer.id)
        for _, hello in _linked(peer)
        for offer in (() if hello.via else hello.models)
        if name in names_of(offer)
    ]


def elsewhere(peer: Peer, model: ModelId) -> list[str]:
    """Addresses of other peers that hold a model and answer for it."""
    holders = [
        _place(peer, link, hello)
        for link, hello in _linked(peer)
        if not hello.via and any(offer.id == model for offer in hello.models)
    ]
    return holders[: limits.CLIENT_PLACES]


def address_of(peer: Peer, other: PeerId) -> str:
    """Where a client can ask another peer; "" where it cannot (a tab, or one that is gone)."""
    link, hello = peer.link(other), peer.others().get(other)
    if link is None or hello is None:
        return ""
    address = place(peer, link, hello)
    return "" if address is None else show_address(address)


def own_links(peer: Peer) -> list[LinkInfo]:
    """The links of the peer itself, as they are now."""
    return [_link_info(peer, link, hello) for link, hello in _linked(peer)]


def _link_info(peer: Peer, link: Link, hello: Hello) -> LinkInfo:
    address = place(peer, link, hello)
    host, port = ("", 0) if address is None or is_link_local(address[0]) else address
    return LinkInfo(
        peer=hello.peer,
        round_trip_s=link.round_trip_s,
        send_bps=link.send_bps,
        host=host,
        port=port,
    )


def _linked(peer: Peer) -> list[tuple[Link, Hello]]:
    found = [(peer.link(other), hello) for other, hello in peer.others().items()]
    return [(link, hello) for link, hello in found if link is not None and hello.device is not None]


def _info(peer: Peer, link: Link, hello: Hello) -> PeerInfo:
    assert hello.device is not None
    return PeerInfo(
        peer=hello.peer,
        name=hello.name,
        address=_place(peer, link, hello),
        self=False,
        device=hello.device,
        models=hello.models,
        round_trip_s=link.round_trip_s,
        send_bps=link.send_bps,
        receive_bps=link.receive_bps,
        port=hello.port,
        via=hello.via,
        links=peer.figures.of(hello.peer),
    )


def _place(peer: Peer, link: Link, hello: Hello) -> str:
    """Where a peer can be dialled; of one that cannot: where its link comes from."""
    if hello.via:
        return TAB
    address = place(peer, link, hello)
    return link.address if address is None else show_address(address)


def place(peer: Peer, link: Link, hello: Hello) -> Address | None:
    """Where a peer can be dialled, by what it announced, or by its link; None: nowhere."""
    if hello.via:
        return None
    return peer.announced(hello.peer) or dial_address(link, hello)
