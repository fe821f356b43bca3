"""Models that many of these tests ask; a module with other needs has ``models`` of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.web_fixtures import make_web_models


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_web_models(tmp_path_factory.mktemp("web-models") / "all")
