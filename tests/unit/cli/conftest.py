from __future__ import annotations

from collections.abc import Iterator

import pytest

from astra_mesh.peer import measure


@pytest.fixture(scope="session", autouse=True)
def _uvloop_started() -> None:
    """libuv opens a pipe for signals with the first loop of a process and keeps it."""
    try:
        import uvloop
    except ImportError:
        return
    uvloop.new_event_loop().close()


@pytest.fixture(scope="session", autouse=True)
def _measured_briefly() -> Iterator[None]:
    """No test here reads the figures: a codebook's are measured in 40 ms, not in 400 ms."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "WINDOW_S", 0.002)
        yield
