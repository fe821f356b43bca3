"""``unpair`` by name and by id, where two devices have the same name."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from astra_mesh import limits
from astra_mesh.cli.app import app
from astra_mesh.cli.options import device_names
from astra_mesh.client import farewell, reach
from astra_mesh.client.farewell import Farewell
from astra_mesh.client.farewell_words import what_remains
from astra_mesh.client.reach import Running
from astra_mesh.mesh.connect import Address
from astra_mesh.mesh.identity import DeviceKey
from astra_mesh.mesh.roster import RosterBook
from astra_mesh.mesh.told import Told
from astra_mesh.mesh.trust import Trust
from astra_mesh.wire.messages import DeviceId, PeerId

ONE, TWO, OTHER = (DeviceKey.new() for _ in range(3))


@pytest.fixture(autouse=True)
def _trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASTRA_MESH_TRUST", str(tmp_path / "trust"))
    trust = Trust.open()
    for device, name in ((ONE, "board"), (TWO, "board"), (OTHER, "desk")):

        def decide(book, device=device, name=name) -> bool:  # type: ignore[no-untyped-def]
            book.let_in(device.certificate, name)
            return True

        trust.change(decide)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "100"})


def test_a_name_of_two_devices_lists_both_with_their_ids() -> None:
    result = call("unpair", "board")
    assert result.exit_code == 2
    assert "'board' fits 2 devices: " in result.stderr
    for device in (ONE, TWO):
        assert f"board ({device.id[:8]})" in result.stderr
    assert "desk" not in result.stderr
    assert call("pair", "--list").stdout.count("board") == 2


def test_an_id_or_a_name_of_one_device_shuts_that_out() -> None:
    result = call("unpair", ONE.id[:8])
    assert result.exit_code == 0
    assert f"Shut out board ({ONE.id[:8]})." in result.stdout
    assert TWO.id[:8] in call("pair", "--list").stdout
    assert f"Shut out board ({TWO.id[:8]})." in call("unpair", "board").stdout
    assert f"Shut out desk ({OTHER.id[:8]})." in call("unpair", "desk").stdout


def runs(monkeypatch: pytest.MonkeyPatch, *peers: tuple[str, str, DeviceId]) -> None:
    """Peers that run now: first digits of the id, name, device."""

    async def who_runs(_: Trust) -> list[Running]:
        return [Running(PeerId(digits + "0" * 56), name, on) for digits, name, on in peers]

    monkeypatch.setattr(reach, "who_runs", who_runs)


@pytest.mark.parametrize("text", ["dev-c", "8a928642", "8A92"])
def test_a_peer_names_its_device(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    runs(monkeypatch, ("8a928642", "dev-c", OTHER.id), ("11111111", "dev-b", ONE.id))
    listed = call("pair", "--list").stdout
    assert "peers now" in listed
    assert "dev-c (8a928642)" in next(line for line in listed.splitlines() if OTHER.id[:8] in line)
    assert "desk" not in listed, "as its peer is called"
    result = call("unpair", text)
    assert f"Shut out dev-c ({OTHER.id[:8]})." in result.stdout
    assert OTHER.id[:8] not in result.stdout.partition("Shut out")[2].partition("\n")[2]
    assert OTHER.id[:8] not in call("pair", "--list").stdout


def test_peers_of_one_name_on_two_devices_or_on_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Trust.open().device.id
    runs(
        monkeypatch,
        ("8a928642", "dev", OTHER.id),
        ("11111111", "dev", ONE.id),
        ("22222222", "mine", own),
    )
    result = call("unpair", "dev")
    assert result.exit_code == 2
    assert "'dev' fits 2 devices: " in result.stderr
    assert f"dev ({OTHER.id[:8]})" in result.stderr
    runs(monkeypatch, ("8a928642", "mine", OTHER.id), ("22222222", "mine", own))
    assert "'mine' fits 2 devices: " in call("unpair", "mine").stderr
    runs(monkeypatch, ("22222222", "mine", own))
    assert "runs on this device" in " ".join(call("unpair", "mine").stderr.split())
    assert "no peer that runs now" in " ".join(call("unpair", "nobody").stderr.split())
    assert len(Trust.open().members()) == 4


def test_a_name_that_another_device_chose_shuts_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The desk's peer calls itself as the mesh calls the board, and the board's peer is renamed."""
    call("unpair", TWO.id[:8])
    runs(monkeypatch, ("8a928642", "board", OTHER.id), ("11111111", "shelf", ONE.id))
    result = call("unpair", "board")
    assert result.exit_code == 2
    assert f"shelf ({ONE.id[:8]})" in result.stderr
    assert f"board ({OTHER.id[:8]})" in result.stderr
    assert len(Trust.open().members()) == 3
    result = call("unpair", "shelf", "--json")
    assert [row["name"] for row in json.loads(result.stdout)["devices"]].count("board") == 1
    assert ONE.id not in Trust.open().members()


