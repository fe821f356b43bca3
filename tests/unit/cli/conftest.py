from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def _uvloop_started() -> None:
    """libuv opens a pipe for signals with the first loop of a process and keeps it."""
    try:
        import uvloop
    except ImportError:
        return
    uvloop.new_event_loop().close()
