"""What a tab fetches from the peer that served its page: models, files by hash, embedded rows."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import sys
import tempfile
from asyncio.subprocess import PIPE
from base64 import b64decode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgpack  # type: ignore[import-untyped]
import numpy as np
import pytest
import pytest_asyncio
import torch

from astra_mesh import limits
from astra_mesh.bundle import open_bundle
from astra_mesh.bundle.tensors import load_weights
from astra_mesh.errors import ProtocolError
from astra_mesh.families import Model, ModelInput, build_model
from astra_mesh.web.tab_envelope import Envelope, Envelopes, question
from astra_mesh.web.tab_folder import remove_left
from tests.bundles import GPT2, gpt2_tensors, write_bundle
from tests.integration.mesh_fixtures import fit_small
from tests.integration.tabs import joined
from tests.integration.web_fixtures import TOKEN, Live, live, make_web_models

TYPE = {"Content-Type": "application/octet-stream"}
TOKENS = [7, 3, 9, 1, 60]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_web_models(tmp_path_factory.mktemp("models"))


@pytest_asyncio.fixture
async def mesh(models: Path) -> AsyncIterator[Live]:
    async with live(models, 1) as made:
        yield made


def _words(models: Path) -> Model:
    bundle = open_bundle(models / "words")
    return build_model(bundle.config, load_weights(bundle))


async def _listed(mesh: Live, name: str) -> dict[str, Any]:
    async with mesh.http.get(f"{mesh.root}/tab/models") as answer:
        assert answer.status == 200
        return next(one for one in await answer.json() if one["name"] == name)


async def _embed(
    mesh: Live, model: str, body: object, headers: dict[str, str] = TYPE
) -> tuple[aiohttp.ClientResponse, Envelope]:
    """The answer, and what opens its body."""
    data = body if isinstance(body, bytes) else msgpack.packb(body)
    path = f"/tab/models/{model}/embed"
    message, envelope = question(data, path, await _point(mesh))
    answer = await mesh.http.post(f"{mesh.root}{path}", data=message, headers=headers)
    return answer, envelope


async def _point(mesh: Live) -> bytes:
    """What the host says when it welcomes a tab."""
    async with joined(mesh.server) as tab:
        return b64decode(tab.welcome["seal"])


async def test_every_file_of_a_model_has_the_hash_that_the_manifest_says(mesh: Live) -> None:
    listed = await _listed(mesh, "words")
    async with mesh.http.get(f"{mesh.root}/tab/models/{listed['id']}") as answer:
        assert answer.status == 200
        manifest = await answer.json()
    assert manifest["id"] == listed["id"]
    assert manifest["blocks"] == len(manifest["weights"]) == manifest["spec"]["num_hidden_layers"]
    fetched = sum(one["bytes"] for one in manifest["weights"])
    assert fetched <= 1.2 * listed["bytes"]
    assert (await _listed(mesh, "words"))["bytes"] == fetched
    wanted = [*manifest["graphs"].values(), *manifest["weights"]]
    for book in manifest["codebooks"]:
        for level in book["levels"].values():
            wanted += level
    assert len(wanted) > 10
    for one in wanted:
        async with mesh.http.get(f"{mesh.root}/tab/blobs/{one['sha256']}") as answer:
            data = await answer.read()
            assert "immutable" in answer.headers["Cache-Control"]
        assert len(data) == one["bytes"]
        assert hashlib.sha256(data).hexdigest() == one["sha256"]


async def test_embedded_rows_are_the_models(mesh: Live, models: Path) -> None:
    listed = await _listed(mesh, "words")
    model = await asyncio.to_thread(_words, models)
    wanted = model.embed(ModelInput(tokens=torch.tensor(TOKENS)), 1, 4)
    asked = {"inputs": {"tokens": TOKENS}, "start": 1, "stop": 4}
    answer, envelope = await _embed(mesh, listed["id"], asked)
    async with answer:
        assert answer.status == 200
        sealed = await answer.read()
    rows = np.frombuffer(envelope.open(sealed), "<f4").reshape(3, -1)
    assert np.array_equal(rows, wanted.numpy())


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "msgpack"),
        (b"\xc1", "msgpack"),
        (b"\x91" * 5000, "msgpack"),
        ([1], "msgpack"),
        ({"inputs": {"tokens": TOKENS}, "start": 0}, "stop"),
        ({"inputs": {"tokens": TOKENS}, "start": 2, "stop": 2}, "above start"),
        ({"inputs": {"tokens": TOKENS}, "start": 0, "stop": 6}, "5 tokens"),
        ({"inputs": {"tokens": TOKENS}, "start": 0, "stop": 2**40}, "stop"),
        ({"inputs": {"tokens": []}, "start": 0, "stop": 1}, "empty"),
        ({"inputs": {"tokens": [2**40]}, "start": 0, "stop": 1}, "out of range"),
        ({"inputs": {"tokens": [-1]}, "start": 0, "stop": 1}, "out of range"),
        ({"inputs": {"tokens": [999]}, "start": 0, "stop": 1}, "token ids"),
        (
            {"inputs": {"tokens": TOKENS, "token_types": [2**35] * 5}, "start": 0, "stop": 1},
            "range",
        ),
        ({"inputs": {"image": b"no picture"}, "start": 0, "stop": 1}, "text"),
        ({"inputs": {"tokens": TOKENS}, "start": 0, "stop": 1, "more": 1}, "more"),
    ],
)
async def test_bad_requests_for_rows_are_refused_with_a_sentence(
    mesh: Live, body: object, says: str
) -> None:
    listed = await _listed(mesh, "words")
    answer, _ = await _embed(mesh, listed["id"], body)
    async with answer:
        assert answer.status == 400
        assert says in (await answer.json())["error"]["message"]


async def test_models_of_16_bits_are_listed_with_two_bytes_for_each_number(tmp_path: Path) -> None:
    """In place of three: a third less is fetched, too."""
    for name, kind in (("full", torch.float32), ("half", torch.half), ("brain", torch.bfloat16)):
        tensors = {key: value.to(kind) for key, value in gpt2_tensors(GPT2).items()}
        config = {**GPT2, "torch_dtype": "float16"}  # the files count
        await asyncio.to_thread(write_bundle, tmp_path / name, config, tensors)
    async with live(tmp_path, 1) as mesh:
        listed = {name: await _listed(mesh, name) for name in ("full", "half", "brain")}
        numbers = listed["full"]["memory_bytes"] // 4
        assert {name: one["bytes"] for name, one in listed.items()} == {
            "full": 3 * numbers,
            "half": 2 * numbers,
            "brain": 2 * numbers,
        }
        for one in listed.values():
            async with mesh.http.get(f"{mesh.root}/tab/models/{one['id']}") as answer:
                weights = (await answer.json())["weights"]
            assert sum(file["bytes"] for file in weights) <= 1.2 * one["bytes"]


async def test_a_model_whose_file_is_bad_by_now_is_listed_all_the_same(
    models: Path, tmp_path: Path
) -> None:
    await asyncio.to_thread(shutil.copytree, models / "plain", tmp_path / "plain")
    async with live(tmp_path, 1) as mesh:
        (tmp_path / "plain" / "model.safetensors").write_bytes(b"")
        listed = await _listed(mesh, "plain")
        assert listed["bytes"] == 3 * listed["memory_bytes"] // 4


async def test_what_is_asked_about_requests_is_for_the_host_alone(mesh: Live) -> None:
    """Pages are served over plain HTTP: who is on the line reads nothing, and changes nothing."""
    listed = await _listed(mesh, "words")
    path, other = (f"/tab/models/{one}/embed" for one in (listed["id"], "0" * 64))
    body = msgpack.packb({"inputs": {"tokens": TOKENS}, "start": 1, "stop": 4})
    point = await _point(mesh)
    message, envelope = question(body, path, point)
    assert body[-20:] not in message
    flipped = bytes([*message[:-1], message[-1] ^ 1])
    strange, _ = question(body, path, Envelopes().point)
    no_point = b"\4" + message[1:64] + bytes([message[64] ^ 1]) + message[65:]
    for sent, to, says in (
        (body, path, "a sealed question"),
        (b"", path, "a sealed question"),
        (no_point, path, "a sealed question"),
        (flipped, path, "altered"),
        (message, other, "altered"),
        (strange, path, "started again since"),
    ):
        async with mesh.http.post(mesh.root + to, data=sent, headers=TYPE) as answer:
            assert answer.status == 400
            assert says in (await answer.json())["error"]["message"]
    async with mesh.http.post(mesh.root + path, data=message, headers=TYPE) as answer:
        assert answer.status == 200
        sealed = await answer.read()
    rows = envelope.open(sealed)
    assert rows[:16] not in sealed
    with pytest.raises(ProtocolError, match="altered"):
        envelope.open(sealed[:-1] + bytes([sealed[-1] ^ 1]))


async def test_what_is_not_there_is_not_found(mesh: Live) -> None:
    for path, status in (
        ("/tab/models/" + "0" * 64, 404),
        ("/tab/blobs/" + "0" * 64, 404),
        ("/tab/blobs/nothing", 400),
        ("/tab/blobs/" + "A" * 64, 400),
        ("/tab/blobs/..%2f..%2fetc%2fpasswd", 400),
    ):
        async with mesh.http.get(mesh.root + path) as answer:
            assert answer.status == status, path
    answer, _ = await _embed(mesh, "0" * 64, {})
    async with answer:
        assert answer.status == 404
    answer, _ = await _embed(mesh, "0" * 64, {}, {"Content-Type": "text/plain"})
    async with answer:
        assert answer.status == 415
        said = (await answer.json())["error"]["message"]
        assert said == "send the header Content-Type: application/json or application/octet-stream"


async def test_files_that_the_system_cleared_away_are_made_again(
    mesh: Live, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All, one model's or one file, whichever is asked for first."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    listed = await _listed(mesh, "words")
    manifest_at = f"{mesh.root}/tab/models/{listed['id']}"
    async with mesh.http.get(manifest_at) as answer:
        manifest = await answer.json()
    first, last = manifest["weights"][0]["sha256"], manifest["weights"][-1]["sha256"]

    async def fetched(sha256: str) -> str:
        async with mesh.http.get(f"{mesh.root}/tab/blobs/{sha256}") as answer:
            assert answer.status == 200
            return hashlib.sha256(await answer.read()).hexdigest()

    for what in ("astra-mesh-tab-*", f"astra-mesh-tab-*/{listed['id']}"):
        for first_asked in (manifest_at, ""):
            (gone,) = tmp_path.glob(what)
            await asyncio.to_thread(shutil.rmtree, gone)
            if first_asked:
                async with mesh.http.get(first_asked) as answer:
                    assert await answer.json() == manifest
            assert await fetched(first) == first
            assert await fetched(last) == last
    (one,) = tmp_path.glob(f"astra-mesh-tab-*/{listed['id']}/{first}")
    one.unlink()
    assert await fetched(first) == first
    assert await fetched(last) == last


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
async def test_a_file_that_the_disk_damaged_is_made_anew(
    mesh: Live,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: str,
) -> None:
    """For whoever asks past the caches, as tabs do where a file's hash is wrong; for several at
    once too. A whole file is served as it is."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    listed = await _listed(mesh, "words")
    async with mesh.http.get(f"{mesh.root}/tab/models/{listed['id']}") as answer:
        sha256 = (await answer.json())["weights"][0]["sha256"]
    (file,) = tmp_path.glob(f"astra-mesh-tab-*/{listed['id']}/{sha256}")
    whole = file.read_bytes()

    async def fetched(**headers: str) -> bytes:
        async with mesh.http.get(f"{mesh.root}/tab/blobs/{sha256}", headers=headers) as answer:
            assert answer.status == 200
            return await answer.read()

    made = file.stat().st_ino
    assert await fetched(**{"Cache-Control": "no-cache"}) == whole
    assert file.stat().st_ino == made
    kept = {"flipped": bytes([whole[0] ^ 1]) + whole[1:], "cut": whole[:-1], "empty": b""}[damage]
    file.write_bytes(kept)
    assert await fetched() == kept
    assert not caplog.messages
    both = [fetched(**{"Cache-Control": "no-cache"}) for _ in range(2)]
    assert await asyncio.gather(*both) == [whole, whole]
    assert await fetched() == whole
    assert caplog.messages == [
        f"a file of words for tabs was damaged on this device's disk; it is made anew: {file}"
    ]


