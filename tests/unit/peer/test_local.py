"""The records by which clients find peers of the same user."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from astra_mesh.errors import PortInUseError
from astra_mesh.peer import local
from astra_mesh.peer.local import (
    LocalPeer,
    _folder,
    check_own_port,
    local_peers,
    name_of,
    remove_record,
    write_record,
)
from astra_mesh.wire.messages import DeviceId, PeerId

ME = LocalPeer(os.getpid(), 7475, PeerId("a" * 64), "board")


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_record_is_found_and_removed() -> None:
    write_record(ME)
    assert local_peers() == [ME]
    write_record(ME)
    assert local_peers() == [ME]
    remove_record(ME)
    assert local_peers() == []
    remove_record(ME)


def test_a_record_says_where_the_peer_answers() -> None:
    assert ME.address == ("127.0.0.1", 7475)
    write_record(LocalPeer(os.getpid(), 7475, ME.id, "board", "192.0.2.7"))
    (found,) = local_peers()
    assert found.address == ("192.0.2.7", 7475)


def test_a_record_of_an_older_version_is_read() -> None:
    path = write_record(ME)
    path.write_text(path.read_text().replace(',"listen":""', ""))
    assert "listen" not in path.read_text()
    assert local_peers() == [ME]


async def test_a_record_follows_what_a_peer_knows_from_its_start_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That nothing is known yet is no news, and is looked at often."""
    monkeypatch.setattr(local, "_EARLY_S", 0.0)
    known, written = iter([None, None, ""]), list[LocalPeer]()

    async def compute(write: Callable[[LocalPeer], Path], peer: LocalPeer) -> Path:
        assert write is write_record
        written.append(peer)
        return Path()

    task = asyncio.create_task(local.follow_problem(ME, lambda: next(known), compute))
    while not written:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert [peer.problem for peer in written] == [""]


def test_a_port_of_an_own_peer_is_told_from_others() -> None:
    check_own_port(7475)
    write_record(ME)
    check_own_port(7476)
    with pytest.raises(PortInUseError, match=r"port 7475 is that of board.*peers.*--port"):
        check_own_port(7475)


def test_only_the_user_can_read_it() -> None:
    before = os.umask(0)
    try:
        path = write_record(ME)
    finally:
        os.umask(before)
    assert mode(path) == 0o600
    assert mode(path.parent) == 0o700
    assert mode(path.parent.parent) == 0o700
    assert list(path.parent.iterdir()) == [path]


def test_the_newest_is_last() -> None:
    for age, port in ((30, 3), (10, 1), (20, 2)):
        path = write_record(LocalPeer(os.getpid(), port, ME.id, "x"))
        os.utime(path, (1000 - age, 1000 - age))
    assert [peer.port for peer in local_peers()] == [3, 2, 1]


def test_the_record_of_a_dead_process_is_removed() -> None:
    path = write_record(LocalPeer(dead_pid(), 7475, ME.id, "x"))
    write_record(ME)
    assert local_peers() == [ME]
    assert not path.exists()


def test_a_stale_record_of_another_name_is_removed_too() -> None:
    path = write_record(LocalPeer(dead_pid(), 7475, ME.id, "x"))
    renamed = path.rename(path.with_name("copy.json"))
    assert local_peers() == []
    assert not renamed.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"pid": 1}',
        b'{"pid": 1, "port": 1, "id": "\xff", "name": ""}',
        b'{"pid": 99999999999999999999, "port": 1, "id": "", "name": ""}',
        b'{"pid": 9223372036854775807, "port": 1, "id": "", "name": ""}',
        b'{"pid": -1, "port": 1, "id": "", "name": ""}',
        b'{"pid": 0, "port": 1, "id": "", "name": ""}',
        b'{"pid": 1, "port": 70000, "id": "", "name": ""}',
        b"[" * 100_000,
    ],
)
def test_a_corrupt_record_is_ignored(data: bytes) -> None:
    write_record(ME)
    (_folder() / "odd.json").write_bytes(data)
    assert local_peers() == [ME]


def test_without_a_folder_there_are_none() -> None:
    assert local_peers() == []


def test_a_device_is_called_as_its_peers_here() -> None:
    own, other = DeviceId("d" * 64), DeviceId("e" * 64)
    assert name_of(own) == ""
    write_record(replace(ME, name="desk", device=own))
    write_record(replace(ME, name="pod", device=other, port=7477))
    assert (name_of(own), name_of(other)) == ("desk", "pod")
    write_record(replace(ME, name="shelf", device=own, port=7478))
    assert name_of(own) == "", "they differ"
    assert name_of(other) == "pod"
