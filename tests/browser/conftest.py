"""Peers whose page a headless Chromium opens."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.browser.chrome import PATH, Tab, chrome
from tests.integration.mesh_fixtures import make_models


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small models; ``words`` has a chat template, and figures of its quality."""
    from tests.browser.pages import give_chat, give_quality

    folder = make_models(tmp_path_factory.mktemp("models") / "all")
    give_chat(folder / "words")
    give_quality(folder / "words")
    return folder


@asynccontextmanager
async def browser(*flags: str) -> AsyncIterator[Tab]:
    if PATH is None:
        pytest.skip("no Chromium on this machine (Debian: apt install chromium)")
    folder = Path(tempfile.mkdtemp(prefix="astra-mesh-chrome-"))
    try:
        async with chrome(folder, *flags) as found:
            yield found
    finally:  # a dying Chromium may still write there
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


@pytest.fixture
async def tab() -> AsyncIterator[Tab]:
    async with browser() as found:
        yield found


@pytest.fixture
async def other_tab() -> AsyncIterator[Tab]:
    """Of another person, whose browser knows nothing of the first."""
    async with browser() as found:
        yield found


@pytest.fixture(scope="module")
def sample() -> Path:
    return Path(__file__).parents[2] / "models" / "vit-tiny" / "sample.jpg"
