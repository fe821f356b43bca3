"""What is known of a peer of the laboratory from its files."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

from tools.lab.process import DevicePeer


def test_a_peer_has_no_port_until_its_first_line_is_complete(tmp_path: Path) -> None:
    peer, output = DevicePeer(Mock(), tmp_path), tmp_path / "output"
    assert peer.port is None  # another thread is starting it, and its output is not there yet
    output.write_text('{"type": "started", "po')
    assert peer.port is None
    output.write_text('{"type": "started", "port": 7475}\n')
    assert peer.port == 7475
    output.write_text('{"type": "error"}\n')
    assert peer.port is None
