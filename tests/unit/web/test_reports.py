"""What a request cost, as the API says it."""

from __future__ import annotations

from msgspec.structs import replace

from astra_mesh.naming import Names
from astra_mesh.web.reports import Summary
from astra_mesh.wire.messages import PeerId
from tests.unit.cli.stub import plan, planned, report

A, B, C = PeerId("a" * 64), PeerId("b" * 64), PeerId("c" * 64)


def test_peers_of_one_name_keep_their_own_figures() -> None:
    peers = [A, B, C]
    one, *others = report(peers, 0).peers
    sent = {B: 10, C: 20}
    rates = {B: [1, 16], C: [2, 8]}
    first = replace(one, sent_bytes=sent, rates=rates, precision="int8")
    told = replace(report(peers, 0), peers=[first, *others])
    names: dict[str, str] = {A: "kitchen", B: "tab", C: "tab"}
    about = Summary(9, 0, planned(peers, names), told, 0.1).mesh
    assert about["peers"][0]["sent_bytes"] == {"tab (bbbbbbbb)": 10, "tab (cccccccc)": 20}
    assert about["peers"][0]["rates"] == {"tab (bbbbbbbb)": [1, 16], "tab (cccccccc)": [2, 8]}
    every = ["kitchen", "tab (bbbbbbbb)", "tab (cccccccc)"]
    assert [entry["peer"] for entry in about["peers"]] == every
    assert [entry["peer"] for entry in about["plan"]["shards"]] == every
    assert about["plan"]["answering"] == every[-1]
    assert [entry["precision"] for entry in about["peers"]] == ["int8", "", ""]
    assert plan(peers).answering == C


def test_names() -> None:
    names = Names({A: "one", B: "two", C: ""})
    assert [names(peer) for peer in (A, B, C, "d" * 64)] == ["one", "two", "cccccccc", "dddddddd"]


def test_what_lost_peers_cost_is_told() -> None:
    told = replace(report([A, B], 4), took_s=8.5, lost_s=8.0)
    assert Summary(9, 4, None, told, 8.6).mesh["lost_s"] == 8.0