def test_a_name_that_is_another_s_digits_shuts_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    runs(monkeypatch, ("8a928642", ONE.id[:8], OTHER.id))
    result = call("unpair", ONE.id[:8])
    assert result.exit_code == 2
    assert f"{ONE.id[:8]!a} fits 2 devices" in result.stderr
    runs(monkeypatch, ("8a928642", ONE.id, OTHER.id))
    assert call("unpair", ONE.id).exit_code == 0
    assert ONE.id not in Trust.open().members()
    assert OTHER.id in Trust.open().members()


def test_peers_of_several_names_leave_a_device_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    runs(monkeypatch, ("8a928642", "dev", OTHER.id), ("11111111", "other", OTHER.id))
    listed = json.loads(call("pair", "--list", "--json").stdout)["devices"]
    (desk,) = (row for row in listed if row["id"] == OTHER.id)
    assert desk["name"] == "desk"
    assert [one["name"] for one in desk["peers"]] == ["dev", "other"]
    runs(monkeypatch, ("8a928642", "desk-2-client", OTHER.id))  # a peer inside a command
    listed = json.loads(call("pair", "--list", "--json").stdout)["devices"]
    assert "desk" in [row["name"] for row in listed]


def test_a_guest_shuts_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = RosterBook(ONE, "host")
    host.let_in(OTHER.certificate, "desk")
    monkeypatch.setenv("ASTRA_MESH_TRUST", str(tmp_path / "guest"))
    trust = Trust.open()
    host.let_in(trust.device.certificate, "guest", int(time.time()) + 3_600)

    def decide(book: RosterBook) -> bool:
        book.adopt(host.message())
        return True

    trust.change(decide)
    result = call("unpair", "desk")
    assert result.exit_code == 1
    assert "the others would not follow" in " ".join(result.stderr.split())
    assert len(Trust.open().members()) == 3


