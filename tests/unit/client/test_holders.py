"""Who has a model, by what peers list."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec.structs import replace

from astra_mesh import limits
from astra_mesh.client import holders as module
from astra_mesh.client.holders import holders_of, place_of, seek
from astra_mesh.errors import UnknownModelError
from astra_mesh.wire.messages import Device, ModelId, ModelOffer, PeerId, PeerInfo, Task

DEVICE = Device(host="h", cores=1, host_cores=4, threads=1)
OFFER = ModelOffer(
    id=ModelId("e" * 64), name="words", family="gpt2", tasks=[Task.GENERATE], also=["verse"]
)
ASKED = ("192.0.2.7", 7475)
ME = PeerInfo(
    peer=PeerId("a" * 64),
    name="me",
    address="port 7475",
    self=True,
    device=DEVICE,
    models=[],
    port=7475,
)
OTHER = replace(
    ME, peer=PeerId("b" * 64), name="other", address="192.0.2.8:7000", self=False, port=7000
)


def test_where_a_peer_can_be_dialled() -> None:
    assert place_of(ME, ASKED) == ASKED
    assert place_of(OTHER, ASKED) == ("192.0.2.8", 7000)
    assert place_of(replace(OTHER, address="127.0.0.1:7000"), ASKED) == ("192.0.2.7", 7000)
    assert place_of(replace(OTHER, address="[::1]:7000"), ASKED) == ("192.0.2.7", 7000)
    assert place_of(replace(OTHER, port=0), ASKED) is None
    assert place_of(replace(OTHER, address="tab", via=ME.peer), ASKED) is None
    assert place_of(replace(OTHER, address="no address"), ASKED) is None


def test_copies_have_several_names() -> None:
    peers = [ME, replace(OTHER, models=[OFFER])]
    for name in ("words", "verse"):
        assert holders_of(name, peers, ASKED).name == name
    assert holders_of(OFFER.id[:8], peers, ASKED).name == "words"
    assert holders_of(OFFER.id[:8].upper(), peers, ASKED).name == "words"
    with pytest.raises(UnknownModelError, match=r"they have: verse, words.*has a slash"):
        holders_of("prose", peers, ASKED)
    with pytest.raises(UnknownModelError, match="Of an id, the first 8 digits are needed"):
        holders_of(OFFER.id[:7], peers, ASKED)


def test_whoever_has_the_same_model_by_another_name_holds_it_too() -> None:
    third = replace(
        OTHER,
        peer=PeerId("c" * 64),
        name="third",
        address="192.0.2.9:7000",
        models=[replace(OFFER, name="prose", also=[])],
    )
    peers = [ME, third, replace(OTHER, models=[OFFER])]
    found = holders_of("words", peers, ASKED)
    assert (found.model, found.name) == (OFFER.id, "words")
    assert [one.name for one in found.peers] == ["other", "third"], "whoever has the name first"
    unlike = replace(third, models=[replace(OFFER, id=ModelId("d" * 64), name="prose", also=[])])
    found = holders_of("words", [ME, unlike, replace(OTHER, models=[OFFER])], ASKED)
    assert [one.name for one in found.peers] == ["other"]


class FakeMesh:
    """Of a peer inside this process, that meets the other one only later."""

    embedded = True
    peer_address = ASKED

    def __init__(self, after: int) -> None:
        self.looks, self._after = 0, after

    async def peers(self) -> list[PeerInfo]:
        self.looks += 1
        return [ME, replace(OTHER, models=[OFFER])] if self.looks > self._after else [ME]


async def test_whoever_comes_a_moment_later_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_S", 0.0)
    mesh: Any = FakeMesh(after=3)
    found = await seek("words", mesh)
    assert [one.name for one in found.peers] == ["other"]
    assert mesh.looks == 4


async def test_the_search_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_S", 0.0)
    monkeypatch.setattr(limits, "SEEK_S", 0.01)
    mesh: Any = FakeMesh(after=10**9)
    with pytest.raises(UnknownModelError, match="no peer here has"):
        await seek("words", mesh)


async def test_near_peers_help_with_what_only_a_far_one_calls_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    near = replace(OTHER, name="near", models=[replace(OFFER, name="prose", also=[])])
    far = replace(OTHER, peer=PeerId("c" * 64), name="far", address="192.0.2.9:1", models=[OFFER])

    async def beyond(*_: Any) -> AsyncIterator[tuple[list[PeerInfo], tuple[str, int]]]:
        yield [far], ("192.0.2.8", 7000)

    monkeypatch.setattr(module, "_beyond", beyond)

    class Asked(FakeMesh):
        embedded = False

        async def peers(self) -> list[PeerInfo]:
            return [ME, near]

    asked: Any = Asked(after=0)
    found = await seek("words", asked)
    assert [one.name for one in found.peers] == ["far", "near"]
