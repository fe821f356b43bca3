"""What several tests of a peer's parts need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from astra_mesh.engine.compute import ComputeThread


@pytest.fixture
def compute() -> Iterator[ComputeThread]:
    with closing(ComputeThread()) as thread:
        yield thread
