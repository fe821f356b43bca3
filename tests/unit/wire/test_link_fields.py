"""Fields that came later: links of the sender, and names of copies. Older peers lack them."""

from __future__ import annotations

from typing import Any

import msgpack  # type: ignore[import-untyped]
import msgspec
import pytest

from astra_mesh import limits
from astra_mesh.errors import ProtocolError
from astra_mesh.wire.codec import decode, encode
from astra_mesh.wire.messages import LinkInfo, PeerId, Peers, Status, names_of
from tools import make_vectors as vectors

WITH_LINKS = vectors.MESSAGES["status with links"]
WITH_COPIES = vectors.MESSAGES["status with copies"]


def without(frame: bytes, *names: str) -> bytes:
    """The frame as an older peer sends it."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: strip(one) for key, one in value.items() if key not in names}
        return [strip(one) for one in value] if isinstance(value, list) else value

    return bytes(msgpack.packb(strip(msgpack.unpackb(frame))))


def test_they_come_through() -> None:
    assert decode(encode(WITH_LINKS)) == WITH_LINKS
    found = decode(encode(WITH_COPIES))
    assert isinstance(found, Status)
    assert names_of(found.models[0]) == ["tiny-gpt2", "words", "words-2"]


def test_what_an_older_peer_sends_lacks_them() -> None:
    for message in (WITH_LINKS, WITH_COPIES, vectors.MESSAGES["peers"]):
        found = decode(without(encode(message), "links", "also"))
        if isinstance(found, Status):
            assert found.links == []
        offers = found.models if isinstance(found, Status) else []
        assert all(offer.also == [] for offer in offers)
        if isinstance(found, Peers):
            assert all(one.links == [] for one in found.peers)


def test_an_older_peer_reads_what_it_knows() -> None:
    class OlderStatus(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
        models: list[dict[str, Any]]

    _, body = msgpack.unpackb(encode(WITH_COPIES))
    assert len(msgspec.convert(body, OlderStatus).models) == 1


LINK = LinkInfo(peer=vectors.A)


@pytest.mark.parametrize(
    "links",
    [
        [LINK] * (limits.LINKS_TOLD + 1),
        [LinkInfo(peer=PeerId("no id"))],
        [LinkInfo(peer=vectors.A, round_trip_s=-1.0)],
        [LinkInfo(peer=vectors.A, send_bps=float("nan"))],
        [LinkInfo(peer=vectors.A, send_bps=float("inf"))],
    ],
)
def test_links_out_of_range(links: list[LinkInfo]) -> None:
    with pytest.raises(ProtocolError):
        encode(Status(models=[], links=links))


@pytest.mark.parametrize(
    "names", [["x"] * (limits.NAMES_PER_MODEL + 1), [""], ["two\nlines"], ["x" * 65]]
)
def test_names_of_copies_out_of_range(names: list[str]) -> None:
    offer = msgspec.structs.replace(vectors.OFFER, also=names)
    with pytest.raises(ProtocolError):
        encode(Status(models=[offer]))


def test_the_largest_list_of_peers_fits_in_a_frame() -> None:
    (one, *_) = vectors.MESSAGES["peers"].peers  # type: ignore[union-attr]
    links = [LinkInfo(peer=vectors.A, round_trip_s=0.1, send_bps=1e9)] * limits.LINKS_TOLD
    peers = [msgspec.structs.replace(one, links=links)] * limits.LINKS
    assert len(encode(Peers(request=vectors.REQUEST, peers=peers))) < limits.CONTROL_FRAME_BYTES
