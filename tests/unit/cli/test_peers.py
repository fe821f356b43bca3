from __future__ import annotations

import io

import pytest
from msgspec.structs import replace
from rich.console import Console

from astra_mesh.cli.peers import peer_table
from astra_mesh.client.holders import holders_of
from astra_mesh.errors import UnknownModelError
from astra_mesh.wire.messages import (
    Device,
    ModelId,
    ModelOffer,
    PeerId,
    PeerInfo,
    Task,
)

A, B = PeerId("a" * 64), PeerId("b" * 64)
OFFER = ModelOffer(id=ModelId("0" * 64), name="toy", family="gpt2", tasks=[Task.GENERATE])
TAB = PeerInfo(
    peer=B,
    name="phone",
    address="tab",
    self=False,
    device=Device(host="h", cores=4.0, host_cores=4.0, threads=1, system="Firefox"),
    models=[OFFER],
    round_trip_s=0.004,
    via=A,
)
HOST = replace(
    TAB, peer=A, name="kitchen", address="192.0.2.7:7475", port=7475, via=PeerId(""), models=[]
)


def shown(found: list[PeerInfo]) -> list[str]:
    text = io.StringIO()
    Console(file=text, width=200).print(peer_table(found))
    return text.getvalue().splitlines()[1:]


def test_a_tab_is_shown_with_its_host() -> None:
    host, tab = shown([HOST, TAB])
    assert "192.0.2.7:7475" in host
    assert "tab of kitchen" in tab
    (alone,) = shown([TAB])
    assert "tab of aaaaaaaa" in alone


def test_models_are_not_asked_of_tabs() -> None:
    with pytest.raises(UnknownModelError):
        holders_of("toy", [HOST, TAB], ("192.0.2.7", 7475), None)
    found = holders_of("toy", [replace(HOST, models=[OFFER]), TAB], ("192.0.2.7", 7475), None)
    assert [holder.name for holder in found.peers] == ["kitchen"]
