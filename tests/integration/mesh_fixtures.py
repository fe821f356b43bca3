"""Real peers in one process, and a client that speaks the protocol, for the tests of the mesh."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import torch
from PIL import Image

from astra_mesh.bundle import open_bundle
from astra_mesh.bundle.tensors import load_weights
from astra_mesh.families import ModelInput, build_model
from astra_mesh.mesh.link import Link
from astra_mesh.mesh.session import Session
from astra_mesh.mesh.timings import Timings
from astra_mesh.peer import Peer, PeerConfig
from astra_mesh.peer.answer import new_request
from astra_mesh.quant.codebook import UNLIMITED
from astra_mesh.quant.fit import fit_codebook
from astra_mesh.quant.options import FitOptions
from astra_mesh.wire.codec import AnyMessage
from astra_mesh.wire.messages import (
    MAGIC,
    PROTOCOL_VERSION,
    Ask,
    Cancel,
    Fail,
    Hello,
    Options,
    Planned,
    RequestId,
    Result,
    Role,
    Sampling,
    Task,
    Token,
)
from tests.bundles import BERT, GPT2, VIT, bert_tensors, gpt2_tensors, vit_tensors, write_bundle
from tests.integration.secure import Caller

WAIT_S = 20.0
# Four codes of 4 bits, or two: with a history each rate has codewords and predictions of its own.
SMALL = FitOptions(
    history=UNLIMITED, rates=(8, 16), default_rate=16, groups=2, codewords=16, iterations=5
)


def make_models(folder: Path, seed: int = 0) -> Path:
    """Bundles ``words`` (GPT-2), ``pictures`` (ViT) and ``feelings`` (BERT) with codebooks."""
    write_bundle(folder / "words", GPT2, gpt2_tensors(GPT2, seed))
    write_bundle(folder / "pictures", VIT, vit_tensors(VIT, seed))
    write_bundle(folder / "feelings", BERT, bert_tensors(BERT, seed))
    for name in ("words", "pictures", "feelings"):
        fit_small(folder / name)
    return folder


def fit_small(folder: Path) -> None:
    """Give a bundle a ``vq`` codebook that remembers and an ``astra`` one, from random inputs."""
    bundle = open_bundle(folder)
    model = build_model(bundle.config, load_weights(bundle))
    g = torch.Generator().manual_seed(1)
    count = 12
    if model.spec.vocab_size:
        inputs = [
            ModelInput(tokens=torch.randint(model.spec.vocab_size, (48,), generator=g))
            for _ in range(count)
        ]
    else:
        inputs = [ModelInput(pixels=torch.randn(3, 32, 32, generator=g)) for _ in range(3 * count)]
    astra = FitOptions("astra", history=0, groups=4, codewords=32, iterations=5)
    for options, name in ((SMALL, "codebook"), (astra, "codebook-astra")):
        book, _ = fit_codebook(model, bundle.model_id, inputs, options)
        book.save(folder / f"{name}.safetensors")


def picture(seed: int = 0, edge: int = 32) -> bytes:
    """A PNG of ``edge`` x ``edge`` random pixels."""
    g = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (edge, edge, 3), generator=g, dtype=torch.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass
class Reply:
    """Everything that came back for one request."""

    planned: list[Planned] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    result: Result | None = None
    failure: Fail | None = None

    @property
    def ids(self) -> list[int]:
        return [token.token for token in self.tokens]

    def done(self) -> Result:
        assert self.failure is None, self.failure
        assert self.result is not None
        return self.result


class TestClient:
    """A client with a link to one peer."""

    __test__ = False

    def __init__(self, link: Link) -> None:
        self.link = link
        self._queues: dict[RequestId, asyncio.Queue[AnyMessage]] = {}
        self.greeted = asyncio.Event()

    def on_message(self, message: AnyMessage) -> None:
        if isinstance(message, Hello):
            self.greeted.set()
        if isinstance(message, Token):
            self.link.consumed(message)
        request = getattr(message, "request", None)
        if request in self._queues:
            self._queues[request].put_nowait(message)

    def send(
        self,
        task: Task,
        model: str,
        *,
        text: str | None = None,
        tokens: list[int] | None = None,
        image: bytes | None = None,
        sampling: Sampling | None = None,
        options: Options | None = None,
    ) -> RequestId:
        request = new_request()
        self._queues[request] = asyncio.Queue()
        self.link.send(
            Ask(
                request=request,
                task=task,
                model=model,
                text=text,
                tokens=tokens,
                image=image,
                sampling=sampling,
                options=options or Options(),
            )
        )
        return request

    async def next(self, request: RequestId) -> AnyMessage:
        async with asyncio.timeout(WAIT_S):
            return await self._queues[request].get()

    async def reply(self, request: RequestId) -> Reply:
        reply = Reply()
        while True:
            message = await self.next(request)
            if isinstance(message, Planned):
                reply.planned.append(message)
            elif isinstance(message, Token):
                reply.tokens.append(message)
            elif isinstance(message, Result):
                reply.result = message
                return reply
            elif isinstance(message, Fail):
                reply.failure = message
                return reply

    def cancel(self, request: RequestId) -> None:
        self.link.send(Cancel(request=request))


@asynccontextmanager
async def client_of(peer: Peer, caller: Caller | None = None) -> AsyncIterator[TestClient]:
    """A client linked to ``peer``; of this device, unless ``caller`` is of another."""
    async with aiohttp.ClientSession() as http:
        caller = caller or await Caller.new()
        socket = await caller.dial(http, peer.port)
        hello = Hello(
            magic=MAGIC,
            version=PROTOCOL_VERSION,
            peer=caller.id,
            name="test client",
            role=Role.CLIENT,
            window_bytes=1 << 20,
        )
        link = Link(socket, Session(hello), dialled=True)
        client = TestClient(link)
        task = asyncio.create_task(link.run(client.on_message))
        try:
            await asyncio.wait_for(client.greeted.wait(), WAIT_S)
            yield client
        finally:
            await link.close()
            await task


@asynccontextmanager
async def mesh_of(
    names: list[str],
    models: Path | list[Path],
    timings: Timings | None = None,
    spot_check: float = 0.0,
    low_memory: Collection[str] = (),
) -> AsyncIterator[list[Peer]]:
    """Peers that all know each other; each offers the models of its folder. Some have little
    memory."""
    folders = models if isinstance(models, list) else [models] * len(names)
    async with AsyncExitStack() as stack:
        peers: list[Peer] = []
        for name, folder in zip(names, folders, strict=True):
            config = PeerConfig(
                name=name,
                port=0,
                listen="127.0.0.1",
                peers=tuple(("127.0.0.1", peer.port) for peer in peers),
                threads=1,
                discovery=False,
                ephemeral=True,
                models=tuple(str(path) for path in sorted(folder.iterdir())),
                spot_check=spot_check,
                low_memory=name in low_memory,
                timings=timings or Timings(),
            )
            peers.append(await stack.enter_async_context(Peer(config)))
        await until(lambda: all(len(peer.others()) == len(peers) - 1 for peer in peers))
        yield peers


async def until(condition: object, wait_s: float = WAIT_S) -> None:
    """Wait until ``condition()`` holds; the test fails if it does not in time."""
    assert callable(condition)
    async with asyncio.timeout(wait_s):
        while not condition():
            await asyncio.sleep(0.01)
