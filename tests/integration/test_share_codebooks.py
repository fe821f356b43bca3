"""Codebooks that peers give to those who hold the model without them."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from astra_mesh import limits
from astra_mesh.bundle import Bundle, install, open_bundle, verify
from astra_mesh.bundle.store import user_models_path
from astra_mesh.client import Mesh
from astra_mesh.client.fetch_codebooks import (
    CodebookFetch,
    bundle_here,
    codebooks_here,
    lacking,
    put,
)
from astra_mesh.client.finding import own_way
from astra_mesh.client.holders import Holder, Holders
from astra_mesh.client.keeping import keep_codebooks
from astra_mesh.errors import BadBundleError, MeshError
from astra_mesh.peer import Peer, PeerConfig
from astra_mesh.peer.share import Share
from astra_mesh.wire.messages import CodebookId
from tests.forks import python
from tests.integration.mesh_fixtures import fit_small, mesh_of, until

pytestmark = pytest.mark.usefixtures("forks")


@pytest.fixture
def bare(models: Path, tmp_path: Path) -> Bundle:
    """The model ``words`` on this device, without codebooks, under a name of its own."""
    copy = shutil.copytree(models / "words", tmp_path / "words")
    for path in (*copy.glob("codebook*"), *copy.glob("manifest.json")):
        path.unlink()
    bundle = install.add(copy, "mine")
    assert bundle.model_id == open_bundle(models / "words").model_id
    return bundle


async def pull(peer: Peer, *argv: str) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        *(*python(), "-m", "astra_mesh", "models", "pull", "words", "--json", *argv),
        *("--connect", f"127.0.0.1:{peer.port}"),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    found: dict[str, Any] = json.loads(out)
    return found


async def test_the_command_gets_only_what_is_missing(models: Path, bare: Bundle) -> None:
    async with mesh_of(["left", "right"], models) as peers:
        about = await pull(peers[0])
        again = await pull(peers[0])
    assert Path(about["path"]) == bare.path
    assert set(about["peers"]) == {"left", "right"}
    assert again["peers"] == []
    await asyncio.to_thread(check_same, bare, models / "words")


def check_same(bare: Bundle, source: Path) -> None:
    for name in ("codebook.safetensors", "codebook-astra.safetensors"):
        assert (bare.path / name).read_bytes() == (source / name).read_bytes()
    found = open_bundle(bare.path)
    assert codebooks_here(found).keys() == codebooks_here(open_bundle(source)).keys()
    assert set(found.codebook_paths) == {"", "astra"}
    assert "codebook.safetensors" in verify(found)
    assert [path.name for path in user_models_path().iterdir()] == ["mine"]


async def test_one_that_takes_a_name_of_another_gets_its_own(models: Path, bare: Bundle) -> None:
    astra = models / "words" / "codebook-astra.safetensors"
    await asyncio.to_thread(shutil.copyfile, astra, bare.path / "codebook.safetensors")
    async with mesh_of(["left"], models) as peers, Mesh(("127.0.0.1", peers[0].port)) as mesh:
        secure = await asyncio.to_thread(own_way)
        here = await asyncio.to_thread(bundle_here, bare.model_id)
        assert here is not None
        around = (await mesh.peers(), mesh.peer_address, secure)
        ids, holders = await asyncio.to_thread(lacking, here, *around)
        assert len(ids) == 1
        fetch = CodebookFetch(here, ids, holders)
        await fetch.look()
        found = await fetch.run()
    (key,) = ids
    books = await asyncio.to_thread(codebooks_here, found)
    assert books[key].name == f"codebook-{key[:8]}.safetensors"
    assert len(books) == 2


@asynccontextmanager
async def giving(bundle: Bundle) -> AsyncIterator[Holder]:
    """Gives the files of a bundle, without TLS."""
    app = web.Application()
    Share(lambda model: bundle, lambda: False).add_routes(app)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield Holder("liar", ("127.0.0.1", runner.addresses[0][1]))
    finally:
        await runner.cleanup()


async def test_other_codebooks_than_were_offered_are_not_taken(
    models: Path, bare: Bundle, tmp_path: Path
) -> None:
    offered, foreign = await asyncio.to_thread(prepare, models, bare, tmp_path / "other")
    async with giving(foreign) as holder:
        fetch = CodebookFetch(bare, offered, Holders(bare.model_id, "words", (holder,)))
        await fetch.look()
        with pytest.raises(BadBundleError, match="not the codebooks that were offered"):
            await fetch.run()
    assert await asyncio.to_thread(books_of, bare.path) == []
    own = await asyncio.to_thread(fitted_anew, foreign.path)
    books = await asyncio.to_thread(codebooks_here, own)
    wanted = next(iter(books))  # the other one comes too, and is left out
    async with giving(own) as holder:
        found = Holders(bare.model_id, "words", (holder,))
        fetch = CodebookFetch(bare, frozenset({wanted}), found)
        await fetch.look()
        taken = await asyncio.to_thread(codebooks_here, await fetch.run())
    assert len(books) == 2
    assert set(taken) == {wanted}
    assert await asyncio.to_thread(books_of, bare.path) == [books[wanted].name]


def prepare(models: Path, bare: Bundle, folder: Path) -> tuple[frozenset[CodebookId], Bundle]:
    """What is offered; and the model with a codebook of another model."""
    copy = shutil.copytree(bare.path, folder / "words")
    shutil.copyfile(models / "feelings" / "codebook.safetensors", copy / "codebook.safetensors")
    (copy / "manifest.json").unlink()
    return frozenset(codebooks_here(open_bundle(models / "words"))), open_bundle(copy)


def fitted_anew(folder: Path) -> Bundle:
    (folder / "codebook.safetensors").unlink()
    fit_small(folder)
    return open_bundle(folder)


def books_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*codebook*"))


@pytest.mark.parametrize("loaded", [False, True])
async def test_a_peer_that_runs_uses_them_without_a_new_start(
    models: Path, bare: Bundle, monkeypatch: pytest.MonkeyPatch, loaded: bool
) -> None:
    monkeypatch.setattr("astra_mesh.peer.models.RESCAN_S", 0.05)
    config = PeerConfig(
        name="one", port=0, listen="127.0.0.1", discovery=False, ephemeral=True, threads=1
    )
    async with Peer(config) as peer:
        model = peer.models.find("mine")
        offer = peer.models.offer(model)
        assert offer is not None
        assert offer.codebooks == []
        held = await peer.models.load(model) if loaded else None
        async with Mesh(("127.0.0.1", peer.port)) as mesh:
            for name in ("codebook.safetensors", "codebook-astra.safetensors"):
                await asyncio.to_thread(put, models / "words" / name, bare.path / name)
            await until(lambda: len(getattr(peer.models.offer(model), "codebooks", ())) == 2)
            answer = mesh.generate("mine", "w1 w2", max_new_tokens=1, codec="vq")
            assert len([token async for token in answer]) == 1
    if held is not None:
        assert set(held.times) == set(held.codebooks) != set()


def config_of_bare(beside: Peer) -> PeerConfig:
    return PeerConfig(
        name="bare",
        port=0,
        listen="127.0.0.1",
        discovery=False,
        ephemeral=True,
        threads=1,
        models=("mine",),
        peers=(("127.0.0.1", beside.port),),
    )


async def test_a_peer_gets_them_by_itself(
    models: Path, bare: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CODEBOOK_LOOK_S", 0.05)
    async with mesh_of(["left"], models) as peers, Peer(config_of_bare(peers[0])) as peer:
        keeping = asyncio.create_task(keep_codebooks(peer))
        model = peer.models.find("mine")
        await until(lambda: len(getattr(peer.models.offer(model), "codebooks", ())) == 2)
        keeping.cancel()
        await asyncio.wait([keeping])
    await asyncio.to_thread(check_same, bare, models / "words")


async def test_what_did_not_come_is_tried_again_later(
    models: Path, bare: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "CODEBOOK_LOOK_S", 0.02)
    monkeypatch.setattr(limits, "CODEBOOK_AGAIN_S", 0.5)
    tried: list[float] = []

    async def fails(self: CodebookFetch) -> None:
        tried.append(time.monotonic())
        raise MeshError("the other peer went away")

    monkeypatch.setattr(CodebookFetch, "look", fails)
    async with mesh_of(["left"], models) as peers, Peer(config_of_bare(peers[0])) as peer:
        keeping = asyncio.create_task(keep_codebooks(peer))
        await until(lambda: len(tried) == 2)
        keeping.cancel()
        await asyncio.wait([keeping])
    assert tried[1] - tried[0] >= 0.5
    assert caplog.text.count("codebooks of mine did not come: the other peer went away") == 1
