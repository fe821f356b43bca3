"""Real peers as processes on several hosts: they find each other by mDNS and answer together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.mesh_fixtures import make_models
from tests.timings import patient
from tools.lab.network import Lan

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(180)]

REPO_ROOT = Path(__file__).resolve().parents[2]
DEVICES = ["attic", "cellar", "kitchen"]
PROMPT = " ".join(f"w{7 * i % 64}" for i in range(40))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_models(tmp_path_factory.mktemp("models") / "all")


class House:
    """A LAN with a peer on each device."""

    def __init__(self, lan: Lan, models: Path, folder: Path) -> None:
        self.lan, self._models, self._folder = lan, models, folder
        self.peers: dict[str, subprocess.Popen[Any]] = {}

    def _env(self, device: str) -> dict[str, str]:
        home = self._folder / device
        home.mkdir(exist_ok=True)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "ASTRA_"))}
        return kept | {
            "HOME": str(home),
            "ASTRA_MESH_MODELS": str(self._models),
            "PYTHONPATH": str(REPO_ROOT),
            "OMP_NUM_THREADS": "1",
        }

    def start(self, device: str, *more: str) -> None:
        argv = [sys.executable, "-m", "astra_mesh", "peer", "--name", device, "--threads", "1"]
        log = (self._folder / f"{device}.log").open("a")
        with log:
            self.peers[device] = self.lan.popen(
                device, [*argv, *more], env=self._env(device), stdout=log, stderr=log
            )

    def ask(self, device: str, *argv: str) -> list[Any]:
        done = self.lan.run(
            device,
            [sys.executable, "-m", "astra_mesh", *argv, "--json"],
            env=self._env(device),
            capture_output=True,
            text=True,
            timeout=patient(40),
        )
        assert done.returncode == 0, done.stderr + self.logs()
        return [json.loads(line) for line in done.stdout.splitlines() if line.strip()]

    def names(self, device: str) -> set[str]:
        """Who is here, as the peer of a device sees it."""
        document = self.ask(device, "peers")[0]
        return {one["name"] for one in document["peers"]}

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in self._folder.glob("*.log"))


def within(seconds: float, condition: Callable[[], bool]) -> None:
    """Wait for a condition."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < patient(seconds), "not in time"
        time.sleep(0.1)


@pytest.fixture
def house(models: Path, tmp_path: Path) -> Iterator[House]:
    with Lan(DEVICES) as lan:
        yield House(lan, models, tmp_path)


def test_peers_on_three_hosts_find_each_other_and_answer_together(house: House) -> None:
    for device in DEVICES:
        house.start(device)
    within(40, lambda: house.names("kitchen") == set(DEVICES))
    lines = house.ask("kitchen", "run", "words", PROMPT, "--use", "all", "-n", "8")
    report = lines[-1]["report"]
    planned = lines[-1]["planned"]
    assert sorted(planned["names"].values()) == DEVICES
    assert report["bits_per_token"] == 16
    assert report["new_tokens"] == 8
    assert sum(sum(one["sent_bytes"].values()) for one in report["peers"]) > 0

    alone = house.ask("attic", "run", "words", PROMPT, "--use", "solo", "-n", "8")
    exact = house.ask("attic", "run", "words", PROMPT, "--use", "all", "--codec", "fp32", "-n", "8")
    assert exact[-1]["text"] == alone[-1]["text"]

    house.peers["attic"].send_signal(signal.SIGTERM)
    house.peers["attic"].wait(patient(5))
    assert house.names("kitchen") == {"cellar", "kitchen"}
    again = house.ask("kitchen", "run", "words", PROMPT, "--use", "all", "-n", "8")
    assert sorted(again[-1]["planned"]["names"].values()) == ["cellar", "kitchen"]


def test_typed_addresses_serve_where_multicast_does_not(house: House) -> None:
    house.start("attic", "--no-discovery", "--port", "7000")
    within(30, lambda: house.names("attic") == {"attic"})
    house.start("cellar", "--no-discovery", "--peer", f"{house.lan.address('attic')}:7000")
    within(30, lambda: house.names("attic") == {"attic", "cellar"})


def test_a_client_without_a_peer_of_its_own_joins_from_its_host(house: House) -> None:
    house.start("attic")
    within(30, lambda: house.names("attic") == {"attic"})
    lines = house.ask("cellar", "run", "words", PROMPT, "--use", "all", "-n", "4")
    assert len(lines[-1]["planned"]["names"]) == 2