@pytest.fixture
def _silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is looked for."""

    async def nowhere(_: Trust) -> AsyncGenerator[list[Address], None]:
        for place in list[list[Address]]():
            yield place

    monkeypatch.setattr(farewell, "member_places", nowhere)
    monkeypatch.setattr(limits, "FAREWELL_S", 0.1)


@pytest.mark.usefixtures("_silence")
def test_who_leaves_is_told_what_remains_to_be_done() -> None:
    own = Trust.open().device.id
    result = call("unpair", "--leave")
    said = " ".join(result.stderr.split())
    assert result.exit_code == 0
    assert "nobody could be told" in said
    assert f"astra-mesh unpair {own[:8]}" in said
    assert f"desk ({OTHER.id[:8]})" in said
    assert "desk" not in call("pair", "--list").stdout


def test_who_is_alone_is_told_so_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def nobody(_: Trust) -> Farewell:
        raise AssertionError("there is nobody to look for")

    monkeypatch.setattr(farewell, "leave", nobody)
    monkeypatch.setenv("ASTRA_MESH_TRUST", str(tmp_path / "alone"))
    before = Trust.open().book.mesh
    result = call("unpair", "--leave")
    assert result.exit_code == 0
    assert "there was no mesh to leave" in " ".join(result.stderr.split())
    assert Trust.open().book.mesh != before, "a roster that is full is forgotten"
    said = json.loads(call("unpair", "--leave", "--json").stdout)
    assert (said["told"], said["untold"], said["ended"]) == ([], [], [])
    assert [row["this"] for row in said["devices"]] == [True]


@pytest.mark.usefixtures("_silence")
def test_a_leave_that_was_cut_short_is_no_device_alone() -> None:
    for device in (ONE, TWO):
        call("unpair", device.id[:8])
    Trust.open().change(RosterBook.say_farewell)
    assert "nobody could be told" in " ".join(call("unpair", "--leave").stderr.split())


@pytest.mark.usefixtures("_silence")
def test_who_heard_of_it_is_named() -> None:
    trust = Trust.open()
    trust.change(RosterBook.say_farewell)
    Told(trust.folder, trust.book.farewell).note(OTHER.id)  # as a peer of this device does
    said = json.loads(call("unpair", "--leave", "--json").stdout)
    assert said["told"] == [OTHER.id]
    assert sorted(said["untold"]) == sorted([ONE.id, TWO.id])
    assert [row["this"] for row in said["devices"]] == [True]


def test_what_remains() -> None:
    known = RosterBook(ONE, "host")
    known.let_in(OTHER.certificate, "desk")
    entries = known.members()
    desk, host = {OTHER.id: entries[OTHER.id]}, {ONE.id: entries[ONE.id]}
    assert what_remains(Farewell({}, {}), TWO.id) == []
    assert "desk" in what_remains(Farewell(desk, {}), TWO.id)[0]
    all_told, some = what_remains(Farewell(desk, {}), TWO.id), Farewell(desk, host)
    assert len(all_told) == 1
    assert "when they meet" in what_remains(some, TWO.id)[1]
    assert f"astra-mesh unpair {TWO.id[:8]}" in what_remains(some, TWO.id)[1]


def test_who_is_told_of_it_is_called_as_its_peer_that_ran() -> None:
    known = RosterBook(ONE, "host")
    known.let_in(OTHER.certificate, "desk")
    both = known.members()
    (said,) = what_remains(Farewell({}, both), TWO.id, {OTHER.id: ["kitchen"], ONE.id: ["a", "b"]})
    assert f"kitchen ({OTHER.id[:8]})" in said
    assert f"host ({ONE.id[:8]})" in said, "its peers differ"
    assert "desk" not in said


def test_one_knows_and_two_know() -> None:
    known = RosterBook(ONE, "host")
    known.let_in(OTHER.certificate, "desk")
    both = known.members()
    one = {OTHER.id: both[OTHER.id]}
    said = {
        (" knows that", " trusts it"): Farewell(one, {}),
        (" know that", " trust it"): Farewell(both, {}),
        ("still lists", "until it hears of it"): Farewell({}, one),
        ("still list ", "until one of them hears", ", on one of them"): Farewell({}, both),
        (" ends each", "probably it does not", "needs not"): Farewell({}, {}, one),
        (" end each", "probably they do not", "need not"): Farewell({}, {}, both),
    }
    for words, farewell_of in said.items():
        (sentence,) = what_remains(farewell_of, TWO.id)
        assert all(word in sentence for word in words), sentence
    heard = what_remains(Farewell({}, one, {ONE.id: both[ONE.id]}), TWO.id)
    assert "did not answer, and hears of it from the others" in heard[1]


def test_a_leave_that_was_cut_short_is_over_before_the_next_pairing() -> None:
    trust = Trust.open()
    trust.change(RosterBook.say_farewell)
    assert Trust.open().book.is_leaving
    assert trust.settle()
    assert not trust.settle()
    assert Trust.open().book.alone


def test_names_of_paired_devices_are_completed() -> None:
    assert device_names("") == ["board", "desk"]
    assert device_names("d") == ["desk"]
    assert device_names("x") == []


def test_nothing_is_completed_where_the_mesh_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ASTRA_MESH_TRUST", str(tmp_path / "file"))
    assert device_names("") == []