async def test_codebooks_that_come_later_are_among_the_files(models: Path, tmp_path: Path) -> None:
    await asyncio.to_thread(shutil.copytree, models / "plain", tmp_path / "plain")
    async with live(tmp_path, 1) as mesh:
        listed = await _listed(mesh, "plain")
        manifest_at = f"{mesh.root}/tab/models/{listed['id']}"
        async with mesh.http.get(manifest_at) as answer:
            before = await answer.json()
        assert listed["codebooks"] == before["codebooks"] == []
        await asyncio.to_thread(fit_small, tmp_path / "plain")
        async with asyncio.timeout(20):
            while len((await _listed(mesh, "plain"))["codebooks"]) < 2:
                await asyncio.sleep(0.1)
        async with mesh.http.get(manifest_at) as answer:
            after = await answer.json()
        assert after["weights"] == before["weights"]
        offered = {one["id"] for one in (await _listed(mesh, "plain"))["codebooks"]}
        assert {one["id"] for one in after["codebooks"]} == offered
        for book in after["codebooks"]:
            assert book["first_rate"] == book["default_rate"]  # nothing was measured
            file = next(iter(book["levels"].values()))[0]["sha256"]
            async with mesh.http.get(f"{mesh.root}/tab/blobs/{file}") as answer:
                assert hashlib.sha256(await answer.read()).hexdigest() == file


