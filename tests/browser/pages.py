"""What the tests of the page share: peers with a page, and models that have all it shows."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astra_mesh.bundle import open_bundle
from astra_mesh.bundle.quality import DEFINITIONS, Measured, TaskQuality, recommend, save_quality
from astra_mesh.peer import Peer
from astra_mesh.web import ApiConfig, ApiServer, serving
from tests.browser.chrome import Tab
from tests.integration.mesh_fixtures import mesh_of

TEMPLATE = "{{ bos_token }} {% for m in messages %}w2 {{ m.content }} {% endfor %}w3"


def give_chat(folder: Path) -> None:
    config = {"chat_template": TEMPLATE, "bos_token": {"content": "w5"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def give_quality(folder: Path) -> None:
    bundle = open_bundle(folder)
    rows = [
        Measured(
            "vq", "ab" * 32, -1, stages, bits, peers, {"nats_increase": nats, "perplexity": 30.0}
        )
        for stages, bits, nats in ((1, 8, 0.04), (2, 16, 0.01))
        for peers in (2, 4)
    ]
    names = ("nats_increase", "perplexity")
    found = TaskQuality(
        data="<b>valid</b>.txt",
        sequences=10,
        tokens=400,
        class_token="none",
        shards="even",
        measure="perplexity",
        limit=0.02,
        baseline={"perplexity": 30.0},
        definitions={name: DEFINITIONS[name] for name in names},
        measured=rows,
        recommended=recommend(rows, 0.02),
    )
    save_quality(bundle, "generate", found)


@dataclass
class Shown:
    """A mesh whose last peer serves the page."""

    peers: list[Peer]
    server: ApiServer

    @property
    def url(self) -> str:
        return self.server.url.removesuffix("/v1") + "/"


@asynccontextmanager
async def shown(models: Path, names: list[str], **settings: Any) -> AsyncIterator[Shown]:
    async with (
        mesh_of(names, models) as peers,
        serving(peers[-1], ApiConfig(**{"port": 0, **settings})) as server,
    ):
        yield Shown(peers, server)


async def no_complaints(tab: Tab, url: str) -> None:
    """Nothing in the console, and nothing was loaded from anywhere but the peer."""
    assert tab.complaints == []
    assert [one for one in tab.loaded if not one.startswith((url, f"blob:{url}", "data:"))] == []


def devices(count: int) -> str:
    return f"document.querySelectorAll('#devices li').length === {count}"


async def begin(tab: Tab, kind: str) -> None:
    """Ask, and wait for the first letters of the answer."""
    await tab.until("document.getElementById('ask-model').value === 'words'")
    await tab.choose("#ask-as", kind)
    await tab.type("#ask-text", "w9 w8")
    await tab.click("#ask-go")
    await tab.until("document.querySelector('#answers p:last-child .made')?.textContent")
