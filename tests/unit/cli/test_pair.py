"""What ``pair`` refuses before it does anything."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from astra_mesh.cli.app import app
from astra_mesh.cli.peer import _is_of_whom_it_joins, join_key_of
from astra_mesh.errors import InputError
from astra_mesh.mesh.codes import new_code, new_key, read_secret
from astra_mesh.mesh.invitations import FILE_NAME, Invitations
from astra_mesh.mesh.trust import Trust
from astra_mesh.wire.messages import Event, RequestId


@pytest.fixture(autouse=True)
def _trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASTRA_MESH_TRUST", str(tmp_path / "trust"))


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["pair", *arguments], env={"COLUMNS": "100"})


def test_a_limit_goes_with_the_side_that_shows_a_code() -> None:
    result = call(new_code(), "--at", "127.0.0.1:1", "--for", "1m")
    assert result.exit_code == 2
    assert "--for goes with showing a code" in result.stderr


@pytest.mark.parametrize("key", [(), ("--join-key",)])
@pytest.mark.parametrize("option", ["--for", "--valid"])
@pytest.mark.parametrize(
    ("text", "why"),
    [("0s", "over at once"), ("000d", "over at once"), ("", "no time"), ("-1m", "no time")],
)
def test_no_time_at_all_is_refused(
    tmp_path: Path, key: tuple[str, ...], option: str, text: str, why: str
) -> None:
    result = call(*key, f"{option}={text}")
    assert result.exit_code == 2
    assert f"{option} '{text}' is" in result.stderr
    assert why in result.stderr
    assert not (tmp_path / "trust" / FILE_NAME).exists()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--list", "--for", "1h"), "--list does not go with --for"),
        (("--close", "--for", "1h"), "--close does not go with --for"),
        (("--list", ""), "--list does not go with CODE"),
        (("--list", "--close"), "--list does not go with --close"),
        (("--list", "--at", "127.0.0.1:1"), "--list does not go with --at"),
        (("--close", new_code()), "--close does not go with CODE"),
        (("--join-key", new_code()), "CODE does not go with --join-key"),
        (("--uses", "2"), "--uses only for join keys"),
        (("--valid", "1h"), "--valid only for join keys"),
        ((new_code(), "--uses", "2", "--valid", "1h"), "--uses and --valid only for join keys"),
    ],
)
def test_nothing_is_silently_left_out(tmp_path: Path, arguments: tuple[str, ...], why: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert why in " ".join(result.stderr.split())
    assert not (tmp_path / "trust").exists()


def opened(folder: Path, window: bool, keys: int) -> Invitations:
    found = Invitations(folder)
    for _ in range(keys):
        found.open_key(read_secret(new_key()), 60.0)
    if window:
        found.open_window(read_secret(new_code()))
    return found


@pytest.mark.parametrize(
    ("window", "keys", "said"),
    [
        (False, 0, "nothing was open"),
        (True, 0, "closed the window"),
        (False, 1, "closed 1 join key"),
        (True, 2, "closed the window and 2 join keys"),
    ],
)
def test_what_was_closed_is_said(window: bool, keys: int, said: str) -> None:
    folder = Trust.open().folder
    opened(folder, window, keys)
    assert call("--close").stdout == f"{said}\n"
    assert call("--close").stdout == "nothing was open\n"
    opened(folder, window, keys)
    told = json.loads(call("--close", "--json").stdout)
    assert told == {"type": "closed", "window": window, "join_keys": keys, "damaged": False}


def test_what_is_damaged_is_closed_too() -> None:
    file = Trust.open().folder / FILE_NAME
    for as_json in (False, True):
        file.write_text("garbage")
        said = " ".join(call("--list").stderr.split())
        assert "`astra-mesh pair --close` begins an empty one" in said
        if as_json:
            assert json.loads(call("--close", "--json").stdout)["damaged"]
        else:
            assert "is damaged, and an empty one is there now" in call("--close").stdout
        assert call("--close").stdout == "nothing was open\n"


def test_a_key_that_is_used_up_was_not_closed_now() -> None:
    folder = Trust.open().folder
    invitations, secret = opened(folder, True, 1), read_secret(new_key())
    invitations.open_key(secret, 60.0)
    used = invitations.try_one(secret.id)
    assert used is not None
    assert invitations.enter(used)
    assert call("--close").stdout == "closed the window and 1 join key\n"


@pytest.mark.parametrize("typed", ["", "\n", "  \nK7QM-2XR8\n"])
def test_a_code_from_standard_input_is_its_first_line(typed: str) -> None:
    result = CliRunner().invoke(app, ["pair", "-"], input=typed, env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert "the first line of standard input is empty" in result.stderr
    result = CliRunner().invoke(app, ["pair", "-"], input=" 2345-678A\nmore\n")
    assert result.exit_code == 2
    assert "2345-678A was mistyped" in " ".join(result.stderr.split())


def test_a_join_key_comes_from_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "key"
    file.write_text(" amk-x \nmore\n")
    assert join_key_of("amk-y", None, stdin_ends=False) == "amk-y"
    assert join_key_of(None, file, stdin_ends=True) == "amk-x"
    with pytest.raises(InputError, match="one of them is enough"):
        join_key_of("amk-y", file, stdin_ends=False)
    monkeypatch.setattr("sys.stdin", io.StringIO("amk-z\n"))
    with pytest.raises(InputError, match="does not go with --stop-with-stdin"):
        join_key_of(None, Path("-"), stdin_ends=True)
    assert join_key_of(None, Path("-"), stdin_ends=False) == "amk-z"
    with pytest.raises(InputError, match=r"--join-key-file: .*absent cannot be read: No such file"):
        join_key_of(None, tmp_path / "absent", stdin_ends=False)
    file.write_bytes(b"")
    with pytest.raises(InputError, match=r"first line of .*key is empty"):
        join_key_of(None, file, stdin_ends=False)


@pytest.mark.skipif(os.name != "posix", reason="has no modes")
@pytest.mark.parametrize(("mode", "warned"), [(0o644, True), (0o600, False), (0o440, False)])
def test_a_file_with_a_join_key_that_others_read_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, warned: bool
) -> None:
    file = tmp_path / "key"
    file.write_text("amk-x\n")
    file.chmod(mode)
    assert join_key_of(None, file, stdin_ends=False) == "amk-x"
    said = f"other users can read the join key in {file} (mode {mode:04o}): `chmod 600` it"
    assert [record.getMessage() for record in caplog.records] == [said] * warned
    assert file.stat().st_mode & 0o777 == mode


@pytest.mark.parametrize(
    ("kind", "alone", "meant"),
    [
        ("unpaired-found", True, True),
        ("unpaired-found", False, False),
        ("peer-joined", True, False),
    ],
)
def test_whom_a_peer_joins_is_no_stranger(kind: str, alone: bool, meant: bool) -> None:
    peer: Any = SimpleNamespace(trust=SimpleNamespace(book=SimpleNamespace(alone=alone)))
    event = Event(RequestId(0), kind=kind, peer="a" * 64, name="alpha", text="")
    assert _is_of_whom_it_joins(peer, event) is meant


def test_what_is_open_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nobody(_: object) -> list[object]:
        return []

    monkeypatch.setattr("astra_mesh.cli.pair.running_now", nobody)
    invitations = opened(Trust.open().folder, True, 0)
    invitations.open_key(read_secret(new_key()), 60.0, uses=3)
    told = json.loads(call("--list", "--json").stdout)
    assert [(one["type"], one["uses"]) for one in told["open"]] == [("code", 1), ("join-key", 3)]
    said = " ".join(call("--list").stderr.split())
    assert ": a code; `astra-mesh pair --close` closes it" in said
    assert ": a join key for 3 devices;" in said
    invitations.close()
    assert json.loads(call("--list", "--json").stdout)["open"] == []
    assert "open until" not in call("--list").stderr