_MAKES = (
    "import time; from astra_mesh.web.tab_folder import TabFolder; one = TabFolder();"
    "(one.path / 'model').mkdir(); print(one.path, flush=True); time.sleep(60)"
)


async def test_folders_of_peers_that_were_killed_go(
    models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """When the next one starts; those of others that live, and what is no such folder, stay."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    command = (sys.executable, "-c", _MAKES)
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    processes = [
        await asyncio.create_subprocess_exec(*command, stdout=PIPE, env=environment)
        for _ in range(2)
    ]
    try:
        dead, alive = [
            Path((await one.stdout.readline()).decode().strip()) for one in processes if one.stdout
        ]
        assert dead.parent == alive.parent == tmp_path
        processes[0].kill()
        await processes[0].wait()
        (tmp_path / "astra-mesh-tab-other").mkdir()
        (tmp_path / "astra-mesh-tab-link").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "in-use.lock").touch()
        async with live(models, 1) as mesh:
            left = {one.name for one in tmp_path.glob("*")}
            assert left == {alive.name, "astra-mesh-tab-other", "astra-mesh-tab-link", "elsewhere"}
            assert (alive / "model").is_dir()
            listed = await _listed(mesh, "words")
            async with mesh.http.get(f"{mesh.root}/tab/models/{listed['id']}") as answer:
                assert answer.status == 200
            (own,) = {one.name for one in tmp_path.glob("astra-mesh-tab-*")} - left
            await asyncio.to_thread(remove_left)
            assert (tmp_path / own / listed["id"]).is_dir()
        assert not (tmp_path / own).exists()
    finally:
        for one in processes:
            if one.returncode is None:
                one.kill()
            await one.wait()


async def test_a_token_guards_them(models: Path) -> None:
    async with live(models, 1, token=TOKEN) as mesh:
        for path in ("/tab/models", "/tab/models/" + "0" * 64, "/tab/blobs/" + "0" * 64):
            async with mesh.http.get(mesh.root + path) as answer:
                assert answer.status == 401


async def test_a_model_that_no_tab_can_hold_says_so(
    mesh: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "TAB_MODEL_BYTES", 1000)
    listed = await _listed(mesh, "words")
    assert "browser tab" in listed["why"]
    async with mesh.http.get(f"{mesh.root}/tab/models/{listed['id']}") as answer:
        assert answer.status == 500
        assert "browser tab" in (await answer.json())["error"]["message"]


async def test_files_of_models_that_were_not_used_for_long_go(
    mesh: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "TAB_MODELS", 1)
    words, plain = await _listed(mesh, "words"), await _listed(mesh, "plain")
    async with mesh.http.get(f"{mesh.root}/tab/models/{words['id']}") as answer:
        manifest = await answer.json()
    async with mesh.http.get(f"{mesh.root}/tab/models/{plain['id']}") as answer:
        assert answer.status == 200
    address = f"{mesh.root}/tab/blobs/{manifest['weights'][0]['sha256']}"
    async with mesh.http.get(address) as answer:
        assert answer.status == 404
    async with mesh.http.get(f"{mesh.root}/tab/models/{words['id']}") as answer:
        assert await answer.json() == manifest
    async with mesh.http.get(address) as answer:
        assert answer.status == 200
