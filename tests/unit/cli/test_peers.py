from __future__ import annotations

import io

import pytest
from msgspec.structs import replace
from rich.console import Console

from astra_mesh.cli import peers as module
from astra_mesh.cli.peers import link_lines, model_table, peer_table
from astra_mesh.client.holders import holders_of
from astra_mesh.errors import UnknownModelError
from astra_mesh.wire.messages import (
    Device,
    LinkInfo,
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
    Console(file=text, width=200).print(peer_table(found, 200))
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


def lines(found: list[PeerInfo]) -> list[str]:
    return [line.plain for line in link_lines(found)]


def test_links_between_others_have_their_figures() -> None:
    me = replace(HOST, peer=PeerId("c" * 64), name="me", self=True)
    kitchen = replace(HOST, links=[LinkInfo(peer=B, round_trip_s=0.0021, send_bps=94e6)])
    assert lines([me, HOST, TAB]) == []
    assert lines([me, kitchen, TAB]) == ["kitchen - phone  2.1 ms, 94 Mbit/s there"]
    phone = replace(TAB, links=[LinkInfo(peer=A, round_trip_s=0.002, send_bps=20e6)])
    assert lines([me, kitchen, phone]) == [
        "kitchen - phone  2.0 ms, 94 Mbit/s there, 20 Mbit/s back"
    ]
    unmeasured = replace(HOST, links=[LinkInfo(peer=B)])
    assert lines([me, unmeasured, TAB]) == ["kitchen - phone  not measured yet"]
    told_of_me = replace(HOST, links=[LinkInfo(peer=me.peer, send_bps=1e6)])
    assert lines([me, told_of_me, TAB]) == []  # the table has it


def test_a_long_list_of_links_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LINKS", 2)
    links = [LinkInfo(peer=PeerId(letter * 64)) for letter in "abcd"]
    found = [
        replace(HOST, peer=PeerId(letter * 64), name=f"host {letter}", links=links)
        for letter in "abcd"
    ]
    *shown, last = lines(found)
    assert len(shown) == 2
    assert last == "and 4 more links: --json"


@pytest.mark.parametrize("address", ["192.0.2.7:7475", "192.168.178.254:65535"])
def test_a_usual_terminal_shows_all_columns(address: str) -> None:
    text = io.StringIO()
    fast = replace(HOST, send_bps=940e6, receive_bps=2220e6, self=True, address=address)
    system = replace(fast.device, system="Linux x86_64")
    fast = replace(fast, name="right", device=system)
    Console(file=text, width=80).print(peer_table([fast, TAB], 80))
    head, first, *_ = text.getvalue().splitlines()
    assert head.split()[-1] == "from"
    assert first.split()[:4] == ["right", "(asked)", A[:8], address]
    assert first.split()[-2:] == ["940", "2220"]


def test_each_model_has_a_line_of_its_own_in_a_usual_terminal() -> None:
    offers = [replace(OFFER, name=f"model-{i}", id=ModelId(f"{i:064x}")) for i in range(12)]
    peers = [
        replace(HOST, name=f"board-{i}", peer=PeerId(f"{i:064x}"), models=offers) for i in range(6)
    ]
    text = io.StringIO()
    Console(file=text, width=80).print(model_table([*peers, replace(TAB, models=[])]))
    head, *rows = text.getvalue().splitlines()
    assert head.split() == ["model", "does", "on"]
    assert [row.split()[0] for row in rows] == [one.name for one in sorted(offers, key=_name)]
    assert all("board-0, board-1, board-2 and 3 more" in row for row in rows)
    text = io.StringIO()
    Console(file=text, width=80).print(model_table(peers))
    assert text.getvalue().count("every peer") == 12


def test_a_model_with_two_names_is_one_model() -> None:
    other = replace(HOST, name="attic", peer=B, models=[replace(OFFER, name="doll")])
    text = io.StringIO()
    Console(file=text, width=80).print(model_table([replace(HOST, models=[OFFER]), other]))
    _, row = text.getvalue().splitlines()
    assert row.split() == ["doll,", "toy", "generate", "every", "peer"]


def _name(offer: ModelOffer) -> str:
    return offer.name
