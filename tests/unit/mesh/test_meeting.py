"""Addresses that are kept from pairing."""

from __future__ import annotations

import logging
import stat
from pathlib import Path

import pytest

from astra_mesh import limits
from astra_mesh.errors import IdentityError
from astra_mesh.mesh.meeting import FILE_NAME, MeetingPlaces
from astra_mesh.wire.messages import DeviceId

A, B = (DeviceId(letter * 64) for letter in "ab")


def device(number: int) -> DeviceId:
    return DeviceId(f"{number:064x}")


def test_what_was_kept_is_there_for_every_program(tmp_path: Path) -> None:
    places, other = MeetingPlaces(tmp_path), MeetingPlaces(tmp_path)
    assert other.of([A, B]) == []
    places.keep(A, ("10.0.0.5", 7475))
    places.keep(B, ("fe80::1%wlan0", 7000))
    assert other.of([A, B]) == [("fe80::1%wlan0", 7000), ("10.0.0.5", 7475)]
    assert other.of([A]) == [("10.0.0.5", 7475)]
    assert other.of([]) == []
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600


def test_the_newest_address_comes_first_and_no_address_twice(tmp_path: Path) -> None:
    places = MeetingPlaces(tmp_path)
    for host in ("one", "two", "one"):
        places.keep(A, (host, 1))
    assert places.of([A]) == [("one", 1), ("two", 1)]


def test_a_device_that_moves_leaves_few_addresses(tmp_path: Path) -> None:
    places = MeetingPlaces(tmp_path)
    places.keep(B, ("still", 1))
    for port in range(1, 21):
        places.keep(A, ("moving", port))
    kept = [("moving", port) for port in range(20, 20 - limits.PLACES_PER_DEVICE, -1)]
    assert places.of([A]) == kept
    assert places.of([B]) == [("still", 1)]


def test_there_is_an_end_to_them(tmp_path: Path) -> None:
    places, count = MeetingPlaces(tmp_path), limits.PLACES + 5
    for number in range(count):
        places.keep(device(number), ("x" * 253, 65_535))
    assert (tmp_path / FILE_NAME).stat().st_size < limits.PLACES_BYTES
    everybody = [device(number) for number in range(count)]
    assert len(places.of(everybody)) == limits.PLACES
    assert places.of(everybody[:5]) == []


@pytest.mark.parametrize("data", [b"", b"\x91\x01", b"\xff" * 100, b"\x91\x93\xa1a\xa1b\xa1c"])
def test_a_damaged_file_is_told_once_and_written_anew(
    data: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE_NAME).write_bytes(data)
    places = MeetingPlaces(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert places.of([A]) == places.of([A]) == []
    assert len(caplog.records) == 1
    places.keep(A, ("one", 1))
    assert places.of([A]) == [("one", 1)]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="holds the addresses of paired devices"):
        MeetingPlaces(tmp_path / "nothing").keep(A, ("one", 1))
