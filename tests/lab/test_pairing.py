"""Devices with keys of their own on one LAN: strangers until they are paired, over real mDNS."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.forks import python
from tests.timings import patient
from tools.lab.house import House
from tools.lab.scenario import Device, Scenario

pytestmark = [
    pytest.mark.lab,
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.usefixtures("forks"),
]

DEVICES = ["attic", "cellar", "kitchen"]
WAIT_S = 40.0


@pytest.fixture
def house() -> Iterator[House]:
    devices = {name: Device(start=False) for name in DEVICES}
    with House(Scenario(devices=devices, meet_s=patient(40))) as house:
        yield house


def begin(house: House, device: str, *arguments: str) -> subprocess.Popen[Any]:
    """A command on a device that trusts only whom it was paired with."""
    own = f"ASTRA_MESH_TRUST={house.device_folder(device)}/own-trust"
    command = [*python(), "-m", "astra_mesh", *arguments, "--json"]
    return house.popen(device, ["env", own, *command], stdout=subprocess.PIPE)


def run(house: House, device: str, *arguments: str) -> dict[str, Any]:
    """What a command printed last."""
    said, _ = begin(house, device, *arguments).communicate(timeout=patient(WAIT_S))
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return found


def names(house: House, device: str) -> set[str]:
    return {peer["name"] for peer in run(house, device, "peers")["peers"]}


def until_seen(house: House, device: str, wanted: set[str]) -> None:
    end = time.monotonic() + patient(WAIT_S)
    while (seen := names(house, device)) != wanted:
        assert time.monotonic() < end, seen
        time.sleep(0.5)


def pair(house: House, host: str, guest: str) -> None:
    shown = begin(house, host, "pair")
    assert shown.stdout is not None
    code = json.loads(shown.stdout.readline())["code"]
    paired = run(house, guest, "pair", code)
    assert paired.get("type") == "paired", paired
    assert shown.wait(patient(WAIT_S)) == 0


def test_three_devices_pair_and_one_has_to_go(house: House) -> None:
    for device in DEVICES:
        peer = begin(house, device, "peer", "--name", device, "--no-api", "--model", "tiny-gpt2")
        assert peer.stdout is not None
        assert json.loads(peer.stdout.readline())["type"] == "started"
    assert names(house, "attic") == {"attic"}
    pair(house, "attic", "cellar")
    until_seen(house, "attic", {"attic", "cellar"})
    pair(house, "cellar", "kitchen")
    until_seen(house, "attic", set(DEVICES))  # which never met the kitchen before
    listed = run(house, "attic", "pair", "--list")["devices"]
    assert len(listed) == 3
    own = next(row["id"] for row in listed if row["this"])
    run(house, "kitchen", "unpair", own)
    until_seen(house, "attic", {"attic"})
    until_seen(house, "cellar", {"cellar", "kitchen"})
