"""What is known of a peer of the laboratory from its files."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest

from tools.lab.house import House
from tools.lab.process import DevicePeer
from tools.lab.scenario import Device, Scenario


def test_a_peer_has_no_port_until_its_first_line_is_complete(tmp_path: Path) -> None:
    peer, output = DevicePeer(Mock(), tmp_path), tmp_path / "output"
    assert peer.port is None  # another thread is starting it, and its output is not there yet
    output.write_text('{"type": "started", "po')
    assert peer.port is None
    output.write_text('{"type": "started", "port": 7475}\n')
    assert peer.port == 7475
    output.write_text('{"type": "error"}\n')
    assert peer.port is None


def test_a_peer_is_the_process_that_it_says(tmp_path: Path) -> None:
    peer = DevicePeer(Mock(pid=7), tmp_path)
    assert peer.pid == 7
    (tmp_path / "output").write_text('{"type": "started", "pid": 8, "port": 7475}\n')
    assert peer.pid == 8


def test_a_quota_is_of_processes_of_their_own() -> None:
    scenario = Scenario(devices={"attic": Device(cpu=0.5)})
    House(scenario)
    with pytest.raises(ValueError, match="quota"):
        House(scenario, python=("python", "fork"))
