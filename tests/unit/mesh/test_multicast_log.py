"""The library's warnings of sockets become one sentence, or none."""

from __future__ import annotations

import errno
import logging

import pytest
from zeroconf import _logger

from astra_mesh.mesh import multicast_log
from astra_mesh.mesh.multicast_log import keep_short


@pytest.fixture(autouse=True)
def _anew(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_short()
    monkeypatch.setattr(multicast_log._FILTER, "_said", set())
    monkeypatch.setattr(_logger, "_seen_logs", {})


def fail(number: int) -> None:
    """As the library does it for each of its sockets, which have names of their own."""
    for socket in range(3):
        error = OSError(number, f"error {number}")
        text = f"Error with socket {socket} (('192.0.2.1', 5353))): %s"
        _logger.QuietLogger.log_exception_once(error, text, error)


def test_a_cable_that_is_out_and_an_early_end_are_no_lines_of_the_library(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for number in (errno.ENETUNREACH, errno.ENETDOWN, errno.ENODEV):
        fail(number)
    logging.getLogger("zeroconf").warning("Address not available when binding to %s, it is", "x")
    logging.getLogger("zeroconf").warning("unregister_all_services skipped as it does blocking i/o")
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []


def test_what_a_firewall_forbids_is_one_sentence_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    keep_short()  # once more
    fail(errno.EPERM)
    (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert record.name == multicast_log.__name__
    assert record.getMessage().endswith("(error 1): `astra-mesh doctor` says more")
    assert record.exc_info is None


def test_other_warnings_of_the_library_stay(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("zeroconf").warning("something else")
    assert [r.name for r in caplog.records] == ["zeroconf"]
