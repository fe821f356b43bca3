"""What these tests share: models that many of them ask, and peers that are ready soon."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from astra_mesh.peer import measure
from tests.integration.web_fixtures import make_web_models


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small ones with random weights; a module with other needs has ``models`` of its own."""
    return make_web_models(tmp_path_factory.mktemp("web-models") / "all")


@pytest.fixture(scope="session", autouse=True)
def _measured_briefly() -> Iterator[None]:
    """A peer in this process measures a small model in 70 ms, not in half a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "WINDOW_S", 0.002)
        yield
