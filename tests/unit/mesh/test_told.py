"""Who heard of a farewell, as peers and the command of one device write it down together."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from astra_mesh import limits
from astra_mesh.mesh.told import FILE_NAME, Told
from astra_mesh.wire.messages import DeviceId


def device(number: int) -> DeviceId:
    return DeviceId(f"{number:064x}")


def test_many_write_at_once_and_none_is_lost(tmp_path: Path) -> None:
    assert Told(tmp_path, b"one").devices() == frozenset()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: Told(tmp_path, b"one").note(device(number % 16)), range(64)))
    assert Told(tmp_path, b"one").devices() == {device(number) for number in range(16)}


def test_the_next_farewell_begins_with_nobody(tmp_path: Path) -> None:
    Told(tmp_path, b"one").note(device(1))
    assert Told(tmp_path, b"two").devices() == frozenset()
    Told(tmp_path, b"two").note(device(2))
    assert Told(tmp_path, b"two").devices() == {device(2)}
    assert Told(tmp_path, b"one").devices() == frozenset()


@pytest.mark.parametrize("junk", [b"", b"\xc1", b"\x81\xa7devices\x01", b"\x93" * 100])
def test_a_damaged_file_is_written_anew(tmp_path: Path, junk: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(junk)
    told = Told(tmp_path, b"one")
    assert told.devices() == frozenset()
    told.note(device(1))
    assert told.devices() == {device(1)}


def test_it_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ROSTER_ENTRIES", 2)
    told = Told(tmp_path, b"one")
    for number in range(4):
        told.note(device(number))
    assert len(told.devices()) == 2
