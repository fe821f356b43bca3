"""Real peers as processes on several hosts: they find each other by mDNS and answer together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.mesh_fixtures import make_models
from tests.timings import patient
from tools.lab.house import House
from tools.lab.scenario import Device, Leave, Scenario

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(180)]

DEVICES = ["attic", "cellar", "kitchen"]
PROMPT = " ".join(f"w{7 * i % 64}" for i in range(40))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_models(tmp_path_factory.mktemp("models") / "all")


@pytest.fixture
def house(models: Path) -> Iterator[House]:
    devices = {name: Device(start=False) for name in DEVICES}
    with House(Scenario(devices=devices, models=str(models), meet_s=patient(40))) as house:
        yield house


def test_peers_on_three_hosts_find_each_other_and_answer_together(house: House) -> None:
    for device in DEVICES:
        house.start(device)
    house.meet()
    lines = house.cli("kitchen", "run", "words", PROMPT, "--use", "all", "-n", "8")
    report = lines[-1]["report"]
    planned = lines[-1]["planned"]
    assert sorted(planned["names"].values()) == DEVICES
    assert report["bits_per_token"] == 16
    assert report["new_tokens"] == 8
    assert sum(sum(one["sent_bytes"].values()) for one in report["peers"]) > 0

    alone = house.cli("attic", "run", "words", PROMPT, "--use", "solo", "-n", "8")
    exact = house.cli("attic", "run", "words", PROMPT, "--use", "all", "--codec", "fp32", "-n", "8")
    assert exact[-1]["text"] == alone[-1]["text"]

    house.apply(Leave(device="attic", at_s=0))
    assert house.names("kitchen") == {"cellar", "kitchen"}
    again = house.cli("kitchen", "run", "words", PROMPT, "--use", "all", "-n", "8")
    assert sorted(again[-1]["planned"]["names"].values()) == ["cellar", "kitchen"]


def test_typed_addresses_serve_where_multicast_does_not(house: House) -> None:
    house.start("attic", "--no-discovery", "--port", "7000")
    house.meet()
    house.start("cellar", "--no-discovery", "--peer", f"{house.lan.address('attic')}:7000")
    house.meet()


def test_a_client_without_a_peer_of_its_own_joins_from_its_host(house: House) -> None:
    house.start("attic")
    house.meet()
    lines = house.cli("cellar", "run", "words", PROMPT, "--use", "all", "-n", "4")
    assert len(lines[-1]["planned"]["names"]) == 2
