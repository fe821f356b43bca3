"""What the tests of the API share: a mesh with an API on its last peer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from openai import AsyncOpenAI

from astra_mesh.peer import Peer, PeerConfig
from astra_mesh.web import ApiConfig, ApiServer, serving
from tests.bundles import GPT2, gpt2_tensors, write_bundle
from tests.integration.mesh_fixtures import make_models, mesh_of

ELSEWHERE = "device.test"  # the name of a peer that another device opens the page of
TOKEN = "0123456789abcdefghij"
PROMPT = " ".join(f"w{7 * i % 64}" for i in range(40))
TEMPLATE = (
    "{{ bos_token }} {% for m in messages %}{% if m.role == 'system' %}w1{% else %}w2{% endif %} "
    "{{ m.content }} {% endfor %}{% if add_generation_prompt %}w3{% endif %}"
)
MESH = {"x_astra_mesh": {"use": "all"}}


def make_web_models(folder: Path) -> Path:
    """``words`` holds conversations, ``plain`` does not."""
    make_models(folder)
    config = {"chat_template": TEMPLATE, "bos_token": {"content": "w5"}}
    (folder / "words" / "tokenizer_config.json").write_text(json.dumps(config))
    write_bundle(folder / "plain", GPT2, gpt2_tensors(GPT2, 3))
    return folder


@dataclass
class Live:
    """A mesh with an API on its last peer."""

    peers: list[Peer]
    server: ApiServer
    client: AsyncOpenAI
    http: aiohttp.ClientSession

    @property
    def root(self) -> str:
        return self.server.url.removesuffix("/v1")


@asynccontextmanager
async def live(models: Path, count: int = 2, **settings: Any) -> AsyncIterator[Live]:
    token = settings.get("token")
    names = [f"peer{i}" for i in range(count)]
    async with (
        mesh_of(names, models) as peers,
        serving(peers[-1], ApiConfig(port=0, **settings)) as server,
        AsyncOpenAI(base_url=server.url, api_key=token or "none", max_retries=0) as client,
        aiohttp.ClientSession() as http,
    ):
        yield Live(peers, server, client, http)


@dataclass
class Device:
    """A peer with trust of its own, and its API."""

    peer: Peer
    server: ApiServer

    @property
    def root(self) -> str:
        return self.server.url.removesuffix("/v1")

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.peer.port}"


@asynccontextmanager
async def strangers(folder: Path, *names: str) -> AsyncIterator[list[Device]]:
    """Devices that are not paired."""
    async with AsyncExitStack() as stack:
        found = []
        for name in names:
            config = PeerConfig(
                name=name,
                port=0,
                discovery=False,
                listen="127.0.0.1",
                threads=1,
                models=(),
                state_dir=folder / name / "state",
                trust_dir=folder / name / "trust",
            )
            peer = await stack.enter_async_context(Peer(config))
            config_of_api = ApiConfig(port=0, hosts=(ELSEWHERE,))
            server = await stack.enter_async_context(serving(peer, config_of_api))
            found.append(Device(peer, server))
        yield found


def busy(peer: Peer) -> bool:
    requests = peer._requests
    assert requests is not None
    return bool(requests._answers or requests._parts or requests._exchanges or requests._running)
