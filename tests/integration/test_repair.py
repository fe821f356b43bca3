"""A damaged model is mended from the peers that hold it."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from astra_mesh.bundle import install, open_bundle, verify
from astra_mesh.bundle.store import user_models_path
from tests.forks import python
from tests.integration.mesh_fixtures import mesh_of

WEIGHTS = "model.safetensors"

pytestmark = pytest.mark.usefixtures("forks")


@pytest.fixture
def own(models: Path) -> Path:
    """The model ``words`` among the person's own."""
    return install.add(models / "words", "words").path


async def pull(port: int, *argv: str) -> tuple[int | None, dict[str, Any], str]:
    process = await asyncio.create_subprocess_exec(
        *(*python(), "-m", "astra_mesh", "models", "pull", "words", "--json", *argv),
        *("--connect", f"127.0.0.1:{port}"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode, json.loads(out), err.decode()


def damage(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-4] + b"none")


@pytest.mark.parametrize("kind", ["altered", "missing", "short", "tokenizer too"])
async def test_only_the_damaged_files_come_anew(models: Path, own: Path, kind: str) -> None:
    path, expected = own / WEIGHTS, {WEIGHTS}
    if kind == "missing":
        path.unlink()
    elif kind == "short":
        path.write_bytes(path.read_bytes()[:-4])
    else:
        damage(path)
    if kind == "tokenizer too":
        damage(own / "tokenizer.json")
        expected |= {"tokenizer.json"}
    kept = (own / "config.json").stat().st_ino
    async with mesh_of(["left", "right"], models) as peers:
        status, about, _ = await pull(peers[0].port)
    assert status == 0
    assert (about["path"], set(about["repaired"])) == (str(own), expected)
    assert (own / "config.json").stat().st_ino == kept
    assert await asyncio.to_thread(lambda: verify(open_bundle(own)))
    for name in expected:
        assert (own / name).read_bytes() == (models / "words" / name).read_bytes()
    assert [path.name for path in user_models_path().iterdir()] == ["words"]


async def test_what_no_peer_has_is_told_and_not_signed_off(
    models: Path, own: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    await asyncio.to_thread(shutil.copytree, models / "words", bare / "words")
    (bare / "words" / "codebook.safetensors").unlink()
    (bare / "words" / "manifest.json").unlink(missing_ok=True)
    damage(own / WEIGHTS)
    damage(own / "codebook.safetensors")
    listed = (own / "manifest.json").read_bytes()
    async with mesh_of(["left"], bare) as peers:
        status, about, _ = await pull(peers[0].port)
    assert status
    assert "codebook.safetensors of " in about["error"]["message"]
    assert (own / "manifest.json").read_bytes() == listed
    assert (own / WEIGHTS).read_bytes() == (models / "words" / WEIGHTS).read_bytes()


async def test_another_model_of_that_name_is_left_alone(models: Path, own: Path) -> None:
    shutil.rmtree(own)
    await asyncio.to_thread(install.add, models / "plain", "words")
    damage(own / WEIGHTS)
    before = (own / WEIGHTS).read_bytes()
    async with mesh_of(["left"], models) as peers:
        status, about, _ = await pull(peers[0].port)
    assert status == 2
    assert "there is a model words in " in about["error"]["message"]
    assert (own / WEIGHTS).read_bytes() == before


def add(source: Path) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [*python(), "-m", "astra_mesh", "models", "add", source, "--name", "words", "--json"],
        stdout=subprocess.PIPE,
        check=False,
    )
    return done.returncode, json.loads(done.stdout)


def test_adding_a_model_again_mends_it(models: Path, own: Path) -> None:
    damage(own / WEIGHTS)
    (own / "tokenizer.json").unlink()
    kept = (own / "config.json").stat().st_ino
    status, about = add(models / "words")
    assert status == 0
    assert (about["path"], about["repaired"]) == (str(own), [WEIGHTS, "tokenizer.json"])
    assert about["peers"] == [str(models / "words")]
    assert (own / "config.json").stat().st_ino == kept
    assert WEIGHTS in verify(open_bundle(own))
    status, about = add(models / "words")  # whole again: there is one of this name
    assert status == 2
    assert "there is a model words" in about["error"]["message"]


def test_a_source_that_lacks_a_damaged_file_names_what_else_mends(
    models: Path, own: Path, tmp_path: Path
) -> None:
    source = shutil.copytree(models / "words", tmp_path / "words")
    for folder in (own, source):
        damage(folder / "tokenizer.json")
    damage(own / WEIGHTS)
    (source / "manifest.json").unlink(missing_ok=True)
    status, about = add(source)
    assert status == 1
    assert "tokenizer.json of" in about["error"]["message"]
    assert "`astra-mesh models pull words`" in about["error"]["message"]
    assert (own / WEIGHTS).read_bytes() == (source / WEIGHTS).read_bytes()


def test_another_model_of_that_name_is_not_mended_by_adding(models: Path, own: Path) -> None:
    damage(own / WEIGHTS)
    before = (own / WEIGHTS).read_bytes()
    status, about = add(models / "pictures")
    assert status == 2
    assert "there is a model words" in about["error"]["message"]
    assert (own / WEIGHTS).read_bytes() == before
