"""What the log is told of links that fail."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from astra_mesh.errors import MeshError, PeerLostError, RefusedError
from astra_mesh.peer.complaints import Complaints

LOST = PeerLostError("lost peer a1a1a1a1: writing failed")


@pytest.mark.parametrize(
    ("error", "linked", "level"),
    [
        (LOST, False, logging.WARNING),
        (LOST, True, logging.DEBUG),  # the other of two that dialled each other
        (RefusedError("link refused: another version"), True, logging.WARNING),
        (None, True, logging.WARNING),
    ],
)
def test_a_link_that_never_opened(
    caplog: pytest.LogCaptureFixture, error: MeshError | None, linked: bool, level: int
) -> None:
    caplog.set_level(logging.DEBUG)
    link: Any = SimpleNamespace(looked_only=False, address="10.0.0.7:7475")
    Complaints().never_opened(link, error, dialled=True, linked=linked)
    assert [record.levelno for record in caplog.records] == [level]


def test_who_only_looks_is_no_trouble(caplog: pytest.LogCaptureFixture) -> None:
    link: Any = SimpleNamespace(looked_only=True, address="10.0.0.7:7475")
    Complaints().never_opened(link, LOST, dialled=False, linked=False)
    assert not caplog.records
