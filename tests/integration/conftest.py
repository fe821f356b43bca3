"""What these tests share: models that many of them ask, and peers that are ready soon."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from astra_mesh.bundle import open_bundle
from astra_mesh.engine.reference import decode, run_solo
from astra_mesh.families import ModelInput
from astra_mesh.peer import measure
from astra_mesh.peer.loaded import Loaded
from astra_mesh.peer.loading import load
from tests.integration.asking import PROMPT, SHORT
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


@pytest.fixture(scope="session")
def words(models: Path) -> Loaded:
    """The model that :mod:`asking` asks for."""
    return load(open_bundle(models / "words"))


@pytest.fixture(scope="session")
def alone(words: Loaded) -> list[int]:
    """What one device answers to a request of :mod:`asking`; fp32 over any plan gives the same."""
    run = run_solo(words.model, ModelInput(tokens=torch.tensor(PROMPT)), "last", spare=64)
    return decode([run], SHORT, words.stop_ids)
