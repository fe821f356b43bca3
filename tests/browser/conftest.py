"""Peers whose page a headless Chromium opens."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from astra_mesh.peer.steps import StepQueue
from tests.browser.chrome import PATH, Chromium, Tab, chrome, stranger
from tests.integration.mesh_fixtures import make_models


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small models; ``words`` has a chat template, and figures of its quality."""
    from tests.browser.pages import give_chat, give_quality

    folder = make_models(tmp_path_factory.mktemp("models") / "all")
    give_chat(folder / "words")
    give_quality(folder / "words")
    return folder


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium]:
    """One for all tests; each tab is in a window of somebody else."""
    _check_chromium()
    folder = Path(tempfile.mkdtemp(prefix="astra-mesh-chrome-"))
    try:
        with closing(Chromium(folder)) as found:
            yield found
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # a dying Chromium may still write there


@pytest.fixture
async def tab(chromium: Chromium) -> AsyncIterator[Tab]:
    async with stranger(chromium.port) as found:
        yield found


@pytest.fixture
async def other_tab(chromium: Chromium) -> AsyncIterator[Tab]:
    """Of another person, whose browser knows nothing of the first."""
    async with stranger(chromium.port) as found:
        yield found


@asynccontextmanager
async def browser(*flags: str) -> AsyncIterator[Tab]:
    """A tab of a Chromium that was started for it."""
    _check_chromium()
    folder = Path(tempfile.mkdtemp(prefix="astra-mesh-chrome-"))
    try:
        async with chrome(folder, *flags) as found:
            yield found
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _check_chromium() -> None:
    if PATH is None:
        pytest.skip("no Chromium on this machine (Debian: apt install chromium)")


@pytest.fixture(scope="module")
def sample() -> Path:
    return Path(__file__).parents[2] / "models" / "vit-tiny" / "sample.jpg"


@pytest.fixture
def slow_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each new token takes 0.1 s longer."""
    original = StepQueue.step

    async def slow(self: StepQueue, *args: Any) -> int | None:
        await asyncio.sleep(0.1)
        return await original(self, *args)

    monkeypatch.setattr(StepQueue, "step", slow)
